//! Maps a guest and prints the file that takes up most of its disk.
//!
//! ```text
//! cargo run --release --example map_image -- guest.qcow2
//! ```

use std::collections::HashMap;
use virt_bmap::mapper::{Cancel, GuestDisk, MapEvent, MapperOptions, map_guest};
use virt_bmap_image::Location;
use virt_bmap_map::Kind;
use virt_bmap_ranges::Printable;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: map_image IMAGE")?;
    let disk = GuestDisk::new(Location::stated(&path)?, None);
    let mapped = map_guest(&[disk], &MapperOptions::default(), &Cancel::default(), &mut |event| {
        if let MapEvent::Launching(launching) = event {
            eprintln!("{launching}");
        }
    })?;
    for warning in &mapped.map.header().warnings {
        eprintln!("{warning}");
    }

    let mut bytes: HashMap<Vec<u8>, u64> = HashMap::new();
    for object in mapped.map.objects().filter(|object| object.kind() == Kind::File) {
        let size = object.pieces().map(|piece| piece.range.len()).sum();
        bytes.insert(object.name().path.to_vec(), size);
    }
    match bytes.iter().max_by_key(|(path, size)| (*size, *path)) {
        Some((path, size)) => println!("{} takes up {size} bytes", Printable(path)),
        None => println!("there is no file"),
    }
    Ok(())
}

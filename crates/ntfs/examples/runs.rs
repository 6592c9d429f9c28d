//! Lists the clusters of all attributes of an NTFS image: `cargo run --example runs IMAGE`.

use virt_bmap_ntfs::Volume;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args_os().nth(1).ok_or("the name of an image is missing")?;
    let volume = Volume::open(std::fs::File::open(image)?)?;
    println!("{:?}", volume.geometry());
    println!(
        "dirty {}, log open {}, hibernated {}",
        volume.is_dirty(),
        volume.is_log_open(),
        volume.is_hibernated()
    );
    for (number, file) in volume.files() {
        let Ok(file) = file.inspect_err(|problem| println!("{number}: {problem}")) else { continue };
        let names: Vec<_> = file.names.iter().map(|name| String::from_utf8_lossy(&name.name)).collect();
        println!("{number} {names:?} reparse {:x?} problems {:?}", file.reparse, file.problems);
        for stream in &file.streams {
            let runs: Vec<_> = stream.runs().iter().map(|run| (run.vcn, run.lcn, run.length)).collect();
            let name = String::from_utf8_lossy(&stream.name);
            println!(
                "  {:x?} {name:?} size {} initialized {} {runs:?}",
                stream.kind, stream.size, stream.initialized
            );
        }
    }
    let mut free = 0;
    volume.free_clusters(|_, length| free += length)?;
    println!("{free} free clusters");
    Ok(())
}

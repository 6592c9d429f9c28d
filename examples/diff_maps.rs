//! Prints what changed from one map of a guest to the next.
//!
//! ```text
//! cargo run --example diff_maps -- monday.bmap tuesday.bmap
//! ```
//!
//! Each line has the change, the bytes on the disk before and after, and the name of the object.

use std::borrow::Cow;
use std::path::Path;
use virt_bmap_map::{diff, load};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [old, new] = &arguments[..] else {
        anyhow::bail!("usage: diff_maps OLD NEW");
    };
    // A text map lists less than JSON Lines. `level` reduces the richer of the two maps, so that
    // only differences of the guest remain.
    let load = |path: &String| load(Path::new(path)).map(Cow::Owned);
    let (old, new) = diff::level(load(old)?, load(new)?)?;
    let changes = diff::diff(&old, &new);
    for changed in &changes {
        let Some(object) = changed.subject() else { continue };
        // The name is displayed in a form that is safe for a terminal.
        let name = object.name();
        println!("{} {} {} {name}", changed.change.word(), changed.old_bytes, changed.new_bytes);
    }
    eprintln!("{}", diff::Counts::of(&changes));
    Ok(())
}

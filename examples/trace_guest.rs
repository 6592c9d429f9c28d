//! Serves a guest's disk over NBD while a command runs, logs each request with the files that it
//! touches, and prints the files that were read.
//!
//! ```text
//! cargo run --example trace_guest -- guest.qcow2 guest.bmap \
//!     'qemu-system-x86_64 -m 2048 -drive file=$uri,format=raw,if=virtio'
//! ```
//!
//! The log goes to standard error. What the guest writes stays in a temporary file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_image::{OpenOptions, open};
use virt_bmap_nbd::ListenAddress;
use virt_bmap_trace::{Captive, LogFormat, Overflow, Session, Streams, TraceOptions, Writes, freshness};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, map_file, command] = &arguments[..] else {
        anyhow::bail!("usage: trace_guest IMAGE MAP COMMAND");
    };
    let image = open(&Path::new(image).to_owned().into(), &OpenOptions::default())?;
    let map = Arc::new(virt_bmap_map::load(Path::new(map_file))?);

    // A map of another disk would name the wrong files.
    let images = [image];
    freshness::check(&map, Path::new(map_file), &images)?;

    let output = LogFormat::Log.output(std::io::stderr(), &map.header().images)?;
    let options = TraceOptions {
        writes: Writes::Private,
        overflow: Overflow::Drop,
        place: ListenAddress::Private,
        live: None,
        history: None,
    };
    let session = Session::start(images.into(), map.clone(), output, &options)?;

    // The command finds the disk by the variable `$uri`, as with nbdkit --run.
    let mut command = Captive::start(command.as_ref(), &session, Streams::Ours)?;
    let status = loop {
        if let Some(status) = command.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };

    let outcome = session.finish();
    for read in outcome.summary.objects(&map) {
        println!("{} of {} bytes: {}", read.bytes, read.on_disk, read.file.object.name());
    }
    if let Some(error) = outcome.log_error {
        anyhow::bail!("the log is incomplete: {error}");
    }
    anyhow::ensure!(status.success(), "the command failed: {status}");
    Ok(())
}

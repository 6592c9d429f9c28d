//! Writes the bytes of a guest's disk to standard output, whatever format its image has.
//!
//! ```text
//! cargo run --example cat_image -- guest.vmdk | sha256sum
//! cargo run --example cat_image -- --format qcow2 guest.qcow2 > guest.raw
//! ```

use anyhow::{Context, bail};
use std::io::{Write, stdout};
use std::path::PathBuf;
use virt_bmap_image::{self, OpenOptions};
use virt_bmap_ranges::DiskOffset;

fn main() -> anyhow::Result<()> {
    let mut options = OpenOptions::default();
    let mut path = None;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--format") => {
                let name = arguments.next().context("--format needs the name of a format")?;
                options.format = Some(name.to_string_lossy().parse()?);
            }
            Some("--force-share") => options.access.force_share = true,
            _ => path = Some(PathBuf::from(argument)),
        }
    }
    let Some(path) = path else { bail!("usage: cat_image [--format FORMAT] [--force-share] IMAGE") };

    let image = virt_bmap_image::open(&path.into(), &options)?;
    for file in &image.chain {
        let format = file.format.map_or("?", virt_bmap_image::ImageFormat::driver);
        eprintln!("reading {}, {format}", file.location);
    }
    for warning in &image.warnings {
        eprintln!("warning: {warning}");
    }
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < image.source.size() {
        let length = buf.len().min((image.source.size() - offset) as usize);
        image.source.read_at(&mut buf[..length], DiskOffset(offset))?;
        stdout().write_all(&buf[..length])?;
        offset += length as u64;
    }
    Ok(())
}

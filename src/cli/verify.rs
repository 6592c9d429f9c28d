//! `virt-bmap-rs verify`: compares a disk with the hashes that were noted when it was acquired.

use super::Exit;
use super::map::location;
use super::progress::Counter;
use anyhow::{Result, bail};
use md5::{Digest, Md5};
use sha1::Sha1;
use std::io::Write as _;
use virt_bmap_image::{self, Acquisition, Location, OpenOptions};
use virt_bmap_ranges::DiskOffset;

/// Compare the disk in an EnCase image (E01) with the hashes that were noted when it was acquired.
///
/// All of the disk is read. A part whose checksum in the image is wrong is reported with its place,
/// and counts as different.
#[derive(Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct VerifyArgs {
    /// The first segment of the image
    #[arg(value_parser = location())]
    image: Location,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

const AFTER_HELP: &str = "\
Exit status:
  0  all hashes in the image are those of the disk
  1  error, for instance because there is no hash in the image
  2  usage error
  4  a hash is another, or a part of the disk cannot be read

Examples:
  virt-bmap-rs verify guest.E01
  virt-bmap-rs verify evidence/disk.E01 --quiet && echo unchanged since the acquisition";

/// Bytes that are read at once.
const BLOCK: u64 = 4 << 20;

/// Bytes in which a part that cannot be read is looked for. Chunks of EnCase images are no smaller,
/// unless they were asked to be.
const PART: usize = 32 << 10;

/// Most places of damage that are printed.
const MOST_SHOWN: usize = 100;

pub(super) fn run(args: &VerifyArgs) -> Result<Exit> {
    let image = virt_bmap_image::open(&args.image, &OpenOptions::default())?;
    let Some(Acquisition { md5, sha1, unread_sectors }) = image.acquisition else {
        bail!("{}: only an EnCase image (E01) has hashes of the disk", args.image);
    };
    if md5.is_none() && sha1.is_none() {
        bail!("{}: there is no hash in the image", args.image);
    }
    let size = image.source.size();
    let counter = Counter::new(args.quiet, "verifying", size);
    let (mut md5_of_disk, mut sha1_of_disk) = (Md5::new(), Sha1::new());
    let mut damaged = Vec::new();
    let mut buf = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < size {
        let block = &mut buf[..(size - at).min(BLOCK) as usize];
        if image.source.read_at(block, DiskOffset(at)).is_err() {
            for (number, part) in block.chunks_mut(PART).enumerate() {
                let offset = DiskOffset(at + (number * PART) as u64);
                if image.source.read_at(part, offset).is_err() {
                    part.fill(0);
                    damaged.push((offset, part.len()));
                }
            }
        }
        md5_of_disk.update(&*block);
        sha1_of_disk.update(&*block);
        counter.add(block.len() as u64);
        at += block.len() as u64;
    }
    counter.finish();
    let computed = [
        ("md5", md5, hexadecimal(&md5_of_disk.finalize())),
        ("sha1", sha1, hexadecimal(&sha1_of_disk.finalize())),
    ];
    let mut is_same = damaged.is_empty();
    let mut out = std::io::stdout().lock();
    for (offset, length) in damaged.iter().take(MOST_SHOWN) {
        writeln!(out, "damaged: {length} bytes at {offset:#x}")?;
    }
    if damaged.len() > MOST_SHOWN {
        writeln!(out, "damaged: {} more places", damaged.len() - MOST_SHOWN)?;
    }
    if unread_sectors > 0 {
        writeln!(out, "{unread_sectors} sectors could not be read when the disk was acquired")?;
    }
    for (name, noted, computed) in computed {
        match noted {
            None => {}
            Some(noted) if noted == computed => writeln!(out, "{name} is the same: {computed}")?,
            Some(noted) => {
                is_same = false;
                writeln!(out, "{name} differs: {computed}, and {noted} was noted")?;
            }
        }
    }
    Ok(if is_same { Exit::Success } else { Exit::Found })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

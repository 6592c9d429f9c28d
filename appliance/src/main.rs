//! The probe agent: reads a guest's devices and files inside the libguestfs appliance.
//!
//! It is uploaded by virt-bmap-rs and speaks to it over the control disk, see the library of this crate.
//! Nobody calls it by hand; its commands are:
//!
//! ```text
//! virt-bmap-agent quiet                              turn off everything that reads ahead
//! virt-bmap-agent devices CONTROL [DEVICE...]        describe block devices, as text
//! virt-bmap-agent read CONTROL SEQUENCE PLAN         read pieces of devices, each under its tag
//! virt-bmap-agent walk CONTROL SEQUENCE FIRST tags|series|ends:N ROOT [metadata] [ask] [known FILE] [listings FILE] [ahead FILE]
//!                                                    read each directory and file below ROOT
//! ```
//!
//! SEQUENCE is the number of the first frame to send, FIRST the number of the first object; see
//! [`virt_bmap_agent::ReadOrder`] for the word after it. With `metadata` symbolic links and extended attributes
//! are read, too, and the file system is asked what its blocks are for. With `ask` the host is asked, for each batch of
//! files, which of them to read. `known` names a file with inodes of files of which only the names are told
//! ([`virt_bmap_agent::inodes::InodeSet`]), `listings` one with what is in directories that need not be listed
//! ([`virt_bmap_agent::listings::Listings`]), `ahead` one with the parts of the device that are best read first
//! (start and length, as [`virt_bmap_agent::pairs`]).

mod aio;
mod btrfs;
mod buffer;
mod calm;
mod control;
mod devices;
mod f2fs;
mod fiemap;
mod getfsmap;
mod kernel_log;
mod nilfs2;
mod phases;
mod pieces;
mod quiet;
mod reader;
mod squashfs;
mod tagged_read;
mod walk;

use std::process::ExitCode;
use virt_bmap_agent::inodes::InodeSet;
use virt_bmap_agent::listings::Listings;
use virt_bmap_agent::pairs;

/// What stops the agent.
pub(crate) type Fatal = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virt-bmap-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Fatal> {
    match arguments {
        ["quiet"] => quiet::run(),
        ["log"] => kernel_log::run(),
        ["devices", control, named @ ..] => devices::run(control, named),
        ["read", control, sequence, plan] => tagged_read::run(control, sequence.parse()?, plan),
        ["walk", control, sequence, first, order, root, rest @ ..] => {
            let mut wanted = walk::Wanted::new(order.parse()?);
            let mut words = rest.iter();
            while let Some(word) = words.next() {
                match *word {
                    "metadata" => wanted.metadata = true,
                    "ask" => wanted.asks = true,
                    "known" => wanted.known = InodeSet::decode(&read(words.next())?),
                    "listings" => {
                        let listings = Listings::decode(&read(words.next())?);
                        wanted.listings = listings.ok_or("the listings make no sense")?;
                    }
                    "ahead" => wanted.ahead = pairs::decode(&read(words.next())?),
                    _ => return Err("unknown word for a walk".into()),
                }
            }
            walk::run(control, sequence.parse()?, first.parse()?, root, wanted)
        }
        _ => Err("unknown command".into()),
    }
}

/// What is in a file that is named as a word of the command line.
fn read(file: Option<&&str>) -> Result<Vec<u8>, Fatal> {
    let file = file.ok_or("a file is not named")?;
    Ok(std::fs::read(file).map_err(|error| format!("{file}: {error}"))?)
}

//! The probe agent: reads a guest's devices and files inside the libguestfs appliance.
//!
//! virt-bmap-rs uploads and runs it, and they communicate over the control disk: see the crate
//! `virt-bmap-agent-protocol`. Its commands are:
//!
//! ```text
//! virt-bmap-agent disable-readahead             turn off what reads without a request
//! virt-bmap-agent forget                        drop what the kernel remembers of the disks
//! virt-bmap-agent mount DEVICE KIND OPTIONS ROOT   mount a device, and do as `log` does
//! virt-bmap-agent leave ROOT                    unmount it, and do as `forget` and `log` do
//! virt-bmap-agent detach                        take apart whatever lies on the disks
//! virt-bmap-agent attach                        put it together again
//! virt-bmap-agent log                           print the kernel's messages since the last time
//! virt-bmap-agent devices CONTROL [DEVICE...]   print the device inventory
//! virt-bmap-agent work CONTROL                  do the task on the control disk
//! ```
//!
//! As process 1, it is the init program of virt-bmap-rs's own appliance: see [`init`].

mod again;
mod aio;
mod attach;
mod bmapx;
mod btrfs;
mod buffer;
mod control;
mod data_ranges;
mod devices;
mod directories;
mod disable_readahead;
mod dm_freeze;
mod ext;
mod f2fs;
mod fiemap;
mod forget;
mod getfsmap;
mod init;
mod kernel_log;
mod nilfs2;
mod ntfs;
mod phases;
mod reader;
mod squashfs;
mod tables;
mod tagged_read;
mod tree_items;
mod ufs;
mod unlock;
mod walk;
mod xfs;

use std::process::ExitCode;
use virt_bmap_agent_protocol::Task;

/// An error that ends the agent.
pub(crate) type Fatal = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
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
        ["attach"] => attach::attach(),
        ["detach"] => attach::detach(),
        ["disable-readahead"] => disable_readahead::run(),
        ["forget"] => forget::run(),
        ["leave", root] => again::leave(root),
        ["log"] => kernel_log::run(),
        ["mount", device, kind, options, root] => again::mount_with_options(device, kind, options, root),
        ["devices", control, named @ ..] => devices::run(control, named),
        ["work", control] => match control::task(control)? {
            Task::Walk(plan) => walk::run(control, plan),
            Task::ReadDevices(task) => tagged_read::run(control, &task),
            Task::Unlock(task) => unlock::run(control, &task),
            Task::Items(task) => tree_items::run(control, &task),
        },
        _ => Err("unknown command".into()),
    }
}

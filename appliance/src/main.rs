//! The probe agent: reads a guest's devices and files inside the libguestfs appliance.
//!
//! virt-bmap-rs uploads and runs it, and they communicate over the control disk: see the crate
//! `virt-bmap-agent-protocol`. Its commands are:
//!
//! ```text
//! virt-bmap-agent disable-readahead             turn off what reads without a request
//! virt-bmap-agent forget                        drop what the kernel remembers of the disks
//! virt-bmap-agent detach                        take apart whatever lies on the disks
//! virt-bmap-agent attach                        put it together again
//! virt-bmap-agent log                           print the kernel's messages since the last time
//! virt-bmap-agent devices CONTROL [DEVICE...]   print the device inventory
//! virt-bmap-agent work CONTROL                  do the task on the control disk
//! virt-bmap-agent stay CONTROL SEQUENCE         do one after the other, from this frame on
//! virt-bmap-agent gone                          wait until no such agent runs
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
mod file_handle;
mod forget;
mod getfsmap;
mod init;
mod inode_tables;
mod kernel_log;
mod nilfs2;
mod ntfs;
mod phases;
mod reader;
mod squashfs;
mod statx;
mod stay;
mod tables;
mod tagged_read;
mod tree_items;
mod ufs;
mod unlock;
mod walk;
mod xfs;

use std::io::Write as _;
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
        ["log"] => print(&kernel_log::messages()?),
        ["devices", control, named @ ..] => devices::run(control, named),
        ["gone"] => stay::alone().map(drop),
        ["stay", control, sequence] => stay::run(control, sequence.parse()?),
        ["work", control] => print(&work(control, control::task(control)?)?),
        _ => Err("unknown command".into()),
    }
}

/// Does a task. Returns what is to be printed.
fn work(control: &str, task: Task) -> Result<String, Fatal> {
    let nothing = |()| String::new();
    match task {
        Task::Walk(plan) => walk::run(control, plan),
        Task::ReadDevices(task) => tagged_read::run(control, &task).map(nothing),
        Task::Unlock(task) => unlock::run(control, &task).map(nothing),
        Task::Items(task) => tree_items::run(control, &task).map(nothing),
        Task::Mount(task) => again::mount_with_options(&task),
        Task::Leave(task) => again::leave(&task.root),
        Task::End(_) => Err("not for this agent".into()),
    }
}

fn print(text: &str) -> Result<(), Fatal> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

//! `nbdkit-bmaplogger-plugin.so`: serves a disk image in [nbdkit], read-only, and logs which files
//! are read.
//!
//! ```text
//! nbdkit -r ./nbdkit-bmaplogger-plugin.so file=win7.img bmap=win7.bmap logfile=win7.log \
//!     --run 'qemu-system-x86_64 -m 2048 -snapshot -hda $nbd'
//! ```
//!
//! It has the name, the parameters and the log of the original virt-bmap's plugin. The code here
//! only connects nbdkit with the libraries: image, map and log are the same as in `virt-bmap-rs
//! trace`.
//!
//! nbdkit passes the parameters one by one ([`parameters`]), asks to open the [`disk`], and then
//! creates a [`Connection`] for each client. All requests may run at once. A thread writes the
//! [`log`]; it is started when nbdkit has forked for the last time, and ends when nbdkit unloads
//! the plugin.
//!
//! A panic must not reach nbdkit, which is C: every call goes through [`guarded`], which turns a
//! panic into an error.
//!
//! [nbdkit]: https://gitlab.com/nbdkit/nbdkit

mod disk;
mod log;
mod parameters;

use disk::Disk;
use nbdkit::{Error, ExtentHandle, ExtentType, Flags, Result, Server};
use parameters::Parameters;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The parameters so far.
static PARAMETERS: Mutex<Parameters> = Mutex::new(Parameters::new());

/// The disk, once all parameters are there.
static DISK: OnceLock<Disk> = OnceLock::new();

/// An error for nbdkit. Without NUL bytes, at which the `nbdkit` crate panics.
fn error(errno: i32, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(errno, virt_bmap_ranges::error_chain(error).replace('\0', "\\0"))
}

fn io_error(failure: &io::Error) -> Error {
    error(failure.raw_os_error().unwrap_or(libc::EIO), failure)
}

/// Calls `work`; a panic in it becomes an error. The panic's message has gone to standard error
/// already.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::new(libc::EIO, "internal error: the plugin panicked")))
}

/// A client.
struct Connection {
    disk: &'static Disk,
    number: u64,
}

impl Server for Connection {
    fn name() -> &'static str {
        "bmaplogger"
    }

    fn longname() -> Option<&'static str> {
        Some("virt-bmap-rs bmaplogger")
    }

    fn version() -> Option<&'static str> {
        Some(env!("CARGO_PKG_VERSION"))
    }

    fn description() -> Option<&'static str> {
        Some("Serves a disk image and logs which files are read, with a map that virt-bmap-rs made of it.")
    }

    fn config_help() -> Option<&'static str> {
        Some(parameters::HELP)
    }

    fn config(key: &str, value: &str) -> Result<()> {
        guarded(|| PARAMETERS.lock().unwrap_or_else(PoisonError::into_inner).set(key, value))
    }

    fn config_complete() -> Result<()> {
        guarded(|| {
            let parameters = PARAMETERS.lock().unwrap_or_else(PoisonError::into_inner);
            let disk = Disk::open(&parameters).map_err(|failure| error(libc::EINVAL, &*failure))?;
            DISK.set(disk).map_err(|_| Error::new(libc::EINVAL, "internal error: configured twice"))
        })
    }

    fn after_fork() -> Result<()> {
        guarded(|| DISK.get().map_or(Ok(()), |disk| disk.start().map_err(|failure| io_error(&failure))))
    }

    fn unload() {
        // Nobody could receive an error; a failed log was reported before.
        let _ = guarded(|| {
            if let Some(disk) = DISK.get() {
                disk.finish();
            }
            Ok(())
        });
    }

    fn open(_readonly: bool) -> Result<Box<dyn Server>> {
        guarded(|| {
            let disk =
                DISK.get().ok_or_else(|| Error::new(libc::EINVAL, "internal error: not configured"))?;
            Ok(Box::new(Self { disk, number: disk.connect() }) as Box<dyn Server>)
        })
    }

    fn get_size(&self) -> Result<i64> {
        guarded(|| {
            let too_large = |_| Error::new(libc::EFBIG, "the disk is larger than nbdkit can serve");
            i64::try_from(self.disk.size()).map_err(too_large)
        })
    }

    /// All clients read the same bytes.
    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        guarded(|| self.disk.read(self.number, buf, offset).map_err(|failure| io_error(&failure)))
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(true)
    }

    fn extents(&self, count: u32, offset: u64, _: Flags, extents: &mut ExtentHandle) -> Result<()> {
        guarded(|| {
            for part in self.disk.allocation(count, offset).map_err(|failure| io_error(&failure))? {
                let kind = if part.is_hole { ExtentType::HoleZero } else { ExtentType::Allocated };
                extents.add(part.range.start.0, part.range.len(), kind)?;
            }
            Ok(())
        })
    }
}

/// The entry point of nbdkit, with the functions that [`Connection`] implements.
mod entry {
    use super::Connection;

    nbdkit::plugin!(Connection {
        after_fork,
        can_extents,
        can_multi_conn,
        config,
        config_complete,
        config_help,
        extents,
        unload
    });
}

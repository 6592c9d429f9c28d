//! Many reads at once by Linux's asynchronous I/O (`io_submit(2)`), which the kernel of every
//! appliance has. Under emulation most of the cost of a read is the round trip to the disk, not the
//! data, and one call for many reads saves most of that.

use crate::buffer::AlignedBuffer;
use rustix::fd::{AsRawFd as _, BorrowedFd};
use rustix::io::Errno;

/// Most reads at a time. Many, because the kernel merges adjacent reads into one request.
const DEPTH: usize = 512;

/// Longest read in bytes.
pub(crate) const LARGEST: usize = 8192;

/// `struct iocb` of `linux/aio_abi.h`. The unnamed fields are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    /// `aio_key` and `aio_rw_flags`, in an order that depends on the byte order.
    key_and_flags: [u32; 2],
    /// `IOCB_CMD_PREAD` is 0.
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A read to do.
#[derive(Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    /// Offset in the file.
    pub(crate) at: u64,
    /// At most [`LARGEST`].
    pub(crate) length: usize,
}

/// A context for reads whose data is discarded.
pub(crate) struct Aio {
    context: libc::c_ulong,
    memory: AlignedBuffer,
}

impl Aio {
    /// # Errors
    /// The error of `io_setup`, such as a kernel without asynchronous I/O.
    pub(crate) fn new() -> Result<Self, Errno> {
        let mut context: libc::c_ulong = 0;
        #[allow(unsafe_code)]
        // SAFETY: `io_setup` writes one `aio_context_t` to where its argument points.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH as libc::c_ulong, &raw mut context) };
        check(result)?;
        Ok(Self { context, memory: AlignedBuffer::new(DEPTH * LARGEST) })
    }

    /// Does all of these reads, in any order, and waits for the last. Returns the number of bytes
    /// of each.
    pub(crate) fn read(&mut self, reads: &[Read<'_>]) -> Vec<Result<usize, Errno>> {
        reads.chunks(DEPTH).flat_map(|reads| self.read_few(reads)).collect()
    }

    fn read_few(&mut self, reads: &[Read<'_>]) -> Vec<Result<usize, Errno>> {
        let buffers = self.memory.chunks_mut(LARGEST);
        let iocbs: Vec<Iocb> = (0..)
            .zip(reads.iter().zip(buffers))
            .map(|(data, (read, buffer))| Iocb {
                data,
                fd: read.fd.as_raw_fd() as u32,
                buffer: buffer.as_mut_ptr() as u64,
                length: read.length.min(LARGEST) as u64,
                offset: read.at as i64,
                ..Iocb::default()
            })
            .collect();
        let pointers: Vec<*const Iocb> = iocbs.iter().map(std::ptr::from_ref).collect();
        let mut results = vec![Err(Errno::IO); reads.len()];
        let (mut next, mut under_way) = (0, 0);
        while let Some(rest @ [_, ..]) = pointers.get(next..) {
            #[allow(unsafe_code)]
            // SAFETY: each pointer is to an `Iocb`, laid out as `struct iocb`, that lives until the
            // end of this function. Its buffer is a part of `self.memory` of its own, of `LARGEST`
            // bytes, and its descriptor is borrowed: both outlive the read, because all that is
            // under way is waited for below, before anything returns.
            let result = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, rest.len() as libc::c_long, rest.as_ptr())
            };
            match check(result) {
                Ok(count @ 1..) => {
                    next += count;
                    under_way += count;
                }
                refused => {
                    // The kernel refuses the first of the remaining reads.
                    results[next] = refused.and(Err(Errno::AGAIN));
                    next += 1;
                }
            }
        }
        let mut done = 0;
        let mut events = [IoEvent::default(); DEPTH];
        while done < under_way {
            let left = (under_way - done) as libc::c_long;
            #[allow(unsafe_code)]
            // SAFETY: `io_getevents` writes at most `left` events, of which there is room for
            // `DEPTH`, and no more than `DEPTH` are under way. Without a time limit its last
            // argument is null.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    left,
                    left,
                    events.as_mut_ptr(),
                    std::ptr::null_mut::<libc::timespec>(),
                )
            };
            let count = match check(result) {
                Err(Errno::INTR) => continue,
                // The buffer of a read that may still be running must not be freed.
                Err(_) => std::process::abort(),
                Ok(count) => count,
            };
            for event in &events[..count.min(DEPTH)] {
                if let Some(result) = results.get_mut(event.data as usize) {
                    *result = outcome(event.result);
                }
            }
            done += count;
        }
        results
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        #[allow(unsafe_code)]
        // SAFETY: the context is ours, and nothing is under way in it.
        unsafe {
            libc::syscall(libc::SYS_io_destroy, self.context);
        }
    }
}

/// The result of a system call through the C library.
fn check(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// The result of a read: a number of bytes, or a negative error number.
fn outcome(result: i64) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_raw_os_error(i32::try_from(result.saturating_neg()).unwrap_or(libc::EIO)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::fd::AsFd as _;
    use std::fs::File;
    use std::io::Write as _;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!((size_of::<Iocb>(), size_of::<IoEvent>()), (64, 32));
    }

    #[test]
    fn more_reads_than_fit_are_all_done_and_errors_stay_with_theirs() {
        let path = std::env::temp_dir().join(format!("virt-bmap-aio-{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let directory = File::open("/").unwrap();
        let mut reads: Vec<Read<'_>> =
            (0..2000).map(|number| Read { fd: file.as_fd(), at: number * 10, length: 4096 }).collect();
        reads[700].fd = directory.as_fd();
        let results = Aio::new().unwrap().read(&reads);
        assert_eq!(results.len(), 2000);
        assert_eq!((results[0], results[900], results[1999]), (Ok(4096), Ok(1000), Ok(0)));
        assert!(results[700].is_err());
        // Those after it in its turn are read on their own.
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
    }
}

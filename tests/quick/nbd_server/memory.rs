//! An export in memory. Tests can hold its operations and make them fail.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use virt_bmap_nbd::{Command, Export, Exports, Extent, Request, StateFlags, Zeroing};

/// How an export behaves. The default is writable, and its operations run on blocking threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) read_only: bool,
    /// Answers everything inline.
    pub(crate) fast: bool,
    /// Answers reads inline.
    pub(crate) cached: bool,
}

pub(crate) struct Memory {
    pub(crate) kind: Kind,
    size: u64,
    bytes: Mutex<Vec<u8>>,
    /// While this is true, operations on blocking threads wait.
    held: Mutex<bool>,
    released: Condvar,
    /// The number of operations that have begun and not ended.
    pub(crate) running: AtomicUsize,
    /// Reads that end behind this offset are not answered inline.
    cached: AtomicU64,
    /// Reads that end behind this offset fail.
    broken: AtomicU64,
    fail: Mutex<Option<io::ErrorKind>>,
    panic: Mutex<bool>,
    observed: Mutex<Vec<Request>>,
    /// Operations in the order in which they were carried out.
    done: Mutex<Vec<String>>,
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>, kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            kind,
            size: bytes.len() as u64,
            bytes: Mutex::new(bytes),
            held: Mutex::default(),
            released: Condvar::new(),
            running: AtomicUsize::new(0),
            cached: AtomicU64::new(u64::MAX),
            broken: AtomicU64::new(u64::MAX),
            fail: Mutex::default(),
            panic: Mutex::default(),
            observed: Mutex::default(),
            done: Mutex::default(),
        })
    }

    /// Exports with this disk as the only and default export, under the name `disk`.
    pub(crate) fn exports(self: &Arc<Self>) -> Exports {
        Exports::new().with("disk", Arc::clone(self) as _).unwrap().with_default("disk").unwrap()
    }

    /// Lets operations on blocking threads wait until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    /// Waits until `count` operations have begun and not ended.
    pub(crate) async fn wait_for_running(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.running.load(Ordering::SeqCst) != count {
            assert!(Instant::now() < deadline, "{} operations run", self.running.load(Ordering::SeqCst));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets only reads that end at or before `end` be answered inline.
    pub(crate) fn cache(&self, end: u64) {
        self.cached.store(end, Ordering::SeqCst);
    }

    /// Makes reads that end behind `end` fail.
    pub(crate) fn break_from(&self, end: u64) {
        self.broken.store(end, Ordering::SeqCst);
    }

    /// Makes all operations fail with this error, or succeed again.
    pub(crate) fn fail(&self, kind: Option<io::ErrorKind>) {
        *self.fail.lock().unwrap() = kind;
    }

    /// Makes all operations panic.
    pub(crate) fn panic(&self) {
        *self.panic.lock().unwrap() = true;
    }

    pub(crate) fn observed(&self) -> Vec<Request> {
        self.observed.lock().unwrap().clone()
    }

    pub(crate) fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn operate<T>(&self, what: String, action: impl FnOnce(&mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if !self.kind.fast {
            let held = self.held.lock().unwrap();
            drop(self.released.wait_while(held, |held| *held).unwrap());
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        assert!(!*self.panic.lock().unwrap(), "told to panic");
        if let Some(kind) = *self.fail.lock().unwrap() {
            return Err(io::Error::new(kind, "told to fail"));
        }
        self.done.lock().unwrap().push(what);
        action(&mut self.bytes.lock().unwrap())
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn description(&self) -> &str {
        "bytes in memory"
    }

    fn is_read_only(&self) -> bool {
        self.kind.read_only
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    fn is_fast(&self) -> bool {
        self.kind.fast
    }

    fn observe(&self, request: &Request) {
        self.observed.lock().unwrap().push(*request);
    }

    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let cached = self.kind.cached && offset + buf.len() as u64 <= self.cached.load(Ordering::SeqCst);
        if cached {
            self.read(buf, offset)?;
        }
        Ok(cached)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.operate(format!("read {offset} {}", buf.len()), |bytes| {
            if offset + buf.len() as u64 > self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("a bad sector"));
            }
            buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
            Ok(())
        })
    }

    fn write(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let what = format!("write {offset} {}{}", data.len(), if fua { " fua" } else { "" });
        self.operate(what, |bytes| {
            bytes[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        })
    }

    fn write_zeroes(&self, length: u32, offset: u64, how: Zeroing) -> io::Result<()> {
        self.operate(format!("zero {offset} {length} {how:?}"), |bytes| {
            // This export cannot write zeroes quickly if it must not make a hole.
            if how.fast && how.no_hole {
                return Err(io::ErrorKind::Unsupported.into());
            }
            bytes[offset as usize..][..length as usize].fill(0);
            Ok(())
        })
    }

    fn trim(&self, length: u32, offset: u64, fua: bool) -> io::Result<()> {
        self.operate(format!("trim {offset} {length}{}", if fua { " fua" } else { "" }), |bytes| {
            bytes[offset as usize..][..length as usize].fill(0);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.operate("flush".into(), |_| Ok(()))
    }

    /// Blocks of 512 bytes that are all zero are holes. Blocks are counted from the disk's
    /// beginning.
    fn block_status(&self, length: u32, offset: u64, one: bool) -> io::Result<Vec<Extent>> {
        self.operate(format!("status {offset} {length}{}", if one { " one" } else { "" }), |bytes| {
            let end = offset as usize + length as usize;
            let mut at = offset as usize;
            let mut extents = Vec::new();
            while at < end {
                let next = (at / 512 + 1) * 512;
                let zero = bytes[at / 512 * 512..next.min(bytes.len())].iter().all(|&byte| byte == 0);
                let flags = if zero { StateFlags::HOLE | StateFlags::ZERO } else { StateFlags::empty() };
                extents.push(Extent { length: (next - at) as u64, flags });
                at = next;
            }
            Ok(extents)
        })
    }
}

impl Kind {
    pub(crate) const READ_ONLY: Self = Self { read_only: true, fast: false, cached: true };
    pub(crate) const FAST: Self = Self { read_only: false, fast: true, cached: false };
    pub(crate) const BLOCKING: Self = Self { read_only: false, fast: false, cached: false };
    pub(crate) const CACHED: Self = Self { read_only: false, fast: false, cached: true };
    pub(crate) const ALL: [Self; 3] = [Self::FAST, Self::BLOCKING, Self::CACHED];
}

/// The commands of the requests, for comparison.
pub(crate) fn commands(requests: &[Request]) -> Vec<Command> {
    requests.iter().map(|request| request.command).collect()
}

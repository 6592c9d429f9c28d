//! What can be served: the trait [`Export`] and the set of named [`Exports`].

use super::protocol::{NBD_MAX_STRING, Request, StateFlags};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// A row of bytes that clients can read, and perhaps write.
///
/// All methods may be called from many threads at once. Every range that a method is given has been
/// checked: it is not empty and lies within [`size`](Self::size).
///
/// An error becomes one of the protocol's few error values for the client (see
/// [`io::ErrorKind`]: `PermissionDenied`, `ReadOnlyFilesystem`, `StorageFull`, `QuotaExceeded`,
/// `FileTooLarge`, `OutOfMemory`, `InvalidInput` and `Unsupported` have their own, all else is
/// `NBD_EIO`); the error itself goes to the log.
pub trait Export: Send + Sync + 'static {
    /// Size in bytes. Must not change while the export is served.
    fn size(&self) -> u64;

    /// What this is, in words for people. At most 4096 bytes are sent.
    fn description(&self) -> &str {
        ""
    }

    /// Whether the server refuses all writes.
    fn is_read_only(&self) -> bool {
        true
    }

    /// Whether a client may use several connections: all of them see what one of them wrote, and a
    /// flush on one makes durable what all wrote.
    fn can_multi_conn(&self) -> bool {
        self.is_read_only()
    }

    /// Whether no method ever waits, for a disk or for anything else. They are then called in the
    /// connection's own task (but for some reads of more than 256 KiB), otherwise on a thread that
    /// may block.
    fn is_fast(&self) -> bool {
        false
    }

    /// Called for each valid request just before it is carried out, in the order in which the
    /// requests of one connection arrived. Runs in the connection's task: it must not wait.
    fn observe(&self, request: &Request) {
        let _ = request;
    }

    /// Called for each request that was carried out or failed, as soon as the outcome is known.
    /// Runs in the connection's task or on the thread that did the work: it must be quick.
    fn answered(&self, answered: &Answered<'_>) {
        let _ = answered;
    }

    /// Fills `buf` from `offset` if that needs no waiting, and returns whether it did. What is in
    /// `buf` after `false` or an error means nothing.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    fn try_read(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `data` at `offset`; with `fua` it is durable before this returns.
    ///
    /// # Errors
    /// The bytes cannot be written. By default, none can.
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let _ = (data, offset, fua);
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Makes `length` bytes at `offset` read as zeroes. By default, zeroes are
    /// [written](Self::write).
    ///
    /// # Errors
    /// The bytes cannot be written, or [`Zeroing::fast`] was asked for and this would be no faster
    /// than writing ([`io::ErrorKind::Unsupported`], at once and with nothing changed).
    fn write_zeroes(&self, length: u32, offset: u64, how: Zeroing) -> io::Result<()> {
        write_zeroes_slowly(self, length, offset, how)
    }

    /// Discards `length` bytes at `offset`, which are no longer needed: a hint that may be ignored.
    ///
    /// # Errors
    /// The discarding failed.
    fn trim(&self, length: u32, offset: u64, fua: bool) -> io::Result<()> {
        let _ = (length, offset, fua);
        Ok(())
    }

    /// Makes durable all that was written before.
    ///
    /// # Errors
    /// It may not be durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The allocation of `length` bytes at `offset`, as consecutive extents that begin at `offset`.
    /// With `one`, the first is enough. They may end before the range does; whatever lies beyond
    /// the range is not sent.
    ///
    /// # Errors
    /// The state cannot be determined.
    fn block_status(&self, length: u32, offset: u64, one: bool) -> io::Result<Vec<Extent>> {
        let _ = (offset, one);
        Ok(vec![Extent { length: length.into(), flags: StateFlags::empty() }])
    }
}

/// Writes zeroes as data: the default of [`Export::write_zeroes`].
///
/// # Errors
/// The export's errors, and [`io::ErrorKind::Unsupported`] if [`Zeroing::fast`] is set.
pub fn write_zeroes_slowly(
    export: &(impl Export + ?Sized),
    length: u32,
    offset: u64,
    how: Zeroing,
) -> io::Result<()> {
    const ZEROES: &[u8] = &[0; 1 << 16];
    if how.fast {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut done = 0;
    while done < length {
        let part = (length - done).min(ZEROES.len() as u32);
        export.write(&ZEROES[..part as usize], offset + u64::from(done), how.fua)?;
        done += part;
    }
    Ok(())
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The request, as the client sent it.
    pub request: &'a Request,
    /// Number of the connection, from 1 in the order in which the server has met its clients.
    pub connection: u64,
    /// When its header arrived.
    pub received: Instant,
    /// The error, if it failed.
    pub error: Option<&'a io::Error>,
}

/// Options of [`Export::write_zeroes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroing {
    /// Force unit access: durable before it returns.
    pub fua: bool,
    /// The range must be allocated afterwards.
    pub no_hole: bool,
    /// Fail if zeroing is not faster than writing.
    pub fast: bool,
}

/// A run of bytes with one state of allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of bytes.
    pub length: u64,
    /// Their state.
    pub flags: StateFlags,
}

impl Extent {
    /// A hole, not allocated and read as zeroes, or allocated bytes of which no more is known.
    pub fn new(length: u64, is_hole: bool) -> Self {
        let flags = if is_hole { StateFlags::HOLE | StateFlags::ZERO } else { StateFlags::empty() };
        Self { length, flags }
    }
}

/// The exports of one server, by name.
#[derive(Clone, Default)]
pub struct Exports {
    by_name: BTreeMap<String, Arc<dyn Export>>,
    default: Option<String>,
}

/// Why an export cannot be added or made the default.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportsError {
    /// Another export has that name.
    #[error("there are two NBD exports named {0:?}")]
    Duplicate(String),
    /// The protocol does not allow that name.
    #[error("{0:?} is not a valid NBD export name: it must have 1 to {NBD_MAX_STRING} bytes and no NUL")]
    BadName(String),
    /// The default must be one of the exports.
    #[error("the default NBD export {0:?} does not exist")]
    Unknown(String),
}

impl Exports {
    /// No export yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// The name is taken, empty or too long.
    pub fn with(mut self, name: &str, export: Arc<dyn Export>) -> Result<Self, ExportsError> {
        if name.is_empty() || name.len() > NBD_MAX_STRING || name.contains('\0') {
            return Err(ExportsError::BadName(name.into()));
        }
        match self.by_name.insert(name.into(), export) {
            None => Ok(self),
            Some(_) => Err(ExportsError::Duplicate(name.into())),
        }
    }

    /// Makes the export `name` the default: clients that ask for the empty name get it. Without a
    /// default they are refused.
    ///
    /// # Errors
    /// There is no such export.
    pub fn with_default(mut self, name: &str) -> Result<Self, ExportsError> {
        if !self.by_name.contains_key(name) {
            return Err(ExportsError::Unknown(name.into()));
        }
        self.default = Some(name.into());
        Ok(self)
    }

    /// The export that a client means by `name`, with its canonical name.
    pub(super) fn find(&self, name: &str) -> Option<(&str, &Arc<dyn Export>)> {
        let name = if name.is_empty() { self.default.as_deref()? } else { name };
        self.by_name.get_key_value(name).map(|(name, export)| (name.as_str(), export))
    }

    /// All exports, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &dyn Export)> {
        self.by_name.iter().map(|(name, export)| (name.as_str(), &**export))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Remembers what is written.
    #[derive(Default)]
    struct Log(Mutex<Vec<(u64, usize, bool)>>);

    impl Export for Log {
        fn size(&self) -> u64 {
            1 << 30
        }
        fn read(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Other.into())
        }
        fn write(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
            assert!(data.iter().all(|&b| b == 0));
            self.0.lock().unwrap().push((offset, data.len(), fua));
            Ok(())
        }
    }

    #[test]
    fn zeroes_are_written_as_data_by_default() {
        let log = Log::default();
        log.write_zeroes(0x2_0001, 7, Zeroing { fua: true, ..Zeroing::default() }).unwrap();
        assert_eq!(
            *log.0.lock().unwrap(),
            [(7, 0x1_0000, true), (0x1_0007, 0x1_0000, true), (0x2_0007, 1, true)]
        );
        let fast = log.write_zeroes(1, 0, Zeroing { fast: true, ..Zeroing::default() });
        assert_eq!(fast.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn names_are_unique_and_the_default_is_one_of_them() {
        let exports = Exports::new().with("a", Arc::new(Log::default())).unwrap();
        assert!(exports.find("").is_none());
        assert!(exports.find("b").is_none());
        let twice = exports.clone().with("a", Arc::new(Log::default()));
        assert_eq!(twice.err(), Some(ExportsError::Duplicate("a".into())));
        assert_eq!(exports.clone().with_default("b").err(), Some(ExportsError::Unknown("b".into())));
        for bad in ["", "a\0b", &"x".repeat(4097)] {
            let bad_name = exports.clone().with(bad, Arc::new(Log::default()));
            assert_eq!(bad_name.err(), Some(ExportsError::BadName(bad.into())));
        }
        let exports = exports.with_default("a").unwrap();
        assert_eq!(exports.find("").map(|(name, _)| name), Some("a"));
    }
}

//! The number of guests that this machine can map at the same time, and the disk space for their
//! maps.

use super::Store;
use super::error::FleetError;
use crate::appliance::processors;
use std::path::Path;

/// Memory of one mapper in addition to its appliance's: its own, and qemu's overhead.
const OVERHEAD: u64 = 200 << 20;

/// Assumed size of the maps of one guest while no guest has been mapped. A map has about 100 bytes
/// for each piece, so this is enough for a million pieces.
const MAPS_OF_ONE: u64 = 100 << 20;

/// Default memory of an appliance in bytes: that of libguestfs.
fn appliance_memory() -> u64 {
    let mebibytes = guestfs::Handle::create().ok().and_then(|handle| handle.get_memsize().ok());
    mebibytes.and_then(|size| u64::try_from(size).ok()).unwrap_or(1280) << 20
}

/// Default number of guests to map at the same time: one for each processor, limited by the memory
/// for their appliances, of `memsize` MiB each or of libguestfs's default size.
pub fn default_jobs(memsize: Option<u32>) -> usize {
    let each = memsize.map_or_else(appliance_memory, |size| u64::from(size) << 20) + OVERHEAD;
    let fitting = available_memory().map_or(usize::MAX, |memory| (memory / each) as usize);
    processors().min(fitting).max(1)
}

/// Bytes of memory available to new processes: the lesser of what the system and the control group
/// have left.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    Some(system.min(available_in_group().unwrap_or(u64::MAX)))
}

/// Bytes of memory that the control group (version 2) of this process still allows.
fn available_in_group() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let directory = Path::new("/sys/fs/cgroup").join(group);
    let number = |name| std::fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// Peak resident memory of this process in bytes, if the kernel reports it.
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// The disk space that the maps of a fleet need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes free in the directory of the maps.
    pub free: u64,
    /// Estimated bytes of the maps of one guest.
    pub each: u64,
}

impl Space {
    /// Estimates from the free space of the directory and from the sizes `known` of existing maps.
    ///
    /// # Errors
    /// If the filesystem does not report its free space.
    pub fn of(store: &Store, known: impl Iterator<Item = u64>) -> Result<Self, FleetError> {
        let directory = store.directory();
        let stat = rustix::fs::statvfs(directory).map_err(|error| {
            FleetError::io(directory, "cannot read the free space of this filesystem")(error.into())
        })?;
        let (sum, count) =
            known.fold((0u64, 0u64), |(sum, count), bytes| (sum.saturating_add(bytes), count + 1));
        // One and a half times the mean, as guests differ.
        let each = sum.checked_div(count).map_or(MAPS_OF_ONE, |mean| mean.saturating_add(mean / 2));
        Ok(Self { free: stat.f_bavail.saturating_mul(stat.f_frsize), each })
    }

    /// Checks that the maps of this number of guests fit.
    ///
    /// # Errors
    /// [`FleetError::Space`].
    pub fn check(self, store: &Store, guests: usize) -> Result<(), FleetError> {
        let needed = self.each.saturating_mul(guests as u64);
        if self.free >= needed {
            return Ok(());
        }
        Err(FleetError::Space { path: store.directory().to_owned(), free: self.free, needed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_and_no_more_than_processors() {
        let jobs = default_jobs(None);
        assert!((1..=processors()).contains(&jobs));
        assert_eq!(default_jobs(Some(u32::MAX >> 10)), 1);
    }

    #[test]
    fn space_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let space = Space::of(&store, [100, 300].into_iter()).unwrap();
        assert_eq!(space.each, 300);
        assert!(space.check(&store, 1).is_ok());
        let full = Space { free: 599, each: 300 };
        let error = full.check(&store, 2).unwrap_err().to_string();
        assert!(error.contains("need 600 bytes, and 599 bytes are free"), "{error}");
    }
}

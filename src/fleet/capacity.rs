//! How many guests this machine maps at once, what one takes of its memory, and whether the maps will fit.

use super::Store;
use super::error::FleetError;
use std::num::NonZero;
use std::path::Path;

/// Memory of one run beside that of its appliance: our own, and what qemu needs for itself.
const OVERHEAD: u64 = 200 << 20;

/// Space that the maps of one guest need, where no guest has been mapped that would tell better: a map has
/// some 100 bytes for each piece of a file, so this is enough for a million of them.
const MAPS_OF_ONE: u64 = 100 << 20;

/// Memory of an appliance in bytes, if nobody states it: what libguestfs thinks fit.
fn appliance_memory() -> u64 {
    let mebibytes = guestfs::Handle::create().ok().and_then(|handle| handle.get_memsize().ok());
    mebibytes.and_then(|size| u64::try_from(size).ok()).unwrap_or(1280) << 20
}

/// How many guests are mapped at once: one for each processor, as far as there is memory for their
/// appliances, of `memsize` MiB each or of as many as libguestfs thinks fit.
pub fn default_jobs(memsize: Option<u32>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let each = memsize.map_or_else(appliance_memory, |size| u64::from(size) << 20) + OVERHEAD;
    let fitting = available_memory().map_or(usize::MAX, |memory| (memory / each) as usize);
    processors.min(fitting).max(1)
}

/// Bytes that new processes may use: what the system has left, or the control group, whichever is less.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    Some(system.min(left_in_group().unwrap_or(u64::MAX)))
}

/// Bytes that our control group, version 2, still allows.
fn left_in_group() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let directory = Path::new("/sys/fs/cgroup").join(group);
    let number = |name| std::fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// Most memory in bytes that this process has had, if the kernel tells.
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// How much space the maps of a fleet need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free in the directory of the maps.
    pub free: u64,
    /// Bytes that the maps of one guest are thought to need.
    pub each: u64,
}

impl Space {
    /// Looks at the directory and at the maps of the guests that are there: `known` bytes each.
    ///
    /// # Errors
    /// If the file system does not say what is free.
    pub fn of(store: &Store, known: impl Iterator<Item = u64>) -> Result<Self, FleetError> {
        let directory = store.directory();
        let stat = rustix::fs::statvfs(directory)
            .map_err(|error| FleetError::io(directory, "does not say how much is free")(error.into()))?;
        let (sum, count) =
            known.fold((0u64, 0u64), |(sum, count), bytes| (sum.saturating_add(bytes), count + 1));
        // Half as much again, as no two guests are alike.
        let each = sum.checked_div(count).map_or(MAPS_OF_ONE, |mean| mean.saturating_add(mean / 2));
        Ok(Self { free: stat.f_bavail.saturating_mul(stat.f_frsize), each })
    }

    /// Fails unless so many guests' maps fit.
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
        assert!((1..=std::thread::available_parallelism().unwrap().get()).contains(&jobs));
        assert_eq!(default_jobs(Some(u32::MAX >> 10)), 1);
    }

    #[test]
    fn space_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let space = Space::of(&store, [100, 300].into_iter()).unwrap();
        assert_eq!(space.each, 300);
        assert!(space.check(&store, 1).is_ok());
        let full = Space { free: 599, each: 300 };
        let error = full.check(&store, 2).unwrap_err().to_string();
        assert!(error.contains("599 bytes are free, and 600 are needed"), "{error}");
    }
}

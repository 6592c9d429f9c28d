//! Ends an appliance from another thread.

use rustix::process::Pid;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long a qemu that is about to make its temporary file is spared.
const MAKING: Duration = Duration::from_secs(3);

/// How long libguestfs's supermin is spared. It builds an appliance in three seconds on an idle
/// host, and in a multiple of that on a busy one.
const BUILDING: Duration = Duration::from_secs(20);

/// Kills the processes that the session thread's libguestfs is waiting for.
///
/// A libguestfs call cannot be interrupted, not even to ask for qemu's process id. But qemu and
/// supermin are children of the thread that launches them, and when they die, the call fails. Only
/// children of that thread are ever killed, so other children of this process are safe.
#[derive(Clone, Debug, Default)]
pub struct KillSwitch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Kernel id of the session thread; 0 before the switch is armed and after it is disarmed.
    /// Locked while children are being killed.
    thread: Mutex<i32>,
    /// When [`KillSwitch::throw`] was called first.
    thrown: OnceLock<Instant>,
}

impl KillSwitch {
    /// To be called on the session thread, before it starts anything.
    pub fn arm(&self) {
        *self.thread() = rustix::thread::gettid().as_raw_pid();
    }

    /// To be called when later children of the thread must not be killed. When this returns,
    /// nothing is being killed.
    pub fn disarm(&self) {
        *self.thread() = 0;
    }

    fn thread(&self) -> MutexGuard<'_, i32> {
        self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`throw`](Self::throw) has been called.
    pub fn is_thrown(&self) -> bool {
        self.shared.thrown.get().is_some()
    }

    /// Whether it has been called, or is about to be. Ctrl-C on a terminal reaches qemu as well,
    /// whose end may be seen first; so this waits for a moment.
    pub fn is_being_thrown(&self) -> bool {
        /// Longer than the caller's thread takes to notice a signal.
        const MOMENT: Duration = Duration::from_millis(500);
        let begun = Instant::now();
        while !self.is_thrown() && begun.elapsed() < MOMENT {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.is_thrown()
    }

    /// Kills the children of the session thread. To be repeated until the thread has ended: it may
    /// be about to start the next child.
    pub fn throw(&self) {
        let thrown = *self.shared.thrown.get_or_init(Instant::now);
        self.kill_children(thrown);
    }

    /// Runs `work` on the session thread, and kills that thread's children if it takes longer than
    /// `limit`. Returns what `work` returned, and whether the time was over.
    pub fn limited<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> (T, bool) {
        /// How long to wait before it is tried again.
        const AGAIN: Duration = Duration::from_millis(50);
        let (done, is_done) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let guard = scope.spawn(move || {
                let mut since = None;
                let mut wait = limit;
                while is_done.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
                    self.kill_children(*since.get_or_insert_with(Instant::now));
                    wait = AGAIN;
                }
                since.is_some()
            });
            let result = work();
            drop(done);
            (result, guard.join().unwrap_or(false))
        })
    }

    /// Kills the children of the session thread. `since`: when that was tried first.
    fn kill_children(&self, since: Instant) {
        let thread = self.thread();
        if *thread == 0 {
            return;
        }
        let children = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?));
        let children: Vec<Pid> = children.collect();
        // All of them are spared: one is libguestfs's recovery process, which ends qemu if we die
        // meanwhile.
        let waited = since.elapsed();
        let is_spared = |child: &Pid| {
            waited < MAKING && makes_overlay(*child) || waited < BUILDING && is_supermin(*child)
        };
        if children.iter().any(is_spared) {
            return;
        }
        for child in children {
            virt_bmap_child::kill(child);
        }
    }
}

/// Whether the process is libguestfs's supermin. Ours has a directory that is deleted after it.
///
/// supermin makes a directory `superminXXXXXX.tmpdir` in `TMPDIR` and the new appliance beside the
/// old one, and deletes both when it exits (`at_exit` in its `supermin.ml`), but handles no signal.
fn is_supermin(process: Pid) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", process.as_raw_pid())).unwrap_or_default();
    let mut words = line.split(|&byte| byte == 0);
    let program = Path::new(OsStr::from_bytes(words.next().unwrap_or_default()));
    // libguestfs gives this option (`run_supermin_build` in its `lib/appliance.c`).
    program.file_name() == Some(OsStr::new("supermin")) && words.any(|word| word == b"--if-newer")
}

/// Whether the process is a qemu of libguestfs that has not yet deleted its temporary file.
///
/// The appliance's own disk is given to it with `snapshot=on`. For that qemu makes a file
/// `vl.XXXXXX` in `TMPDIR`, and deletes it as soon as it has it open (`bdrv_append_temp_snapshot`
/// in its `block.c`). Nobody else knows its name, so it would stay for ever if qemu were killed
/// between the two.
fn makes_overlay(process: Pid) -> bool {
    let of_process = |name: &str| format!("/proc/{}/{name}", process.as_raw_pid());
    let line = fs::read(of_process("cmdline")).unwrap_or_default();
    let wants_overlay = line.split(|&byte| matches!(byte, 0 | b',')).any(|word| word == b"snapshot=on");
    let mut open = fs::read_dir(of_process("fd")).into_iter().flatten().flatten();
    wants_overlay
        && !open.any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|file| {
                let name = file.file_name().unwrap_or_default().as_bytes();
                name.starts_with(b"vl.") && name.ends_with(b" (deleted)")
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_the_session_threads_children_die() {
        let switch = KillSwitch::default();
        let mut mine = Command::new("sleep").arg("60").spawn().unwrap();
        let (sender, receiver) = mpsc::channel();
        let session = std::thread::spawn({
            let switch = switch.clone();
            move || {
                switch.arm();
                let mut child = Command::new("sleep").arg("60").spawn().unwrap();
                sender.send(()).unwrap();
                child.wait().unwrap()
            }
        });
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        switch.throw();
        assert!(!session.join().unwrap().success());
        assert!(mine.try_wait().unwrap().is_none());
        mine.kill().unwrap();
        mine.wait().unwrap();
    }

    #[test]
    fn a_supermin_of_libguestfs_is_spared_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let (supermin, go) = (dir.path().join("supermin"), dir.path().join("go"));
        std::os::unix::fs::symlink("/bin/sh", &supermin).unwrap();
        // Until it runs, it has no command line.
        let started = |option: &str| {
            let runs = dir.path().join(option);
            let script = "> $2; until [ -e $1 ]; do sleep 0.01; done; exit 7";
            let child = Command::new(&supermin).args(["-c", script, option]).args([&go, &runs]).spawn();
            while !runs.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.unwrap()
        };
        let switch = KillSwitch::default();
        switch.arm();
        let mut ours = started("--build");
        switch.throw();
        assert_eq!(ours.wait().unwrap().code(), None);
        let mut libguestfs = started("--if-newer");
        switch.throw();
        fs::write(&go, "").unwrap();
        assert_eq!(libguestfs.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn a_qemu_that_makes_its_overlay_is_spared_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let (overlay, go) = (dir.path().join("vl.abcdef"), dir.path().join("go"));
        let script = "exec 9> $1; until [ -e $2 ]; do sleep 0.01; done; rm $1; read line";
        let mut qemu = Command::new("sh")
            .args(["-c", script, "root,snapshot=on"])
            .args([&overlay, &go])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut recovery = Command::new("sleep").arg("60").spawn().unwrap();
        let switch = KillSwitch::default();
        switch.arm();
        while !overlay.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        switch.throw();
        assert!(qemu.try_wait().unwrap().is_none() && overlay.exists());
        assert!(recovery.try_wait().unwrap().is_none());
        fs::write(go, "").unwrap();
        let begun = Instant::now();
        while qemu.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < MAKING);
            switch.throw();
        }
        assert!(!overlay.exists());
        assert!(!recovery.wait().unwrap().success());
    }
}

//! Ends an appliance from another thread than its own.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Ends whatever the session thread's libguestfs is waiting for.
///
/// A libguestfs call cannot be interrupted, not even to ask for qemu's process id. But qemu and supermin
/// are children of the thread that launches them, and when they die, the call fails. Only what that
/// thread has started is ever killed, so other children of this process are safe.
#[derive(Clone, Debug, Default)]
pub struct KillSwitch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Kernel id of the session thread, 0 before it has said it.
    thread: AtomicI32,
    thrown: AtomicBool,
}

impl KillSwitch {
    /// To be called on the session thread, before it starts anything.
    pub fn arm(&self) {
        self.shared.thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::SeqCst);
    }

    /// To be called when what the thread starts from now on is to be left alone.
    pub fn disarm(&self) {
        self.shared.thread.store(0, Ordering::SeqCst);
    }

    /// Whether [`throw`](Self::throw) has been called.
    pub fn is_thrown(&self) -> bool {
        self.shared.thrown.load(Ordering::SeqCst)
    }

    /// Kills what the session thread has started. To be repeated until the thread has ended: it may be
    /// about to start the next child.
    pub fn throw(&self) {
        self.shared.thrown.store(true, Ordering::SeqCst);
        let thread = self.shared.thread.load(Ordering::SeqCst);
        if thread == 0 {
            return;
        }
        let children = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)) {
            // It may have ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

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
}

//! A child process that serves a disk, and the thread that keeps it.

use super::{OpenError, qemu_img};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that are kept of the child's messages.
const MAX_SAID: usize = 8 << 10;

/// The child, and the thread that keeps it.
pub(super) struct Captive {
    child: Child,
    /// Its name, for messages.
    pub(super) program: &'static str,
    /// What it reads.
    pub(super) path: PathBuf,
    said: Arc<Said>,
    /// Dropped to let the keeper go.
    stay: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Captive {
    /// Spawns `command` on a thread of its own, which then collects what the child says and stays
    /// until the child has gone: the child dies with the thread that spawned it, and that must not
    /// be a thread which happened to open the image.
    pub(super) fn spawn(
        program: &'static str,
        mut command: std::process::Command,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let set_up = |source| OpenError::SetUp { program, path: path.to_owned(), source };
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let said = Arc::new(Said::default());
        let (stay, gone) = mpsc::channel::<()>();
        let (started, start) = mpsc::sync_channel(1);
        let keeper = std::thread::Builder::new()
            .name("captive".to_owned())
            .spawn({
                let said = Arc::clone(&said);
                move || {
                    let mut spawned = command.spawn();
                    // It holds the child's ends of sockets, whose other ends are to notice its end.
                    drop(command);
                    let stderr = spawned.as_mut().ok().and_then(|child| child.stderr.take());
                    let is_running = spawned.is_ok();
                    if started.send(spawned).is_ok() && is_running {
                        said.collect(stderr);
                        let _ = gone.recv();
                    }
                }
            })
            .map_err(set_up)?;
        let spawned = start.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let child = spawned.map_err(|source| qemu_img::cannot_run(program, path, source))?;
        Ok(Self { child, program, path: path.to_owned(), said, stay: Some(stay), keeper: Some(keeper) })
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its messages, complete if it has ended or ends at once.
    pub(super) fn said(&self) -> Vec<u8> {
        self.said.wait_for_end()
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        // Fails only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stay = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// The end of the child's standard error.
#[derive(Default)]
struct Said {
    /// The bytes, and whether there will be more.
    state: Mutex<(Vec<u8>, bool)>,
    ended: Condvar,
}

impl Said {
    fn state(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `stderr` to its end, so that the child never waits for this process, and keeps the
    /// tail.
    fn collect(&self, stderr: Option<ChildStderr>) {
        let mut buf = [0; 4096];
        if let Some(mut stderr) = stderr {
            loop {
                match stderr.read(&mut buf) {
                    Ok(0) => break,
                    Ok(length) => {
                        let tail = &mut self.state().0;
                        tail.extend_from_slice(&buf[..length]);
                        let surplus = tail.len().saturating_sub(MAX_SAID);
                        tail.drain(..surplus);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.state().1 = true;
        self.ended.notify_all();
    }

    /// The child's messages, complete if it has ended or ends at once.
    fn wait_for_end(&self) -> Vec<u8> {
        const PATIENCE: Duration = Duration::from_millis(300);
        let wait = self.ended.wait_timeout_while(self.state(), PATIENCE, |(_, ended)| !*ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.0.clone()
    }
}

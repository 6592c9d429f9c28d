//! The child that undoes, however this process ends.
//!
//! It holds one end of a line to its parent. The parent first says what there is to undo, before it
//! changes anything; it may change its mind later. When the line ends, because the parent has
//! finished or has been killed, the child undoes all of it, says what went wrong, and ends. It is
//! the only one that undoes, so that there is one way of doing it.

use super::{LiveError, libvirt, qemu};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use virt_bmap_child as child;

/// The hidden subcommand with which the program becomes the child.
pub const COMMAND: &str = "undo-live";

/// Time for the undoing: qemu waits for the guest's writes that are under way.
const TIME: Duration = Duration::from_secs(120);

/// Most bytes of what the child says.
const MAX_REPLY: u64 = 1 << 16;

/// What has to be undone in the end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Undo {
    /// What was added to a qemu.
    Qemu(qemu::Undo),
    /// The backup of a libvirt domain.
    Domain(libvirt::Undo),
}

impl Undo {
    /// Undoes everything; what is not there has been undone. `monitor` is the connection to qemu.
    fn run(&self, monitor: Option<UnixStream>) -> Result<(), LiveError> {
        match self {
            Self::Qemu(undo) => match monitor {
                Some(monitor) => undo.run(monitor),
                None => Err(LiveError::NotUndone("the connection to the monitor is closed".to_owned())),
            },
            Self::Domain(undo) => undo.run(),
        }
    }
}

/// The child, as its parent sees it. Dropping it undoes.
#[derive(Debug)]
pub(super) struct Watchdog {
    undo: Undo,
    monitor: Option<UnixStream>,
    child: Option<(Child, UnixStream)>,
}

impl Watchdog {
    /// Starts the child. From now on `undo` is undone.
    pub(super) fn start(undo: Undo, monitor: Option<UnixStream>) -> Result<Self, LiveError> {
        let failed = |source| LiveError::SetUp { what: "a watchdog process".to_owned(), source };
        let start = || -> io::Result<_> {
            let (ours, theirs) = UnixStream::pair()?;
            let mut command = Command::new("/proc/self/exe");
            let other = monitor.as_ref().map(|monitor| monitor.as_fd().try_clone_to_owned()).transpose()?;
            command
                .arg(COMMAND)
                .stdin(OwnedFd::from(theirs))
                .stdout(other.map_or_else(Stdio::null, Stdio::from));
            // What ends the parent from outside must not end it as well.
            child::with_a_session(&mut command);
            let child = command.spawn()?;
            say(&ours, &undo)?;
            Ok((child, ours))
        };
        let child = Some(start().map_err(failed)?);
        Ok(Self { undo, monitor, child })
    }

    /// Changes what is to be undone.
    pub(super) fn change(&mut self, undo: Undo) -> Result<(), LiveError> {
        self.undo = undo;
        let Some((_, line)) = &self.child else { return Ok(()) };
        say(line, &self.undo)
            .map_err(|source| LiveError::SetUp { what: "a watchdog process".to_owned(), source })
    }

    /// Undoes.
    pub(super) fn end(&mut self) -> Result<(), LiveError> {
        let Some((mut child, line)) = self.child.take() else { return Ok(()) };
        let mut reply = String::new();
        let heard = line
            .shutdown(Shutdown::Write)
            .and_then(|()| line.set_read_timeout(Some(TIME)))
            .and_then(|()| (&line).take(MAX_REPLY).read_to_string(&mut reply));
        if heard.is_ok_and(|length| length > 0) {
            let _ = child.wait();
            return if reply == DONE { Ok(()) } else { Err(LiveError::NotUndone(reply)) };
        }
        // It was killed, or it hangs.
        let _ = child.kill();
        let _ = child.wait();
        self.undo.run(self.monitor.take())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "undoing");
        }
    }
}

fn say(mut line: &UnixStream, undo: &Undo) -> io::Result<()> {
    let mut text = serde_json::to_vec(undo)?;
    text.push(b'\n');
    line.write_all(&text)
}

/// What the child says when all is undone.
const DONE: &str = "done";

/// The child. The line to the parent is its standard input, the connection to qemu's monitor, if
/// there is one, its standard output.
///
/// # Errors
/// What could not be undone, if there is nobody left to tell.
pub fn watch() -> Result<(), LiveError> {
    let failed = |source| LiveError::SetUp { what: "the watchdog".to_owned(), source };
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, ignored.clone()).map_err(failed)?;
    }
    let prepare = || -> io::Result<_> {
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let monitor = io::stdout().as_fd().try_clone_to_owned()?;
        Ok((line, UnixStream::from(monitor)))
    };
    let (line, monitor) = prepare().map_err(failed)?;
    let mut parent = BufReader::new(&line);
    let mut text = String::new();
    parent.read_line(&mut text).map_err(failed)?;
    let mut undo: Undo = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    // The end of the line, whatever ends it, is what this waits for.
    loop {
        text.clear();
        match parent.read_line(&mut text) {
            Ok(length) if length > 0 => undo = serde_json::from_str(&text).unwrap_or(undo),
            _ => break,
        }
    }
    let result = undo.run(Some(monitor));
    let reply = match &result {
        Ok(()) => DONE.to_owned(),
        Err(error) => virt_bmap_ranges::error_chain(error).to_string(),
    };
    match (&line).write_all(reply.as_bytes()) {
        Ok(()) => Ok(()),
        // The parent is gone.
        Err(_) => result,
    }
}

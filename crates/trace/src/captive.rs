//! A command that uses the server, and for which the server runs: as nbdkit-captive(1) has it.

use super::session::Session;
use super::tail::Tail;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use virt_bmap_child as child;
use virt_bmap_nbd::Address;

/// What a command has for standard input, output and error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// Those of this process. On a terminal it shares our process group, too, so that it can use
    /// the terminal and a Ctrl-C reaches both; else it has one of its own, so that all of it can be
    /// ended.
    #[default]
    Ours,
    /// Nothing to read, and the [`Tail`] of what it prints is kept. It has a session of its own, so
    /// that it cannot open our terminal either.
    Kept,
}

/// A command that has been started. It is killed if this is dropped before it has ended.
#[derive(Debug)]
pub struct Captive {
    child: Child,
    /// Whether it has a process group of its own.
    has_group: bool,
    tail: Option<Tail>,
}

impl Captive {
    /// Starts a shell command, with the variables that nbdkit sets: `$nbd` and `$uri` are the URI
    /// of the first disk, `$unixsocket` or `$port` where it is (the other is empty), and
    /// `$exportname` is empty. The further disks are `$nbd2` and `$uri2`, and so on.
    ///
    /// It dies with the calling thread.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn start(script: &OsStr, session: &Session, streams: Streams) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        for (number, uri) in (1..).zip(session.uris()) {
            for name in ["nbd", "uri"] {
                let name = if number == 1 { name.to_owned() } else { format!("{name}{number}") };
                command.env(name, &uri);
            }
        }
        match session.address() {
            Address::Unix(socket) => command.env("unixsocket", socket).env("port", ""),
            Address::Tcp(address) => command.env("unixsocket", "").env("port", address.port().to_string()),
        };
        command.env("exportname", "");
        let mut has_group = !io::stdin().is_terminal();
        let mut tail = None;
        match streams {
            Streams::Ours if has_group => {
                command.process_group(0);
            }
            Streams::Ours => {}
            Streams::Kept => {
                has_group = true;
                child::with_a_session(&mut command);
                let (read, write) = io::pipe()?;
                command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write);
                tail = Some(Tail::of(read));
            }
        }
        child::die_with_us(&mut command, Signal::KILL);
        Ok(Self { child: command.spawn()?, has_group, tail })
    }

    /// The end of what it has printed, if that is [kept](Streams::Kept).
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// What the system says of it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends it a signal, and all that it has started if it is not on a terminal.
    pub fn signal(&self, signal: Signal) {
        let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        // One that has ended need not be told.
        let _ = if self.has_group { kill_process_group(id, signal) } else { kill_process(id, signal) };
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

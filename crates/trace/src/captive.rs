//! A command that uses the server, which runs as long as the command: see nbdkit-captive(1).

use super::session::Session;
use super::tail::Tail;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use virt_bmap_child as child;
use virt_bmap_nbd::Address;

/// Standard input, output and error of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// Those of this process. On a terminal the command also shares this process group, so that it
    /// can use the terminal and Ctrl-C reaches both. Otherwise it has a process group of its own,
    /// so that all its processes can be ended.
    #[default]
    Ours,
    /// Empty input, and the [`Tail`] of the output is kept. The command has a session of its own,
    /// so that it cannot open this terminal.
    Kept,
}

/// A running command. Dropping this kills it.
#[derive(Debug)]
pub struct Captive {
    child: Child,
    /// Whether it has a process group of its own.
    has_group: bool,
    tail: Option<Tail>,
}

impl Captive {
    /// Starts a shell command, with the variables of nbdkit: `$nbd` and `$uri` are the URI of the
    /// first disk, `$unixsocket` or `$port` its address (the other is empty), and `$exportname` is
    /// empty. Further disks have `$nbd2` and `$uri2`, and so on.
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

    /// The end of its output, if it is [kept](Streams::Kept).
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The system's error.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends it a signal; unless it is on a terminal, also to all processes that it has started.
    pub fn signal(&self, signal: Signal) {
        let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        // An error means that it has ended already.
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

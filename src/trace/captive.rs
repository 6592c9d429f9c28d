//! A command that uses the server, and for which the server runs: as nbdkit-captive(1) has it.

use super::session::Session;
use crate::child;
use crate::nbd::Address;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};

/// A command that has been started. It is killed if this is dropped before it has ended.
#[derive(Debug)]
pub struct Captive {
    child: Child,
    /// Whether it has a process group of its own.
    has_group: bool,
}

impl Captive {
    /// Starts a shell command, with the variables that nbdkit sets: `$nbd` and `$uri` are the URI of the
    /// first disk, `$unixsocket` or `$port` where it is (the other is empty), and `$exportname` is empty.
    /// The further disks are `$nbd2` and `$uri2`, and so on.
    ///
    /// It dies with the calling thread. On a terminal it shares our process group, so that it can use the
    /// terminal and a Ctrl-C reaches both; else it has one of its own, so that all of it can be ended.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn start(script: &OsStr, session: &Session) -> io::Result<Self> {
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
        let has_group = !io::stdin().is_terminal();
        if has_group {
            command.process_group(0);
        }
        child::die_with_us(&mut command, Signal::KILL);
        Ok(Self { child: command.spawn()?, has_group })
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

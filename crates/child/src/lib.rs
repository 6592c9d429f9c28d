#![doc = include_str!("../README.md")]

use rustix::io::FdFlags;
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use rustix::thread::UnshareFlags;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Most bytes kept of what a child prints, on either stream.
const MAX_OUTPUT: u64 = 1 << 20;

/// Bytes of output for which there is room from the beginning.
const SHORT: usize = 16 << 10;

/// Most characters of a child's standard error in a message.
const MAX_MESSAGE: usize = 600;

/// A command for `program` with the settings of all children: messages in English, no standard
/// input, a process group of its own (so that Ctrl-C on the terminal reaches only the parent, which
/// ends the child in its own order), and death with the thread that spawned it.
///
/// `PR_SET_PDEATHSIG` follows the *thread*, see prctl(2): spawn the command on a thread that lives
/// as long as the child should.
pub fn command(program: &OsStr) -> Command {
    command_ended_by(program, Signal::KILL)
}

/// As [`command`], with another signal in place of SIGKILL: for a child that has to clean up.
pub fn command_ended_by(program: &OsStr, signal: Signal) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    die_with_us(&mut command, signal);
    command
}

/// Makes the kernel send `signal` to the command's process when the thread that spawned it dies.
pub fn die_with_us(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe functions may be
    // called: it makes two plain system calls and allocates nothing.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || die_with(parent, signal));
    }
}

/// Starts the command's process in a session and a process group of its own, without a terminal.
pub fn with_a_session(command: &mut Command) {
    // SAFETY: as in `die_with_us`: one plain system call.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}

/// Requests a signal for the end of the thread that forked this process.
fn die_with(parent: Pid, signal: Signal) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    // It may have ended before the line above, and then no signal comes.
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH.into());
    }
    Ok(())
}

/// Limits a child that reads a hostile image: `memory` bytes of address space, and `cpu` of
/// processor time, in whole seconds and at least one.
pub fn limit(command: &mut Command, memory: u64, cpu: Duration) {
    let memory = Rlimit { current: Some(memory), maximum: Some(memory) };
    let seconds = Some(cpu.as_secs().max(1));
    let cpu = Rlimit { current: seconds, maximum: seconds };
    // SAFETY: as in `die_with_us`: two plain system calls.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            rustix::process::setrlimit(Resource::As, memory)?;
            rustix::process::setrlimit(Resource::Cpu, cpu)?;
            Ok(())
        });
    }
}

/// Takes from a child what it needs least for its work. It has no network. If this process is root,
/// it becomes nobody. It has no capabilities outside of a user namespace of its own, and gets none
/// from programs that it runs (`PR_SET_NO_NEW_PRIVS`). It leaves no core dump. It cannot be started
/// where the kernel or its policy refuses user namespaces.
pub fn confine(command: &mut Command) {
    // SAFETY: as in `die_with_us`: plain system calls. The process has one thread, the one that was
    // forked, and shares no memory or descriptors with others, so unsharing concerns it alone.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            if rustix::process::geteuid().is_root() {
                become_nobody()?;
            }
            rustix::thread::set_no_new_privs(true)?;
            rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
            leave_no_core_dump()
        });
    }
}

/// Gives up the user and groups of root, whose files would still be this process's own.
fn become_nobody() -> io::Result<()> {
    /// `nobody` and `nogroup`, which own nothing.
    const NOBODY: u32 = 65534;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    // A change of users clears this, see prctl(2).
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Keeps this process and its later children from leaving core dumps.
///
/// # Errors
/// The system's error.
pub fn leave_no_core_dump() -> io::Result<()> {
    // The kernel does not start a program that takes core dumps from a pipe if the limit is 1; 0
    // means nothing to it there (fs/coredump.c). A file of one byte is not written either.
    let one = Rlimit { current: Some(1), maximum: Some(1) };
    Ok(rustix::process::setrlimit(Resource::Core, one)?)
}

/// Lets a child use this file as `/proc/self/fd/N`. Returns that path.
pub fn inherit(command: &mut Command, file: OwnedFd) -> String {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: as in `die_with_us`: one plain system call. The file is open as long as the command.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || Ok(rustix::io::fcntl_setfd(&file, FdFlags::empty())?));
    }
    path
}

/// A file that the parent let this process use, by the path that [`inherit`] returned there. `None`
/// if it is no such path. Must be called once for each path, and before other files are opened.
pub fn inherited(path: &OsStr) -> Option<OwnedFd> {
    let number = path.to_str()?.strip_prefix("/proc/self/fd/")?.parse().ok()?;
    // SAFETY: the parent says that it left this file open for us, and by the condition above
    // nothing else in this process owns it.
    #[allow(unsafe_code)]
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    // A number that is not open is an error of the first use.
    rustix::io::fcntl_setfd(&file, FdFlags::CLOEXEC).ok()?;
    Some(file)
}

/// The result of a child.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The first MiB of its standard output.
    pub stdout: Vec<u8>,
    /// The first MiB of its standard error.
    pub stderr: Vec<u8>,
}

/// Runs `command` to its end, but kills it after `time`.
///
/// # Errors
/// [`TimedOut`](io::ErrorKind::TimedOut) after `time`, and the system's errors of starting it.
pub fn run(command: Command, time: Duration) -> io::Result<Output> {
    run_with(command, |_| (), time)
}

/// As [`run`], while `write` writes its standard input on a thread of its own. That thread ends
/// with the child.
///
/// # Errors
/// As for [`run`].
pub fn run_with_input(
    mut command: Command,
    write: impl FnOnce(ChildStdin) + Send + 'static,
    time: Duration,
) -> io::Result<Output> {
    command.stdin(Stdio::piped());
    let write = |input: Option<ChildStdin>| {
        if let Some(input) = input {
            std::thread::spawn(move || write(input));
        }
    };
    run_with(command, write, time)
}

fn run_with(
    mut command: Command,
    write: impl FnOnce(Option<ChildStdin>),
    time: Duration,
) -> io::Result<Output> {
    let deadline = Instant::now() + time;
    let mut child = KillOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    write(child.0.stdin.take());
    let stdout = drain(child.0.stdout.take());
    let stderr = drain(child.0.stderr.take());
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let left = || deadline.saturating_duration_since(Instant::now());
    let stdout = stdout.recv_timeout(left()).map_err(late)?;
    let stderr = stderr.recv_timeout(left()).map_err(late)?;
    loop {
        if let Some(status) = child.0.try_wait()? {
            return Ok(Output { status, stdout, stderr });
        }
        if left().is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // It has closed both streams, so it is about to end.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `command` to its end while `read` reads its standard output, of any length. Returns the
/// result of the child, without standard output, and that of `read`.
///
/// # Errors
/// The system's errors of starting it.
pub fn read<T>(mut command: Command, read: impl FnOnce(&mut dyn Read) -> T) -> io::Result<(Output, T)> {
    let mut child = KillOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let stderr = drain(child.0.stderr.take());
    // If the reader stops early, the stream is closed, which ends the child.
    let taken = match child.0.stdout.take() {
        Some(mut stdout) => read(&mut stdout),
        None => read(&mut io::empty()),
    };
    let status = child.0.wait()?;
    let stderr = stderr.recv().unwrap_or_default();
    Ok((Output { status, stdout: Vec::new(), stderr }, taken))
}

/// Reads a stream to its end, or to the limit, on a thread of its own. The thread ends with the
/// child, which gets SIGPIPE past the limit. Short output is never moved in memory, so that the
/// caller can overwrite all of a secret.
fn drain(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::with_capacity(SHORT);
        if let Some(stream) = stream {
            // An error ends the stream like its end.
            let _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.0.try_wait() {
            return;
        }
        if let Some(child) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill(child);
        }
        let _ = self.0.wait();
    }
}

/// Kills a child that has not been waited for; with its whole group, if it leads one.
pub fn kill(child: Pid) {
    // Each fails only if the child has ended by itself.
    let _ = match rustix::process::getpgid(Some(child)) {
        Ok(group) if group == child => rustix::process::kill_process_group(group, Signal::KILL),
        _ => rustix::process::kill_process(child, Signal::KILL),
    };
}

/// The child's standard error as one line of a message. It is untrusted text: control characters
/// are escaped, and the length is bounded.
pub fn message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut message = String::new();
    for (index, line) in lines.enumerate() {
        if index > 0 {
            message.push_str("; ");
        }
        for c in line.chars() {
            if is_hidden(c) {
                message.extend(c.escape_unicode());
            } else {
                message.push(c);
            }
        }
        if message.len() > MAX_MESSAGE {
            message = message.chars().take(MAX_MESSAGE).collect();
            message.push('…');
            break;
        }
    }
    if message.is_empty() { "it gave no reason".to_owned() } else { message }
}

/// Whether a character could deceive a terminal or a reader: control characters, and those that
/// change the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn shell(script: &str) -> Command {
        let mut command = command("sh".as_ref());
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        let output = run(shell("echo out; echo err >&2; exit 3"), Duration::from_secs(10)).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr, b"err\n");
    }

    #[test]
    fn a_child_may_print_more_than_is_kept() {
        let long = 3 * MAX_OUTPUT;
        let count = |stdout: &mut dyn Read| io::copy(stdout, &mut io::sink()).unwrap();
        let (output, count) =
            super::read(shell(&format!("head -c {long} /dev/zero; echo no >&2; exit 3")), count).unwrap();
        assert_eq!((count, output.status.code()), (long, Some(3)));
        assert_eq!(output.stderr, b"no\n");
        let (output, ()) = super::read(shell("exec yes"), |_| ()).unwrap();
        assert!(!output.status.success());
    }

    #[test]
    fn a_child_that_hangs_is_killed_at_the_deadline() {
        let begin = Instant::now();
        for script in ["exec sleep 1000", "exec >&- 2>&-; exec sleep 1000"] {
            let error = run(shell(script), Duration::from_millis(200)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_child_that_floods_us_ends() {
        let output = run(shell("exec yes"), Duration::from_secs(20)).unwrap();
        assert_eq!(output.stdout.len() as u64, MAX_OUTPUT);
        assert!(!output.status.success());
    }

    #[test]
    fn the_limits_hold() {
        let mut command = shell("ulimit -v; ulimit -t");
        limit(&mut command, 1 << 30, Duration::from_secs(7));
        let output = run(command, Duration::from_secs(10)).unwrap();
        assert_eq!(output.stdout, b"1048576\n7\n");
    }

    #[test]
    fn a_confined_child_has_no_rights_and_no_network() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file = std::fs::File::from(rustix::fs::memfd_create("inherited", flags).unwrap());
        file.write_all(b"inherited").unwrap();
        let mut command = command("sh".as_ref());
        let path = inherit(&mut command, file.into());
        confine(&mut command);
        let script = "cat \"$0\"; echo; ulimit -Hc; cat; grep -E '^(NoNewPrivs|CapEff|Groups)' /proc/self/status; \
                      id -u; \
                      tail -n +3 /proc/net/dev";
        command.args(["-c", script, &path]);
        let write = |mut input: ChildStdin| input.write_all(b"input\n").unwrap();
        let output = run_with_input(command, write, Duration::from_secs(10)).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..3], ["inherited", "0", "input"], "dash counts blocks; {text}");
        assert_eq!(lines[4..6], ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"], "{text}");
        assert!(lines[3].starts_with("Groups:") && lines[6] != "0", "{text}");
        // A new network has its loopback device alone, switched off.
        assert!(lines[7..].iter().all(|line| line.starts_with("lo:")), "{text}");
    }

    #[test]
    fn a_message_is_one_harmless_line() {
        assert_eq!(message(b"one\n two \n\n"), "one; two");
        assert_eq!(message(b"\x1b[31mred\xff\x07"), "\\u{1b}[31mred\u{fffd}\\u{7}");
        assert_eq!(message(b" \n"), "it gave no reason");
        assert!(message(&[b'x'; 100_000]).chars().count() <= MAX_MESSAGE + 1);
    }
}

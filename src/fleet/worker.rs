//! Runs the mapper of one guest: starts it, watches it, and ends it if it hangs.

use super::record::MAX_WARNINGS;
use super::{Guest, Status};
use crate::mapper::Cancel;
use crate::mapper::progress::{FailureReason, OpenedDisk, ProgressEvent, StampedFile};
use crate::probe::found::Counts;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use virt_bmap_child as child;
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::{Balance, Warning, diff};

/// The program that maps a guest. Its command line is that of this program: `options`,
/// `--progress=json`, an `-o` for each map, in an update `--earlier=MAP`, and for each disk a
/// `--format=` and an `-a`, with a `--snapshot=` between if the guest has one.
#[derive(Clone, Debug)]
pub struct Mapper {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments, before the arguments of the mapping.
    pub wrapper: Vec<OsString>,
    /// Options for mapping.
    pub options: Vec<OsString>,
    /// The options that affect the content of a map, without secrets. They are stored in the
    /// records; a guest that was mapped with other options is mapped again.
    pub noted: Vec<OsString>,
}

impl Mapper {
    /// The noted options, as stored in a record.
    pub fn noted_options(&self) -> Vec<Text> {
        self.noted.iter().map(|option| option.as_os_str().into()).collect()
    }

    /// The command that maps `guest` to files `map.SUFFIX` in `workplace`.
    fn command(&self, guest: &Guest, baseline: Option<&Path>, workplace: &Path) -> Command {
        // SIGTERM lets it remove its sockets and temporary files and end its appliance.
        let mut command = child::command_ended_by(self.program.as_os_str(), Signal::TERM);
        command.args(&self.wrapper).args(&self.options).arg("--progress=json");
        for suffix in super::MAP_SUFFIXES {
            command.arg("-o").arg(workplace.join(format!("map.{suffix}")));
        }
        if let Some(baseline) = baseline {
            command.arg([OsStr::new("--earlier="), baseline.as_os_str()].into_iter().collect::<OsString>());
        }
        let has_snapshots = guest.disks.iter().any(|disk| disk.snapshot.is_some());
        for disk in &guest.disks {
            let format = disk.format.map_or("", |format| format.driver());
            command.arg(format!("--format={format}"));
            if has_snapshots {
                command.arg(format!("--snapshot={}", disk.snapshot.as_deref().unwrap_or("")));
            }
            // As the value of an option, so that no path is parsed as an option.
            command.arg("-a").arg(disk.location.text());
        }
        command
    }
}

/// When a mapper is ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Maximum time without output.
    pub(super) silence: Duration,
    /// Maximum duration.
    pub(super) limit: Option<Duration>,
    /// Time for an orderly end, after which it is killed.
    pub(super) grace: Duration,
}

/// The outcome of one attempt.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) status: Option<Status>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) error: Option<String>,
    pub(super) opened: Vec<OpenedDisk>,
    pub(super) peak_memory: Option<u64>,
    pub(super) counts: Option<Counts>,
    pub(super) balance: Option<Balance>,
    pub(super) changes: Option<diff::Counts>,
    pub(super) unexamined: Vec<Warning>,
    pub(super) warnings: Vec<Warning>,
    /// The reason in the mapper's event `failed`.
    pub(super) failure: Option<FailureReason>,
}

/// Interval of the checks whether the mapper must be ended.
const TICK: Duration = Duration::from_millis(50);

/// How long the last lines of a mapper are awaited. They end with its processes, but for one that
/// has left its group.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Maximum delay between a signal to the mapper and the same signal to this process.
const SIGNAL_DELAY: Duration = Duration::from_secs(1);

/// Maximum length in bytes of a line of the mapper's output.
const MAX_LINE: u64 = 1 << 20;

/// Number of last lines kept that are not events.
const TAIL: usize = 20;

/// Maps a guest once, with a baseline if one is given. The outcome has no status if the run was
/// cancelled.
pub(super) fn map(
    mapper: &Mapper,
    guest: &Guest,
    baseline: Option<&Path>,
    workplace: &Path,
    patience: Patience,
    cancel: &Cancel,
    progress: &mut dyn FnMut(String, Option<f64>),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut command = mapper.command(guest, baseline, workplace);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            outcome.status = Some(Status::Failed);
            outcome.error = Some(format!("{}: cannot start the mapper: {error}", mapper.program.display()));
            return outcome;
        }
    };
    let lines = lines(child.stderr.take());
    let group = Group(Pid::from_child(&child));
    let mut messages = VecDeque::new();
    let began = Instant::now();
    let mut last_output = began;
    let mut ended_for = None;
    loop {
        let line = lines.recv_timeout(TICK);
        match &line {
            Ok(line) => {
                last_output = Instant::now();
                outcome.take(line, &mut messages, progress);
            }
            // The pipe is closed, but the mapper or its children may still run.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if line.is_err() && group.has_ended() {
            break;
        }
        let why = if cancel.is_cancelled() {
            Some(EndReason::Cancelled)
        } else if patience.limit.is_some_and(|limit| began.elapsed() > limit) {
            Some(EndReason::Late)
        } else if last_output.elapsed() > patience.silence {
            Some(EndReason::Silent)
        } else {
            None
        };
        if let (Some(why), None) = (why, &ended_for) {
            group.signal(Signal::TERM);
            ended_for = Some((why, Instant::now()));
        }
        if ended_for.as_ref().is_some_and(|(_, since)| since.elapsed() > patience.grace) {
            group.kill();
        }
    }
    // Kill the processes that it left behind, while its process ID cannot be reused yet.
    group.kill();
    let status = child.wait();
    // The last lines have been written, but on a busy host not yet read.
    let ended = Instant::now();
    while ended.elapsed() < LAST_LINES {
        match lines.recv_timeout(TICK) {
            Ok(line) => outcome.take(&line, &mut messages, progress),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let mut ended_for = ended_for.map(|(why, _)| why);
    // A batch system that ends a job signals all its processes. The signal to this process may
    // arrive after the mapper has ended.
    if ended_for.is_none() && status.as_ref().is_ok_and(|status| was_terminated(*status)) {
        let begun = Instant::now();
        while !cancel.is_cancelled() && begun.elapsed() < SIGNAL_DELAY {
            std::thread::sleep(TICK);
        }
        ended_for = cancel.is_cancelled().then_some(EndReason::Cancelled);
    }
    outcome.end(status, ended_for, &messages, patience);
    outcome
}

/// Whether a mapper was ended by SIGHUP, SIGINT or SIGTERM.
fn was_terminated(status: ExitStatus) -> bool {
    let signal = status.signal().or_else(|| status.code().map(|code| code - 128));
    let terminating = [Signal::HUP, Signal::INT, Signal::TERM].map(Signal::as_raw);
    signal.is_some_and(|signal| terminating.contains(&signal))
}

/// Why the fleet ended a mapper.
#[derive(Clone, Copy)]
enum EndReason {
    Cancelled,
    Late,
    Silent,
}

impl Outcome {
    fn take(
        &mut self,
        line: &[u8],
        messages: &mut VecDeque<String>,
        progress: &mut dyn FnMut(String, Option<f64>),
    ) {
        match serde_json::from_slice(line) {
            Ok(ProgressEvent::Opened { disks }) => self.opened = disks,
            Ok(ProgressEvent::Progress { doing, share }) => progress(doing, share),
            Ok(ProgressEvent::Unexamined(warning)) => keep(&mut self.unexamined, warning),
            Ok(ProgressEvent::Warning(warning)) => keep(&mut self.warnings, warning),
            Ok(ProgressEvent::Failed { reason }) => self.failure = Some(reason),
            Ok(ProgressEvent::Changed(counts)) => self.changes = Some(counts),
            Ok(ProgressEvent::Memory { peak }) => self.peak_memory = Some(peak),
            Ok(ProgressEvent::Balance(balance)) => self.balance = Some(balance),
            Ok(ProgressEvent::Done(counts)) => self.counts = Some(counts),
            Err(_) => {
                if messages.len() == TAIL {
                    messages.pop_front();
                }
                messages.push_back(child::message(line));
            }
        }
    }

    fn end(
        &mut self,
        status: io::Result<ExitStatus>,
        ended_for: Option<EndReason>,
        messages: &VecDeque<String>,
        patience: Patience,
    ) {
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.status = Some(Status::Failed);
                self.error = Some(format!("cannot wait for the mapper: {error}"));
                return;
            }
        };
        self.exit_code = status.code();
        self.signal = status.signal();
        let last_message = || {
            let line = messages.iter().rev().find_map(|line| line.strip_prefix("virt-bmap-rs: "));
            line.or(messages.back().map(String::as_str)).unwrap_or("the mapper printed no message").to_owned()
        };
        let (status, error) = match (status.code(), ended_for) {
            // It had finished before the signal arrived.
            (Some(0), _) => (Status::Complete, None),
            (Some(3), _) => (Status::Incomplete, None),
            (_, Some(EndReason::Cancelled)) => return,
            (_, Some(EndReason::Late)) => {
                let limit = patience.limit.unwrap_or_default().as_secs_f64();
                (Status::Hung, Some(format!("ended because it took longer than {limit} seconds")))
            }
            (_, Some(EndReason::Silent)) => {
                let silence = patience.silence.as_secs_f64();
                (Status::Hung, Some(format!("ended because it printed nothing for {silence} seconds")))
            }
            (None, None) => {
                let signal = status.signal().unwrap_or_default();
                (Status::Crashed, Some(format!("signal {signal} ended the mapper; {}", last_message())))
            }
            (Some(_), None) if self.failure == Some(FailureReason::Hung) => {
                (Status::Hung, Some(last_message()))
            }
            (Some(_), None) => (Status::Failed, Some(last_message())),
        };
        self.status = Some(status);
        self.error = error;
    }

    /// Whether the images are unchanged since they were opened.
    pub(super) fn images_are_same(&self) -> bool {
        self.opened.iter().flat_map(|disk| &disk.files).all(StampedFile::is_same)
    }
}

fn keep(warnings: &mut Vec<Warning>, warning: Warning) {
    if warnings.len() < MAX_WARNINGS {
        warnings.push(warning);
    }
}

/// Reads the lines of a stream on its own thread, which ends with the stream. The queue is bounded:
/// if the receiver stops, so does the writer.
fn lines(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        let Some(stream) = stream else { return };
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match (&mut stream).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(1..) if sender.send(line).is_ok() => {}
                _ => return,
            }
        }
    });
    receiver
}

/// The process group of the mapper: the mapper and its children.
struct Group(Pid);

impl Group {
    /// Whether the mapper itself has ended. It is not reaped, so that its process ID is not reused.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.0), options), Ok(None))
    }

    /// Sends the mapper a signal. An error is ignored: the mapper may have ended.
    fn signal(&self, signal: Signal) {
        let _ = kill_process(self.0, signal);
    }

    fn kill(&self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

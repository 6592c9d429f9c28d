//! One guest: its mapper is started, watched, and ended if need be.

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
use virt_bmap_map::{Warning, diff};

/// The program that maps a guest. What it is called with is this program's own command line: `arguments`,
/// `--progress=json`, an `-o` for each map, perhaps an `--earlier=` map, and each disk after a `--format=` of its own.
#[derive(Clone, Debug)]
pub struct Mapper {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments, before all of ours.
    pub wrapper: Vec<OsString>,
    /// How to map.
    pub options: Vec<OsString>,
    /// Those of the options on which it depends what a map has in it, without what is secret in them. They
    /// are kept in the records, and a guest that was mapped with others is mapped again.
    pub noted: Vec<OsString>,
}

impl Mapper {
    /// The options as a record keeps them.
    pub fn noted_options(&self) -> Vec<Text> {
        self.noted.iter().map(|option| option.as_os_str().into()).collect()
    }

    /// The command that maps `guest` to files `map.SUFFIX` in `workplace`.
    fn command(&self, guest: &Guest, earlier: Option<&Path>, workplace: &Path) -> Command {
        // SIGTERM: it has sockets and temporary files to put away, and an appliance to end.
        let mut command = child::command_ended_by(self.program.as_os_str(), Signal::TERM);
        command.args(&self.wrapper).args(&self.options).arg("--progress=json");
        for suffix in super::MAP_SUFFIXES {
            command.arg("-o").arg(workplace.join(format!("map.{suffix}")));
        }
        if let Some(earlier) = earlier {
            command.arg([OsStr::new("--earlier="), earlier.as_os_str()].into_iter().collect::<OsString>());
        }
        for disk in &guest.disks {
            let format = disk.format.map_or("", |format| format.driver());
            // As an option's value, so that no path is taken for an option.
            command.arg(format!("--format={format}")).arg("-a").arg(&disk.path);
        }
        command
    }
}

/// When a mapper is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// It has said nothing for so long.
    pub(super) silence: Duration,
    /// It has taken so long.
    pub(super) limit: Option<Duration>,
    /// How long it may take to end in good order before it is killed.
    pub(super) grace: Duration,
}

/// What one try came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) status: Option<Status>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) error: Option<String>,
    pub(super) opened: Vec<OpenedDisk>,
    pub(super) peak_memory: Option<u64>,
    pub(super) counts: Option<Counts>,
    pub(super) changes: Option<diff::Counts>,
    pub(super) unexamined: Vec<Warning>,
    pub(super) warnings: Vec<Warning>,
    /// Why the mapper says that there is no map.
    pub(super) failure: Option<FailureReason>,
}

/// How often it is looked whether the mapper is to be ended.
const TICK: Duration = Duration::from_millis(50);

/// How long after its mapper we may hear that all is to end.
const HEARSAY: Duration = Duration::from_secs(1);

/// Longest line in bytes that is read of a mapper.
const MAX_LINE: u64 = 1 << 20;

/// How many lines that are no events are kept.
const TAIL: usize = 20;

/// Maps a guest once, with what can be taken over from an earlier map. The outcome has no status if that was
/// cancelled.
pub(super) fn map(
    mapper: &Mapper,
    guest: &Guest,
    earlier: Option<&Path>,
    workplace: &Path,
    patience: Patience,
    cancel: &Cancel,
    progress: &mut dyn FnMut(String, Option<f64>),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut command = mapper.command(guest, earlier, workplace);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            outcome.status = Some(Status::Failed);
            outcome.error = Some(format!("{} could not be started: {error}", mapper.program.display()));
            return outcome;
        }
    };
    let lines = lines(child.stderr.take());
    let group = Group(Pid::from_child(&child));
    let mut said = VecDeque::new();
    let began = Instant::now();
    let mut heard = began;
    let mut given_up = None;
    loop {
        let line = lines.recv_timeout(TICK);
        match &line {
            Ok(line) => {
                heard = Instant::now();
                outcome.take(line, &mut said, progress);
            }
            // What it has started may hold the other end still, or it has closed it itself.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if line.is_err() && group.has_ended() {
            break;
        }
        let why = if cancel.is_cancelled() {
            Some(GivenUp::Cancelled)
        } else if patience.limit.is_some_and(|limit| began.elapsed() > limit) {
            Some(GivenUp::Late)
        } else if heard.elapsed() > patience.silence {
            Some(GivenUp::Silent)
        } else {
            None
        };
        if let (Some(why), None) = (why, &given_up) {
            group.signal(Signal::TERM);
            given_up = Some((why, Instant::now()));
        }
        if given_up.as_ref().is_some_and(|(_, since)| since.elapsed() > patience.grace) {
            group.kill();
        }
    }
    // Whatever it has left behind goes with it, while its id still is its own.
    group.kill();
    let status = child.wait();
    while let Ok(line) = lines.recv_timeout(TICK) {
        outcome.take(&line, &mut said, progress);
    }
    let mut given_up = given_up.map(|(why, _)| why);
    // Who ends all processes of a job, as batch systems do, ends us as well: it may be that we have not heard yet.
    if given_up.is_none() && status.as_ref().is_ok_and(|status| was_told_to_end(*status)) {
        let begun = Instant::now();
        while !cancel.is_cancelled() && begun.elapsed() < HEARSAY {
            std::thread::sleep(TICK);
        }
        given_up = cancel.is_cancelled().then_some(GivenUp::Cancelled);
    }
    outcome.end(status, given_up, &said, patience);
    outcome
}

/// Whether a mapper ended because somebody told it to.
fn was_told_to_end(status: ExitStatus) -> bool {
    let signal = status.signal().or_else(|| status.code().map(|code| code - 128));
    let polite = [Signal::HUP, Signal::INT, Signal::TERM].map(Signal::as_raw);
    signal.is_some_and(|signal| polite.contains(&signal))
}

/// Why a mapper was ended.
#[derive(Clone, Copy)]
enum GivenUp {
    Cancelled,
    Late,
    Silent,
}

impl Outcome {
    fn take(
        &mut self,
        line: &[u8],
        said: &mut VecDeque<String>,
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
            Ok(ProgressEvent::Done(counts)) => self.counts = Some(counts),
            Err(_) => {
                if said.len() == TAIL {
                    said.pop_front();
                }
                said.push_back(child::message(line));
            }
        }
    }

    fn end(
        &mut self,
        status: io::Result<ExitStatus>,
        given_up: Option<GivenUp>,
        said: &VecDeque<String>,
        patience: Patience,
    ) {
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.status = Some(Status::Failed);
                self.error = Some(format!("its end could not be waited for: {error}"));
                return;
            }
        };
        self.exit_code = status.code();
        self.signal = status.signal();
        let complaint = || {
            let line = said.iter().rev().find_map(|line| line.strip_prefix("virt-bmap-rs: "));
            line.or(said.back().map(String::as_str)).unwrap_or("it gave no reason").to_owned()
        };
        let (status, error) = match (status.code(), given_up) {
            // It was done before it was told to end.
            (Some(0), _) => (Status::Complete, None),
            (Some(3), _) => (Status::Incomplete, None),
            (_, Some(GivenUp::Cancelled)) => return,
            (_, Some(GivenUp::Late)) => {
                let limit = patience.limit.unwrap_or_default().as_secs_f64();
                (Status::Hung, Some(format!("it took longer than {limit} seconds, and was ended")))
            }
            (_, Some(GivenUp::Silent)) => {
                let silence = patience.silence.as_secs_f64();
                (Status::Hung, Some(format!("it said nothing for {silence} seconds, and was ended")))
            }
            (None, None) => {
                let signal = status.signal().unwrap_or_default();
                (Status::Crashed, Some(format!("the mapper was ended by signal {signal}; {}", complaint())))
            }
            (Some(_), None) if self.failure == Some(FailureReason::Hung) => (Status::Hung, Some(complaint())),
            (Some(_), None) => (Status::Failed, Some(complaint())),
        };
        self.status = Some(status);
        self.error = error;
    }

    /// Whether the images are still as they were when they were opened.
    pub(super) fn images_are_same(&self) -> bool {
        self.opened.iter().flat_map(|disk| &disk.files).all(StampedFile::is_same)
    }
}

fn keep(warnings: &mut Vec<Warning>, warning: Warning) {
    if warnings.len() < MAX_WARNINGS {
        warnings.push(warning);
    }
}

/// Reads a stream's lines on a thread of its own, which ends with the stream. Few are held: who does not
/// read them stops the writer.
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

/// The mapper and what it has started, as far as that has not left its process group.
struct Group(Pid);

impl Group {
    /// Whether the mapper itself has ended. It is not waited for, so that its id stays its own.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.0), options), Ok(None))
    }

    /// Sends the mapper a signal. That it may have ended is no matter.
    fn signal(&self, signal: Signal) {
        let _ = kill_process(self.0, signal);
    }

    fn kill(&self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

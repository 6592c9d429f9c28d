//! Runs the program in a new directory, and checks after its end that it left nothing behind.
//!
//! Every run has a mark in its environment, which all processes that it starts inherit. The mark
//! identifies the run's qemu, qemu-nbd and other helpers among the processes of the machine.

use super::cache;
use super::places::program;
use super::tools;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The time limit of a run. An idle machine needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long the helpers of a run may live on after it.
const GRACE: Duration = Duration::from_secs(5);
/// The environment variable that marks the processes of a run.
const MARK: &str = "VIRT_BMAP_TEST_RUN";

/// The ids of `nobody` and `nogroup`.
pub const NOBODY: &str = "65534";

/// A run that has not started: its directories and settings.
pub struct Sandbox {
    dir: tempfile::TempDir,
    mark: String,
    program: PathBuf,
    wrapper: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdout: Option<Stdio>,
    is_nobody: bool,
    deadline: Duration,
}

/// A run that has not ended.
pub struct Running {
    sandbox: Sandbox,
    child: Child,
    started: Instant,
    peak_kib: u64,
}

/// A run that has ended and left nothing behind.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output. Empty if standard output went elsewhere.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The peak resident memory of the program itself, without its children.
    pub peak_kib: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// The sandbox. Its working directory has the files that the run wrote.
    pub sandbox: Sandbox,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// Makes an empty working directory, and temporary and runtime directories beside it.
    pub fn new() -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        // The target directory would be too deep, since the path of a socket has at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("vbt").tempdir().unwrap();
        for name in ["cwd", "tmp", "run", "home"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let mark = format!("{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        Self {
            dir,
            mark,
            program: program().into(),
            wrapper: Vec::new(),
            envs: Vec::new(),
            stdout: None,
            is_nobody: false,
            deadline: DEADLINE,
        }
    }

    /// The working directory.
    pub fn cwd(&self) -> PathBuf {
        self.dir.path().join("cwd")
    }

    /// Sets an environment variable of the run.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Changes the time limit of the run.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends standard output elsewhere.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Runs the program through `command`, which gets the program and its arguments as arguments.
    pub fn wrapper<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.wrapper.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Runs the program as the user `nobody`, who owns only the sandbox. This needs root.
    pub fn run_as_nobody(mut self) -> Self {
        self.is_nobody = true;
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The user may not be able to read the build directory, so the program is copied.
        self.program = self.dir.path().join("virt-bmap-rs");
        tools::copy_program(program().as_ref(), &self.program);
        fs::set_permissions(&self.program, fs::Permissions::from_mode(0o755)).unwrap();
        let id = NOBODY.parse().unwrap();
        for name in ["cwd", "tmp", "run", "home"] {
            std::os::unix::fs::chown(self.dir.path().join(name), Some(id), Some(id)).unwrap();
        }
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        self.wrapper(["setpriv".into()].into_iter().chain(ids).chain(["--clear-groups".to_owned()]))
    }

    /// Starts the program.
    pub fn start<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Running {
        let mut words = self.wrapper.iter().cloned().chain([self.program.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(args);
        let at = |name: &str| self.dir.path().join(name);
        command
            .current_dir(at("cwd"))
            .env(MARK, &self.mark)
            .env("TMPDIR", at("tmp"))
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("HOME", at("home"))
            // The program has to find out whether KVM works.
            .env_remove("LIBGUESTFS_BACKEND")
            .env_remove("LIBGUESTFS_BACKEND_SETTINGS")
            .env_remove("RUST_BACKTRACE");
        // Two things are kept between runs: the appliance that libguestfs builds, and the result of
        // the check whether KVM works.
        if self.is_nobody {
            command.env("LIBGUESTFS_CACHEDIR", "/var/tmp").env("XDG_CACHE_HOME", at("home"));
        } else {
            command.env("LIBGUESTFS_CACHEDIR", "/var/tmp").env("XDG_CACHE_HOME", cache::kept());
        }
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        let stdout = self.stdout.take().unwrap_or_else(|| File::create(at("stdout")).unwrap().into());
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(at("stderr")).unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running { sandbox: self, child, started: Instant::now(), peak_kib: 0 }
    }

    /// Runs the program until it ends.
    pub fn run<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Finished {
        self.start(args).finish()
    }

    /// The processes of this run, with their command lines.
    fn processes(&self) -> Vec<(i32, String)> {
        let found = processes_with(&format!("{MARK}={}", self.mark)).into_iter().map(|(pid, directory)| {
            let line = fs::read(directory.join("cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&line).replace('\0', " "))
        });
        found.collect()
    }

    /// The files in the temporary and runtime directories.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for name in ["tmp", "run"] {
            list(&self.dir.path().join(name), &mut found);
        }
        found
    }

    /// Fails unless all processes and temporary files disappear within a few seconds.
    fn assert_nothing_left(&self, stderr: &str) {
        let begun = Instant::now();
        loop {
            let (processes, files) = (self.processes(), self.files());
            if processes.is_empty() && files.is_empty() {
                return;
            }
            if begun.elapsed() > GRACE {
                for (pid, _) in &processes {
                    kill(*pid, Signal::KILL);
                }
                panic!("left behind:\nprocesses {processes:#?}\nfiles {files:#?}\nstandard error:\n{stderr}");
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// The processes with `NAME=VALUE` in their environment, each with its directory in `/proc`.
pub fn processes_with(variable: &str) -> Vec<(i32, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // The process has ended, or belongs to another user.
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|&b| b == 0).any(|other| other == variable.as_bytes()) {
            found.push((pid, entry.path()));
        }
    }
    found
}

impl Running {
    /// Waits for a process of the run whose command line contains `name`, and returns its id.
    ///
    /// # Panics
    /// If the program ends first.
    pub fn helper(&mut self, name: &str) -> i32 {
        loop {
            if let Some((pid, _)) = self.sandbox.processes().into_iter().find(|(_, line)| line.contains(name))
            {
                return pid;
            }
            assert!(!self.has_ended(), "ended before it started {name}:\n{}", self.stderr());
            sleep(Duration::from_millis(20));
        }
    }

    /// The id of the program under test, if a wrapper has started it in a terminal and has ended.
    pub fn program_in_terminal(&self) -> i32 {
        let program = self.sandbox.program.to_string_lossy().into_owned();
        let ours = |(_, line): &(i32, String)| line.starts_with(&program);
        self.sandbox.processes().into_iter().find(ours).unwrap().0
    }

    /// Waits until `reached` returns true. `what` describes this in the message of a failure.
    ///
    /// # Panics If the program ends first.
    pub fn wait_until(&mut self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        while !reached(self) {
            assert!(!self.has_ended(), "ended before {what}:\n{}", self.stderr());
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until standard error contains `words`, such as the message that begins a filesystem.
    pub fn wait_until_said(&mut self, words: &str) {
        self.wait_until(words, |running| running.stderr().contains(words));
    }

    /// What the program has written to standard error so far.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(self.sandbox.dir.path().join("stderr")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) {
        kill(i32::try_from(self.child.id()).unwrap(), signal);
    }

    /// Sends a signal to the program's process group. The program must be the leader of one.
    pub fn signal_group(&self, signal: Signal) {
        let leader = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process_group(leader, signal).unwrap();
    }

    /// Waits for `time`, or until the program ends.
    pub fn wait(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && !self.has_ended() {
            sleep(Duration::from_millis(10));
        }
    }

    fn has_ended(&mut self) -> bool {
        self.note_memory();
        self.child.try_wait().unwrap().is_some()
    }

    /// Reads the peak memory of the program. The kernel keeps the peak, so it is enough to read it
    /// now and then. (The peak that `wait4` reports would include qemu.)
    fn note_memory(&mut self) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.child.id())) else { return };
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()) {
            self.peak_kib = self.peak_kib.max(kib);
        }
    }

    /// Kills the program outright. Returns its files in the temporary and runtime directories that
    /// are left when its helpers have ended.
    pub fn kill(mut self) -> Vec<PathBuf> {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        let begun = Instant::now();
        while let [(pid, line), ..] = &self.sandbox.processes()[..] {
            assert!(begun.elapsed() < 2 * GRACE, "process {pid} is left: {line}");
            sleep(Duration::from_millis(20));
        }
        self.sandbox.files()
    }

    /// Waits for the end of the program, and checks what must hold for every run. The program must
    /// end in time, must not panic, and must leave no processes and no temporary files.
    pub fn finish(mut self) -> Finished {
        while !self.has_ended() {
            if self.started.elapsed() > self.sandbox.deadline {
                self.signal(Signal::KILL);
                self.child.wait().ok();
                for (pid, _) in self.sandbox.processes() {
                    kill(pid, Signal::KILL);
                }
                panic!("hangs; standard error:\n{}", self.stderr());
            }
            sleep(Duration::from_millis(20));
        }
        let elapsed = self.started.elapsed();
        let status = self.child.wait().unwrap();
        let stderr = self.stderr();
        assert!(!stderr.contains("panicked at"), "panicked:\n{stderr}");
        assert_ne!(status.code(), Some(101), "panicked:\n{stderr}");
        self.sandbox.assert_nothing_left(&stderr);
        let stdout = fs::read(self.sandbox.dir.path().join("stdout")).unwrap_or_default();
        Finished { status, stdout, stderr, peak_kib: self.peak_kib, elapsed, sandbox: self.sandbox }
    }
}

impl Finished {
    /// The exit status as a shell reports it: 128 plus the signal if a signal ended the program.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }

    /// Fails unless the program ended with this status.
    #[track_caller]
    pub fn assert_code(&self, expected: i32) -> &Self {
        assert_eq!(self.code(), expected, "exit status; standard error:\n{}", self.stderr);
        self
    }

    /// The number of files that were reused from the baseline, according to standard error.
    pub fn taken_over(&self) -> Option<u64> {
        let number = |line: &str| {
            line.strip_suffix(" files reused from the baseline without reading them")?.parse().ok()
        };
        self.stderr.lines().find_map(number)
    }

    /// How many directories the agent listed in each filesystem, which `--verbose` prints.
    pub fn directories_listed(&self) -> Vec<u64> {
        // `--verbose` also prints the appliance's log. Its lines lack the beginning "time of the
        // agent".
        let number = |line: &str| {
            let (_, spent) = line.split_once("time of the agent: ")?;
            spent.split_once(" directories listed, ")?.0.parse().ok()
        };
        self.stderr.lines().filter_map(number).collect()
    }

    /// Fails unless standard error contains all of `words`. Upper and lower case are equal.
    #[track_caller]
    pub fn assert_says(&self, words: &[&str]) -> &Self {
        let said = self.stderr.to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "does not say {word:?}:\n{}", self.stderr);
        }
        self
    }

    /// Fails unless the program ended with status 1, printed one error that contains all of
    /// `words`, and wrote no new file into its working directory.
    #[track_caller]
    pub fn assert_fails(&self, words: &[&str]) -> &Self {
        self.assert_code(1).assert_says(words);
        let said = |line: &&str| line.starts_with("virt-bmap-rs: ") && !line.contains("warning: ");
        assert_eq!(
            self.stderr.lines().filter(said).count(),
            1,
            "not one error for one fault:\n{}",
            self.stderr
        );
        self
    }

    /// The names of the files in the working directory.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.sandbox.cwd()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The content of a file in the working directory.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.sandbox.cwd().join(name);
        fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; standard error:\n{}", path.display(), self.stderr))
    }
}

/// Runs the program with these arguments until it ends.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Finished {
    Sandbox::new().run(args)
}

/// Images that must have the same bytes when this value is dropped.
pub struct Sealed(Vec<(PathBuf, Written)>);

/// The length of an image, and when it was written last. A digest would say the same, and reading
/// the images for it takes minutes in all tests together.
type Written = (u64, i64, i64);

/// Notes when `images` were written, which is compared when the value is dropped.
pub fn sealed<P: AsRef<Path>>(images: impl IntoIterator<Item = P>) -> Sealed {
    let images = images.into_iter();
    Sealed(images.map(|image| (image.as_ref().to_owned(), written(image.as_ref()))).collect())
}

fn written(image: &Path) -> Written {
    let about = fs::metadata(image).unwrap();
    (about.len(), about.mtime(), about.mtime_nsec())
}

impl Drop for Sealed {
    fn drop(&mut self) {
        for (image, before) in &self.0 {
            if !std::thread::panicking() {
                assert!(written(image) == *before, "{} was changed", image.display());
            }
        }
    }
}

/// Whether standard error has one line, and at most one more that names a page of the
/// documentation.
pub fn is_one_error(said: &str) -> bool {
    let mut lines = said.trim_end().lines();
    let (first, second) = (lines.next(), lines.next());
    first.is_some() && second.is_none_or(|line| line.starts_with("see https://")) && lines.next().is_none()
}

/// Sends a signal to a process of a run. It does not matter if the process has ended.
pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).ok();
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            list(&entry.path(), found);
        }
        found.push(entry.path());
    }
}

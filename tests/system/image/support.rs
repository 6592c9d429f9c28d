//! Shared code of these tests: a directory of images, external tools, and other processes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use virt_bmap_image::{self, Image, ImageFormat, OpenError, OpenOptions, Source};
use virt_bmap_ranges::DiskOffset;
use virt_bmap_testutil::places::built;

/// The size of the guest disk that the tests put into images.
pub(crate) const DISK: u64 = 12 << 20;

/// Whether the tools are installed. If not, the test must return. With `VIRT_BMAP_REQUIRE_TOOLS=1`
/// this function fails instead.
pub(crate) fn have(tools: &[&str]) -> bool {
    for tool in tools {
        if Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none(), "{tool} is not installed");
            eprintln!("SKIPPED: {tool} is not installed");
            return false;
        }
    }
    true
}

/// A directory with a raw disk `base.raw`, which has data and holes.
pub(crate) struct Images {
    dir: tempfile::TempDir,
}

impl Images {
    pub(crate) fn new() -> Self {
        let images = Self { dir: tempfile::Builder::new().prefix("image-test-").tempdir().unwrap() };
        let raw = File::create(images.path("base.raw")).unwrap();
        raw.set_len(DISK).unwrap();
        for (offset, length) in [(0, 70_000), (1 << 20, 1 << 20), (5 << 20, 3000), (DISK - 512, 512)] {
            raw.write_all_at(&noise(offset, length), offset).unwrap();
        }
        images
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Runs a program in the directory.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).current_dir(&self.dir).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    }

    pub(crate) fn qemu_img(&self, arguments: &[&str]) {
        self.run("qemu-img", arguments);
    }

    /// Converts `base.raw` to another format.
    pub(crate) fn convert(&self, name: &str, format: &str, options: &[&str]) -> PathBuf {
        let arguments = [&["convert", "-f", "raw", "-O", format], options, &["base.raw", name]].concat();
        self.qemu_img(&arguments);
        self.path(name)
    }

    /// Makes an overlay with the given backing file and format in its header, and writes a block
    /// into it.
    pub(crate) fn overlay(&self, name: &str, format: &str, backing: &str, backing_format: &str) -> PathBuf {
        self.qemu_img(&["create", "-q", "-f", format, "-b", backing, "-F", backing_format, name]);
        let place = format!("write -P {} {}k 9k", name.len(), 100 * name.len());
        self.run("qemu-io", &["-f", format, "-c", &place, name]);
        self.path(name)
    }

    /// What qemu-img reads from an image.
    pub(crate) fn oracle(&self, name: &str, format: &str) -> Vec<u8> {
        let out = tempfile::NamedTempFile::new().unwrap();
        self.qemu_img(&["convert", "-f", format, "-O", "raw", name, out.path().to_str().unwrap()]);
        fs::read(out.path()).unwrap()
    }

    /// The checksums of all files. For huge files, the time of the last change instead.
    pub(crate) fn checksums(&self) -> BTreeMap<String, String> {
        let huge = ["-size", "+200M", "-printf", "%T+ %p\\n"];
        let output = Command::new("find")
            .arg(self.dir.path())
            .args(["-type", "f", "("])
            .args(huge)
            .args(["-o", "-exec", "sha256sum", "{}", "+", ")"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|l| l.split_once(' ')).map(|(a, b)| (b.to_owned(), a.to_owned())).collect()
    }

    /// Opens an image, reads all of it, compares it with the oracle, and checks that no file
    /// changed.
    pub(crate) fn check(&self, name: &str, stated: Option<ImageFormat>, format: ImageFormat, links: usize) {
        self.check_each(name, &[stated], format, links);
    }

    /// Does the same for each of the stated formats. The oracle and the checksums take most of the
    /// time, and are needed only once.
    pub(crate) fn check_each(
        &self,
        name: &str,
        stated: &[Option<ImageFormat>],
        format: ImageFormat,
        links: usize,
    ) {
        let before = self.checksums();
        let wanted = self.oracle(name, format.driver());
        let path = self.path(name);
        for stated in stated {
            let image = open(&path, *stated).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(image.location.file(), Some(&*path));
            assert_eq!(image.format, format, "{name}");
            assert_eq!(image.chain.len(), links, "{name}: {:?}", image.chain);
            assert!(image.warnings.is_empty(), "{name}: {:?}", image.warnings);
            assert_eq!(image.source.size(), wanted.len() as u64, "{name}");
            assert!(read_whole(&*image.source) == wanted, "{name}: other content than qemu-img's");
            drop(image);
            assert_eq!(running(self.dir.path()), NOBODY, "{name}: a child is left");
        }
        assert_eq!(self.checksums(), before, "{name}: an image was changed");
    }

    /// The change time and the size of each file. This is faster than checksums, and as strict.
    fn changes(&self) -> Vec<(PathBuf, i64, i64, u64)> {
        let mut all = Vec::new();
        let mut directories = vec![self.path("")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    directories.push(path);
                } else {
                    all.push((path, metadata.ctime(), metadata.ctime_nsec(), metadata.size()));
                }
            }
        }
        all.sort();
        all
    }

    /// Opens an image that must be refused, and returns the error.
    pub(crate) fn refuse(&self, name: &str, stated: Option<ImageFormat>) -> OpenError {
        let before = self.changes();
        let error = match open(&self.path(name), stated) {
            Ok(image) => panic!("{name} was opened: {image:?}"),
            Err(error) => error,
        };
        assert_eq!(running(self.dir.path()), NOBODY, "{name}: a child is left");
        assert_eq!(self.changes(), before, "{name}: an image was changed");
        let text = error.to_string();
        assert!(!text.contains('\n') && !text.contains('\x1b'), "not one harmless line: {text:?}");
        error
    }
}

pub(crate) fn open(path: &Path, format: Option<ImageFormat>) -> Result<Image, OpenError> {
    virt_bmap_image::open(&path.to_owned().into(), &OpenOptions { format, ..OpenOptions::default() })
}

/// Bytes that look random but are the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

/// Reads a disk in pieces of an odd size.
pub(crate) fn read_whole(source: &dyn Source) -> Vec<u8> {
    let mut all = vec![0xee; source.size() as usize];
    let mut offset = 0;
    for part in all.chunks_mut(999_983) {
        source.read_at(part, DiskOffset(offset)).unwrap();
        offset += part.len() as u64;
    }
    all
}

pub(crate) const NOBODY: [u32; 0] = [];

/// The ids of the qemu-nbd processes whose command line names a path below `dir`.
pub(crate) fn running(dir: &Path) -> Vec<u32> {
    let wanted = dir.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"qemu-nbd\0") && String::from_utf8_lossy(&line).contains(wanted)
    })
    .collect()
}

/// Waits until `done` returns true. Fails after some time.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "still waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed at the end of the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets qemu-io hold an image open for writing, as a running machine does.
pub(crate) fn hold(path: &Path, format: &str) -> Running {
    let child = Command::new("qemu-io")
        .args(["-f", format, "-c", "sleep 600000"])
        .arg(path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let running = Running(child);
    wait_until("qemu-io has locked the image", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("OFDLCK") && line.contains(&inode))
    });
    running
}

/// A listener to which no program may connect.
pub(crate) struct Trap(UnixListener);

impl Trap {
    pub(crate) fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.0.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody connected");
    }
}

/// The path of the example program `cat_image`, for tests that need another process.
pub(crate) fn cat_image() -> PathBuf {
    built("examples/cat_image")
}

/// Runs `cat_image`, which must fail, and returns its error message.
pub(crate) fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that runs a program as an ordinary user if the test runs as root.
pub(crate) fn as_ordinary_user(program: &OsStr) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

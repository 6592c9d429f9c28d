//! Clients of other projects: libnbd's tools and bindings, and qemu's tools. One of the servers is
//! the example of docs/nbd.md.

use super::memory::{Kind, Memory};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use virt_bmap_nbd::{Exports, Limits, Server};
use virt_bmap_testutil::places::built;

/// The system's Python, for which the distribution packages libnbd's binding.
const PYTHON: &str = "/usr/bin/python3";

/// Whether all of these commands run. If not, prints that the test is skipped, or fails if
/// everything must be installed.
fn installed(commands: &[&[&str]]) -> bool {
    for command in commands {
        let found =
            Command::new(command[0]).args(&command[1..]).output().is_ok_and(|out| out.status.success());
        if !found {
            let why = format!("`{}` does not run", command.join(" "));
            assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none_or(|value| value != "1"), "{why}");
            eprintln!("SKIPPED: {why}");
            return false;
        }
    }
    true
}

const LIBNBD: &[&[&str]] = &[&["nbdinfo", "--version"], &["nbdcopy", "--version"]];
const LIBNBD_PYTHON: &[&[&str]] = &[&[PYTHON, "-c", "import nbd"]];
const QEMU: &[&[&str]] = &[&["qemu-img", "--version"], &["qemu-io", "--version"], &["qemu-nbd", "--version"]];

/// A server on a Unix socket. It stops when this value is dropped.
struct Served {
    folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(exports: Exports) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let (stop, stopped) = oneshot::channel();
        let (listening, is_listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(socket).unwrap();
                listening.send(()).unwrap();
                let stop = async {
                    stopped.await.ok();
                };
                Server::new(exports, Limits::default()).run(listener, stop).await;
            });
        });
        is_listening.recv().unwrap();
        Self { folder, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> String {
        self.path("socket").to_str().unwrap().into()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking());
    }
}

/// Runs a command that must succeed, and returns its output.
fn run(command: &[&str]) -> String {
    // With a time limit, a client that waits for ever fails the test.
    let out = Command::new("timeout").arg("60").args(command).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", out.status);
    stdout.into_owned()
}

fn run_json(command: &[&str]) -> Value {
    let out = run(command);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{command:?}: {error}: {out}"))
}

const SIZE: usize = 8 << 20;

/// A disk with data, and with holes in the second and the fourth MiB.
fn disk(kind: Kind) -> Arc<Memory> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512 + at % 251) as u8 | 1).collect();
    bytes[1 << 20..2 << 20].fill(0);
    bytes[3 << 20..4 << 20].fill(0);
    Memory::new(bytes, kind)
}

/// A disk of each kind, with the name of the kind.
fn disks() -> (Vec<Arc<Memory>>, Exports) {
    let disks: Vec<_> = [Kind::READ_ONLY, Kind::FAST, Kind::BLOCKING, Kind::CACHED].map(disk).into();
    let mut exports = Exports::new();
    for (disk, name) in disks.iter().zip(NAMES) {
        exports = exports.with(name, Arc::clone(disk) as _).unwrap();
    }
    (disks, exports.with_default("ro").unwrap())
}

const NAMES: [&str; 4] = ["ro", "fast", "blocking", "cached"];
const WRITABLE: [&str; 3] = ["fast", "blocking", "cached"];

#[test]
fn nbdinfo_sees_what_is_offered() {
    if !installed(LIBNBD) {
        return;
    }
    let served = Served::new(disks().1);
    let info = run_json(&["nbdinfo", "--json", &served.uri("ro")]);
    assert_eq!((&info["protocol"], &info["TLS"]), (&json!("newstyle-fixed"), &json!(false)));
    assert_eq!(info["structured"], json!(true));
    let ro = &info["exports"][0];
    for (key, value) in [
        ("export-name", json!("ro")),
        ("description", json!("bytes in memory")),
        ("contexts", json!(["base:allocation"])),
        ("is_read_only", json!(true)),
        ("can_cache", json!(false)),
        ("can_df", json!(true)),
        ("can_flush", json!(false)),
        ("can_multi_conn", json!(true)),
        ("can_zero", json!(false)),
        ("block_size_minimum", json!(1)),
        ("block_size_preferred", json!(4096)),
        ("block_size_maximum", json!(32 << 20)),
        ("export-size", json!(SIZE)),
    ] {
        assert_eq!(ro[key], value, "{key}: {ro}");
    }
    let info = run_json(&["nbdinfo", "--json", &served.uri("fast")]);
    for key in ["can_flush", "can_fua", "can_fast_zero", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(info["exports"][0][key], json!(true), "{key}");
    }
    let list = run_json(&["nbdinfo", "--list", "--json", &served.uri("")]);
    let names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["blocking", "cached", "fast", "ro"]);
}

#[test]
fn nbdinfo_maps_the_holes() {
    if !installed(LIBNBD) {
        return;
    }
    let served = Served::new(disks().1);
    for name in NAMES {
        let map = run_json(&["nbdinfo", "--map", "--json", &served.uri(name)]);
        let mib = 1 << 20;
        let extent = |offset: u32, length: u32, kind: u32| {
            let description = if kind == 0 { "data" } else { "hole,zero" };
            json!({"offset": offset * mib, "length": length * mib, "type": kind, "description": description})
        };
        let wanted = [(0, 1, 0), (1, 1, 3), (2, 1, 0), (3, 1, 3), (4, 4, 0)].map(|(o, l, k)| extent(o, l, k));
        assert_eq!(map, json!(wanted));
    }
}

#[test]
fn nbdcopy_copies_there_and_back() {
    if !installed(LIBNBD) {
        return;
    }
    let (disks, exports) = disks();
    let served = Served::new(exports);
    for (disk, name) in disks.iter().zip(NAMES) {
        let out = served.path(name);
        run(&["nbdcopy", &served.uri(name), out.to_str().unwrap()]);
        assert!(fs::read(&out).unwrap() == disk.bytes(), "{name}");
        // This client uses no structured replies, so it gets no holes.
        let simple = served.path("simple");
        run(&["nbdcopy", "--no-extents", "--synchronous", &served.uri(name), simple.to_str().unwrap()]);
        assert!(fs::read(&simple).unwrap() == disk.bytes(), "{name}");
    }
    let new: Vec<u8> = (0..SIZE).map(|at| if at % 100_000 < 50_000 { 0 } else { (at % 247) as u8 }).collect();
    fs::write(served.path("new"), &new).unwrap();
    for name in WRITABLE {
        let new_path = served.path("new");
        run(&["nbdcopy", "--flush", new_path.to_str().unwrap(), &served.uri(name)]);
        let disk = &disks[NAMES.iter().position(|other| *other == name).unwrap()];
        assert!(disk.bytes() == new, "{name}");
    }
}

/// Uses every command of libnbd, with and without structured replies.
#[test]
fn libnbd_s_binding_can_use_every_command() {
    if !installed(LIBNBD_PYTHON) {
        return;
    }
    let script = r#"
import errno, nbd, sys
uri, structured, readonly = sys.argv[1], sys.argv[2] == "structured", sys.argv[3] == "ro"
SIZE = 8 << 20

def fails(error, call, *args):
    try:
        call(*args)
    except nbd.Error as ex:
        assert ex.errno == errno.errorcode[error], ex
    else:
        assert False, "should fail"

h = nbd.NBD()
h.set_strict_mode(0)          # let the server do the checking
h.set_request_structured_replies(structured)
h.set_full_info(True)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
assert h.get_structured_replies_negotiated() == structured
assert h.can_meta_context("base:allocation") == structured
assert h.get_size() == SIZE and h.is_read_only() == readonly
assert h.get_export_description() == "bytes in memory"
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20

first = h.pread(4096, 0)
assert h.pread(512, (1 << 20) + 1) == bytes(512)
fails(errno.EINVAL, h.pread, 2, SIZE - 1)
fails(errno.EINVAL, h.cache, 512, 0)
if readonly:
    fails(errno.EPERM, h.pwrite, b"x", 0)
    fails(errno.EPERM, h.zero, 1, 0)
    fails(errno.EPERM, h.trim, 1, 0)
else:
    h.pwrite(b"hello", 10)
    h.pwrite(b"world", 15, nbd.CMD_FLAG_FUA)
    assert h.pread(12, 9) == first[9:10] + b"helloworld" + first[20:21]
    h.zero(5, 10, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
    h.zero(1, 15, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.ENOTSUP, h.zero, 1, 16, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(10, 10) == bytes(6) + b"orld"
    h.trim(512, 2 << 20, nbd.CMD_FLAG_FUA)
    h.flush()
    fails(errno.ENOSPC, h.pwrite, b"ab", SIZE - 1)
    fails(errno.ENOSPC, h.zero, 2, SIZE - 1)
    fails(errno.EINVAL, h.trim, 2, SIZE - 1)

if structured:
    extents = []
    def extent(context, offset, entries, error):
        assert context == "base:allocation"
        extents.append((offset, entries))
    h.block_status(2 << 20, 0, extent)
    h.block_status(2 << 20, 512, extent, nbd.CMD_FLAG_REQ_ONE)
    (offset, entries), (offset_one, entries_one) = extents
    assert offset == 0 and sum(entries[::2]) == 2 << 20 and entries[-2:] == [1 << 20, 3], entries
    assert offset_one == 512 and len(entries_one) == 2, entries_one
    chunks = []
    def chunk(data, offset, status, error):
        chunks.append((len(data), offset, status))
    h.pread_structured(1024, 4096, chunk, nbd.CMD_FLAG_DF)
    h.pread_structured(1024, 3 << 20, chunk)
    assert chunks == [(1024, 4096, nbd.READ_DATA), (1024, 3 << 20, nbd.READ_HOLE)], chunks

# Many in flight, in any order.
whole = b"".join(h.pread(1 << 20, n << 20) for n in range(8))
buffers = {}
for n in range(500):
    length, offset = 1 + n * 37 % 9000, n * 15013 % (SIZE - 9000)
    buffer = nbd.Buffer(length)
    buffers[h.aio_pread(buffer, offset)] = (buffer, offset, length)
while buffers:
    h.poll(-1)
    for cookie in list(buffers):
        if h.aio_command_completed(cookie):
            buffer, offset, length = buffers.pop(cookie)
            assert buffer.to_bytearray() == whole[offset:offset + length]
large = h.pread(SIZE, 0)
assert large == whole
h.shutdown()
"#;
    let (disks, exports) = disks();
    let served = Served::new(exports);
    for name in NAMES {
        for structured in ["structured", "simple"] {
            run(&[PYTHON, "-c", script, &served.uri(name), structured, name]);
        }
    }
    assert!(disks.iter().all(|disk| disk.running.load(std::sync::atomic::Ordering::SeqCst) == 0));
}

#[test]
fn nbdsh_haggles() {
    if !installed(LIBNBD_PYTHON) {
        return;
    }
    let script = r#"
import nbd, sys
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert names == [(n, "bytes in memory") for n in ("blocking", "cached", "fast", "ro")], names
contexts = []
h.set_export_name("nobody")
try:
    h.opt_info()
    assert False
except nbd.Error:
    pass
h.set_export_name("fast")
h.opt_list_meta_context(contexts.append)
assert contexts == ["base:allocation"], contexts
h.set_full_info(True)
h.set_export_name("")
h.opt_info()
assert h.get_canonical_export_name() == "ro"
h.opt_go()
assert h.is_read_only() and len(h.pread(100, 0)) == 100
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(sys.argv[1])
h.opt_abort()
"#;
    let served = Served::new(disks().1);
    run(&[PYTHON, "-c", script, &served.socket()]);
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    if !installed(QEMU) {
        return;
    }
    let served = Served::new(disks().1);
    for name in WRITABLE {
        run(&[
            "qemu-io",
            "-f",
            "raw",
            &served.uri(name),
            "-c",
            "write -P 0x5a 1000 3000",
            "-c",
            "read -P 0x5a 1000 3000",
            "-c",
            "write -f -P 0xa5 2000 10",
            "-c",
            "read -P 0xa5 2000 10",
            "-c",
            "write -z 1500 100",
            "-c",
            "write -z -u 4M 3M",
            "-c",
            "read -P 0 1500 100",
            "-c",
            "read -P 0 4M 3M",
            "-c",
            "discard 0 64k",
            "-c",
            "aio_write -P 1 0 64k",
            "-c",
            "aio_write -P 2 64k 64k",
            "-c",
            "aio_flush",
            "-c",
            "read -P 1 0 64k",
            "-c",
            "read -P 2 64k 64k",
            "-c",
            "flush",
        ]);
    }
}

#[test]
fn qemu_img_maps_converts_and_compares() {
    if !installed(QEMU) {
        return;
    }
    let (disks, exports) = disks();
    let served = Served::new(exports);
    for (disk, name) in disks.iter().zip(NAMES) {
        let uri = served.uri(name);
        let map = run_json(&["qemu-img", "map", "-f", "raw", "--output=json", &uri]);
        let extents: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| {
                (
                    extent["start"].as_u64().unwrap() >> 20,
                    extent["length"].as_u64().unwrap() >> 20,
                    extent["zero"].as_bool().unwrap(),
                )
            })
            .collect();
        assert_eq!(extents, [(0, 1, false), (1, 1, true), (2, 1, false), (3, 1, true), (4, 4, false)]);
        let (raw, qcow2) = (served.path("raw"), served.path("qcow2"));
        run(&["qemu-img", "convert", "-f", "raw", "-O", "raw", &uri, raw.to_str().unwrap()]);
        assert!(fs::read(&raw).unwrap() == disk.bytes(), "{name}");
        run(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", &uri, qcow2.to_str().unwrap()]);
        run(&["qemu-img", "compare", "-f", "raw", "-F", "qcow2", &uri, qcow2.to_str().unwrap()]);
    }
}

#[test]
fn qemu_nbd_lists_the_exports() {
    if !installed(QEMU) {
        return;
    }
    let served = Served::new(disks().1);
    let list = run(&["qemu-nbd", "--list", "-k", &served.socket()]);
    assert!(list.starts_with("exports available: 4\n"), "{list}");
    for name in NAMES {
        assert!(list.contains(&format!("export: '{name}'\n  description: bytes in memory\n")), "{list}");
    }
    assert_eq!(list.matches("   base:allocation\n").count(), 4, "{list}");
    assert_eq!(list.matches("max block: 33554432").count(), 4, "{list}");
}

#[test]
fn the_example_prints_what_is_read() {
    let example = built("examples/serve_file");
    if !installed(LIBNBD_PYTHON) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (folder.path().join("file"), folder.path().join("socket"));
    fs::write(&file, vec![7; 100_000]).unwrap();
    let mut server =
        Command::new(example).args([&file, &socket]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let script = r#"
import nbd, sys, time
h = nbd.NBD()
for attempt in range(200):
    try:
        h.connect_unix(sys.argv[1])
        break
    except nbd.Error:
        h = nbd.NBD()
        time.sleep(0.05)
assert h.pread(512, 4096) == b"\x07" * 512
assert h.pread(1, 99_999) == b"\x07"
assert h.is_read_only() and h.get_size() == 100_000
h.shutdown()
"#;
    run(&[PYTHON, "-c", script, socket.to_str().unwrap()]);
    run(&["kill", "-INT", &server.id().to_string()]);
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut server.stdout.take().unwrap(), &mut printed).unwrap();
    assert!(server.wait().unwrap().success());
    assert_eq!(printed, "0x1000 0x200\n0x1869f 0x1\n");
    assert!(!socket.exists());
}

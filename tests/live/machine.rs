//! A qemu whose firmware finds nothing to boot. Its guest's writes are made by `qemu-io` through
//! the devices of the guest, as `docs/interop/live-block-operations.rst` in qemu does. Or it boots
//! a guest that writes files. It has the monitor that docs/live.md asks for.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_testutil::bootable;

/// How all names begin that the program gives.
const OURS: &str = "virt-bmap-";

/// How long anything may take that needs no appliance.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running machine. It ends when it is dropped.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Machine {
    /// Starts a machine with these disks, each an image and its format, and with a drive for
    /// removable media and flash memory, which are no disks.
    pub(crate) fn start(disks: &[(&Path, &str)]) -> Self {
        Self::start_with(disks, &[], "")
    }

    /// The same with disks on an I/O thread.
    pub(crate) fn start_with_thread(disks: &[(&Path, &str)]) -> Self {
        Self::start_with(disks, &["-object", "iothread,id=thread"], ",iothread=thread")
    }

    /// The same with a guest that writes files to the first disk, an ext4.
    pub(crate) fn start_writer(disks: &[(&Path, &str)], console: &Path) -> Self {
        let guest = bootable::writer();
        let file = |name| guest.join(name).display().to_string();
        let (kernel, initrd) = (file("kernel"), file("initrd"));
        let serial = format!("file:{}", console.display());
        let boot =
            ["-m", "256", "-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet panic=-1"];
        Self::start_with(disks, &[&boot[..], &["-serial", &serial]].concat(), "")
    }

    fn start_with(disks: &[(&Path, &str)], options: &[&str], of_disk: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flash = dir.path().join("flash");
        fs::write(&flash, vec![0; 528 << 10]).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-boot", "n"]);
        command.args(["-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd"]);
        for socket in ["test", "a", "b"] {
            let socket = dir.path().join(socket);
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        }
        for (number, (image, format)) in disks.iter().enumerate() {
            let drive = format!("file={},format={format},if=none,id=drive{number}", image.display());
            command.args(["-drive", &drive]);
            command
                .args(["-device", &format!("virtio-blk-pci,drive=drive{number},id=disk{number}{of_disk}")]);
        }
        command.args(options);
        let unused = format!("file={},format=raw,if=none,id=unused,readonly=on", flash.display());
        command.args(["-drive", &unused]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let socket = dir.path().join("test");
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "qemu does not listen: {error}"),
            }
            sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut machine = Self { dir, child, monitor: BufReader::new(stream) };
        machine.line();
        machine.execute("qmp_capabilities", &json!({}));
        machine
    }

    /// The socket of a monitor that the test itself does not use: `a` or `b`.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The answer to a command, or qemu's refusal.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.monitor.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut answer = self.line();
            for key in ["return", "error"] {
                if let Some(value) = answer.get_mut(key) {
                    return value.take();
                }
            }
        }
    }

    /// Makes the guest's disk `number` write: the arguments of the command `write` of qemu-io(1).
    pub(crate) fn write(&mut self, number: usize, words: &str) {
        let line = format!("qemu-io -d /machine/peripheral/disk{number}/virtio-backend \"write {words}\"");
        let said = self.execute("human-monitor-command", &json!({"command-line": line}));
        assert_eq!(said, "", "{line}");
    }

    fn ids(&mut self, query: &str, key: &str) -> Vec<String> {
        let arguments = if query.contains("nodes") { json!({"flat": true}) } else { json!({}) };
        let list = self.execute(query, &arguments);
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item[key].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The names of all jobs, exports and nodes, but for those of qemu.
    pub(crate) fn names(&mut self) -> Vec<String> {
        let mut names = self.ids("query-jobs", "id");
        names.extend(self.ids("query-block-exports", "id"));
        names.extend(self.ids("query-named-block-nodes", "node-name"));
        let sets = self.execute("query-fdsets", &json!({}));
        let files = sets.as_array().unwrap().iter().flat_map(|set| set["fds"].as_array().unwrap());
        names.extend(files.map(|file| file["opaque"].as_str().unwrap_or_default().to_owned()));
        names.retain(|name| !name.starts_with('#'));
        names
    }

    /// Whether the view of the guest is complete: its exports are the last that is made.
    pub(crate) fn has_view(&mut self, disks: usize) -> bool {
        self.ids("query-block-exports", "id").iter().filter(|id| id.starts_with(OURS)).count() == disks
    }

    /// Fails unless everything that the program has added is removed soon.
    pub(crate) fn assert_clean(&mut self) {
        let begun = Instant::now();
        loop {
            let names = self.names();
            if !names.iter().any(|name| name.starts_with(OURS)) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "left in qemu: {names:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Whether the NBD server of this qemu crashes when the disks are on an I/O thread.
    pub(crate) fn is_old(&mut self) -> bool {
        self.execute("query-version", &json!({}))["qemu"]["major"].as_u64().unwrap() < 9
    }

    /// Whether qemu serves NBD.
    pub(crate) fn serves(&mut self) -> bool {
        let socket = self.dir.path().join("probe");
        let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
        if self.execute("nbd-server-start", &address) != json!({}) {
            return true;
        }
        self.execute("nbd-server-stop", &json!({}));
        false
    }

    /// Ends the guest in order.
    pub(crate) fn quit(mut self) {
        self.execute("quit", &json!({}));
        self.child.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

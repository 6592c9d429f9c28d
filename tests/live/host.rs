//! Private libvirt hosts: a daemon of its own for each test, which no other program knows.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_testutil::sandbox::{NOBODY, Running, Sandbox};

/// How long anything may take that needs no appliance.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives the daemon of `qemu:///system` empty directories in place of the machine's, and the user
/// that Debian's package `libvirt-daemon-system` would make. It has no `/dev/kvm`: if that is there
/// and does not work, libvirt looks at qemu's capabilities again and again.
const SYSTEM: &str = r#"mount --make-rprivate /
for directory in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run; do
    mkdir -p "$directory"
    mount -t tmpfs -o mode=755 tmpfs "$directory"
done
for file in passwd group; do cp "/etc/$file" "/run/$file"; done
echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >>/run/passwd
echo 'libvirt-qemu:x:64055:' >>/run/group
for file in passwd group; do mount --bind "/run/$file" "/etc/$file"; done
mkdir -p /run/lock /run/dev/pts /run/dev/shm
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /run/dev
ln -s pts/ptmx /run/dev/ptmx
mount --rbind /dev/pts /run/dev/pts
mount --rbind /run/dev /dev
printf '%s\n' 'remember_owner = 0' 'namespaces = []' 'cgroup_controllers = []' \
    'security_driver = "none"' 'stdio_handler = "file"' >/etc/libvirt/qemu.conf
exec libvirtd"#;

/// A libvirt host with one domain. Both end when it is dropped.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    uri: &'static str,
}

impl Host {
    /// `qemu:///session` of the user `nobody`.
    pub(crate) fn session() -> Self {
        let dir = tempfile::Builder::new().prefix("vbl").tempdir().unwrap();
        for name in ["", "run", "config", "images"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            give(&dir.path().join(name));
        }
        // Without it, the daemon starts virtlogd, which stays for two minutes.
        let config = dir.path().join("config/libvirt");
        fs::create_dir(&config).unwrap();
        fs::write(config.join("qemu.conf"), "stdio_handler = \"file\"\n").unwrap();
        give(&config);
        let host = Self { dir, daemon: None, uri: "qemu:///session" };
        let daemon = host.command("libvirtd");
        host.run(daemon)
    }

    /// `qemu:///system`, in a mount namespace of its own.
    pub(crate) fn system() -> Self {
        let dir = tempfile::Builder::new().prefix("vbl").tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let host = Self { dir, daemon: None, uri: "qemu:///system" };
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-euc", SYSTEM]);
        host.run(command)
    }

    fn run(mut self, mut daemon: Command) -> Self {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        self.daemon = Some(daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let begun = Instant::now();
        while !self.command("virsh").args(["-c", self.uri, "-q", "list"]).output().unwrap().status.success() {
            assert!(begun.elapsed() < PATIENCE, "libvirtd does not answer");
            sleep(Duration::from_millis(100));
        }
        self
    }

    fn is_system(&self) -> bool {
        self.uri == "qemu:///system"
    }

    /// What stands before a command, so that it belongs to this host.
    fn wrapper(&self, directory: &Path) -> Vec<String> {
        if self.is_system() {
            let namespace = format!("--mount=/proc/{}/ns/mnt", self.daemon.as_ref().unwrap().id());
            return vec!["nsenter".into(), namespace, format!("--wd={}", directory.display())];
        }
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        ["setpriv".to_owned()].into_iter().chain(ids).chain(["--clear-groups".to_owned()]).collect()
    }

    fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        let names = [("XDG_RUNTIME_DIR", "run"), ("XDG_CONFIG_HOME", "config"), ("XDG_CACHE_HOME", "config")];
        names.into_iter().map(|(name, place)| (name, self.dir.path().join(place))).collect()
    }

    fn command(&self, program: &str) -> Command {
        let words = self.wrapper(self.dir.path());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).env("LC_ALL", "C");
        if !self.is_system() {
            command.envs(self.variables());
        }
        command
    }

    /// The output of a command of virsh(1).
    pub(crate) fn virsh(&self, words: &[&str]) -> Result<String, String> {
        let output = self.command("virsh").args(["-c", self.uri, "-q"]).args(words).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A copy of an image that the domain may use, as raw or qcow2.
    pub(crate) fn image(&self, from: &Path, format: &str) -> PathBuf {
        let name = from.file_name().unwrap().to_str().unwrap();
        let to = self.dir.path().join("images").join(format!("{name}.{format}"));
        let words = ["convert", "-f", "raw", "-O", format, from.to_str().unwrap(), to.to_str().unwrap()];
        virt_bmap_testutil::tools::run("qemu-img", words);
        give(&to);
        to
    }

    /// A path for a file that the domain's user may read.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("images").join(name)
    }

    /// Writes a description of the domain `guest` with these disks, each an image and its format.
    pub(crate) fn describe(&self, disks: &[(&Path, &str)]) -> PathBuf {
        let disk = |(number, (image, format)): (usize, &(&Path, &str))| {
            let target = ["vda", "vdb"][number];
            format!(
                "<disk type='file'><driver name='qemu' type='{format}'/><source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
                image.display()
            )
        };
        let disks: String = disks.iter().enumerate().map(disk).collect();
        let xml = format!(
            "<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory><os><type machine='pc'>hvm</type></os>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}\
             <disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk></devices></domain>"
        );
        let path = self.path("domain.xml");
        fs::write(&path, xml).unwrap();
        path
    }

    /// Makes the guest's disk `number` write: the arguments of the command `write` of qemu-io(1).
    pub(crate) fn write(&self, number: usize, words: &str) {
        let device = format!("/machine/peripheral/virtio-disk{number}/virtio-backend");
        let line = format!("qemu-io -d {device} \"write {words}\"");
        let said = self.virsh(&["qemu-monitor-command", "guest", "--hmp", &line]).unwrap();
        assert_eq!(said.trim(), "", "{line}");
    }

    /// The socket of the backup that runs, if one does.
    pub(crate) fn backup(&self) -> Option<String> {
        let xml = self.virsh(&["backup-dumpxml", "guest"]).ok()?;
        Some(xml.split_once("socket='")?.1.split_once('\'')?.0.to_owned())
    }

    /// Where the program runs, so that it finds this host.
    pub(crate) fn sandbox(&self) -> Sandbox {
        let mut sandbox = Sandbox::new();
        if self.is_system() {
            let wrapper = self.wrapper(&sandbox.cwd());
            return sandbox.wrapper(wrapper);
        }
        sandbox = sandbox.run_as_nobody();
        for (name, value) in self.variables().into_iter().take(2) {
            sandbox = sandbox.env(name, value);
        }
        sandbox
    }

    /// Starts the program in a sandbox, with these arguments and the domain, which runs.
    pub(crate) fn start(&self, sandbox: Sandbox, words: &[&str]) -> Running {
        self.ask(sandbox, &[words, &["--live"]].concat())
    }

    /// Starts the program in a sandbox, with these arguments and the domain.
    pub(crate) fn ask(&self, sandbox: Sandbox, words: &[&str]) -> Running {
        sandbox.start([words, &["-d", "guest", "-c", self.uri]].concat())
    }

    /// Maps the domain while it runs.
    pub(crate) fn map(&self, words: &[&str]) -> Running {
        self.start(self.sandbox(), &[&["-o", "guest.bmap"], words].concat())
    }

    /// The same while the domain runs, until the backup has begun.
    pub(crate) fn begin(&self, words: &[&str]) -> Running {
        let mut run = self.map(words);
        run.wait_until("the backup begins", |_| self.backup().is_some());
        run
    }

    /// Waits until no backup runs.
    pub(crate) fn wait_until_no_backup(&self) {
        let begun = Instant::now();
        while let Some(socket) = self.backup() {
            assert!(begun.elapsed() < PATIENCE, "the backup on {socket} does not end");
            sleep(Duration::from_millis(50));
        }
    }

    /// Fails unless nothing of the program is left in the domain soon.
    pub(crate) fn assert_clean(&self, socket: &str) {
        let begun = Instant::now();
        let directory = Path::new(socket).parent().unwrap().to_str().unwrap();
        let files = || {
            let output = self.command("ls").arg(directory).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        while self.backup().is_some() || files().contains("virt-bmap-") {
            assert!(begun.elapsed() < PATIENCE, "left: {:?}, {}", self.backup(), files());
            sleep(Duration::from_millis(50));
        }
        assert!(files().contains("monitor.sock"), "{}", files());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.virsh(&["destroy", "guest"]);
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Gives a file to `nobody`.
fn give(path: &Path) {
    let id = NOBODY.parse().unwrap();
    chown(path, Some(id), Some(id)).unwrap();
}

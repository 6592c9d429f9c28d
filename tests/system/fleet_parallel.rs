//! GNU parallel runs the shares of a fleet over ssh, with the commands that `docs/fleet.md` shows.

use crate::PROGRAM;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_testutil::sandbox::{kill, processes_with};
use virt_bmap_testutil::servers::{Server, sshd};
use virt_bmap_testutil::tools::{self, needs};

/// The number of guests in the fleet.
const GUESTS: usize = 12;

/// Runs the program with a script as the mapper.
const PROGRAM_WITH_MAPPER: &str = r#"#!/bin/sh
case "$2" in run) set -- "$@" --mapper "$SHARED/mapper" ;; esac
exec "$PROGRAM" "$@"
"#;

/// A script in place of the mapper. It writes down the guest, and from where it was started. If the
/// image has a `.slow` file, the script removes the file and sleeps.
const MAPPER: &str = r#"#!/bin/sh
for word; do
    case $word in */map.*) maps="$maps $word" ;; esac
    image=$word
done
echo "$(basename "$image") ${SSH_CONNECTION:-local}" >> "$SHARED/log"
[ ! -e "$image.slow" ] || { rm "$image.slow"; exec sleep 1000; }
for map in $maps; do echo "map of $image" > "$map"; done
echo '{"event":"done","partitions":0,"volumes":0,"filesystems":0,"directories":0,"files":0}' >&2
"#;

/// An ssh server on the loopback interface, and a directory. The names `host1`, `host2` and `host3`
/// are this server, and share the directory.
struct Hosts {
    _server: Server,
    dir: tempfile::TempDir,
}

impl Hosts {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("vbssh").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "shared", "shared/images"] {
            fs::create_dir(at(name)).unwrap();
        }
        for (name, script) in [("bin/virt-bmap-rs", PROGRAM_WITH_MAPPER), ("shared/mapper", MAPPER)] {
            fs::write(at(name), script).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(0o755)).unwrap();
        }
        let (d, path) = (dir.path().display(), std::env::var("PATH").unwrap());
        let more = format!("SetEnv PATH={d}/bin:{path} SHARED={d}/shared PROGRAM={PROGRAM}\n");
        let server = sshd(dir.path(), "host1 host2 host3", &more);
        Self { _server: server, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// A command on this machine, with the same environment as on the hosts.
    fn command(&self, program: &str) -> Command {
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        let mut command = tools::command(program);
        command.env("PATH", path).env("SHARED", self.at("shared")).env("PROGRAM", PROGRAM);
        command.env("PARALLEL_SSH", format!("ssh -F {}", self.at("ssh_config").display()));
        command.env("HOME", self.dir.path()).env("SHELL", "/bin/bash").env_remove("SSH_CONNECTION");
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs lines of the documentation in bash. Only `/shared` is replaced by another directory.
    fn run(&self, lines: &str) -> Output {
        let lines = lines.replace("/shared/", &format!("{}/", self.at("shared").display()));
        self.command("bash").arg("-c").arg(&lines).output().unwrap()
    }

    /// From where mappers were started, by guest.
    fn begun(&self) -> BTreeMap<String, Vec<String>> {
        let mut begun: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.log("shared/log").lines() {
            let (guest, by) = line.split_once(' ').unwrap();
            begun.entry(guest.to_owned()).or_default().push(by.to_owned());
        }
        begun
    }
}

/// The command lines that `docs/fleet.md` shows.
fn documented() -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet.md")).unwrap();
    let (_, block) = page.split_once("```sh tested=tests/system/fleet_parallel.rs\n").unwrap();
    block.split_once("\n```").unwrap().0.to_owned()
}

#[test]
fn three_hosts_map_a_share_each() {
    needs!("parallel", "sshd", "ssh", "ssh-keygen", "bash");
    let hosts = Hosts::start();
    for number in 0..GUESTS {
        fs::write(hosts.at("shared/images").join(format!("g{number:02}.raw")), b"image").unwrap();
    }
    let mut plan = hosts.command("bash");
    plan.args(["-c", "virt-bmap-rs fleet plan shared/images -o shared/guests.jsonl"]);
    tools::output(&mut plan);

    // The mapper of one guest sleeps, and the test kills it. The second run maps this guest.
    fs::write(hosts.at("shared/images/g05.raw.slow"), b"").unwrap();
    let lines = documented();
    assert!(lines.contains("parallel --env fleet -S host1,host2,host3"), "{lines}");
    let first = std::thread::scope(|scope| {
        let run = scope.spawn(|| hosts.run(&lines.replace(" -q ", " --retries=0 -q ")));
        let begun = Instant::now();
        let is_held_up =
            || hosts.begun().contains_key("g05.raw") && !hosts.at("shared/images/g05.raw.slow").exists();
        while !is_held_up() {
            assert!(
                begun.elapsed() < Duration::from_secs(120) && !run.is_finished(),
                "{}",
                hosts.log("sshd.log")
            );
            sleep(Duration::from_millis(20));
        }
        end_sleeper(&hosts.at("shared"));
        run.join().unwrap()
    });
    assert_eq!(first.status.code(), Some(3), "{}", String::from_utf8_lossy(&first.stderr));
    let second = hosts.run(&lines);
    assert_eq!(second.status.code(), Some(0), "{}", String::from_utf8_lossy(&second.stderr));

    let begun = hosts.begun();
    assert_eq!(begun.len(), GUESTS, "{begun:?}");
    let twice: Vec<_> =
        begun.iter().filter(|(_, by)| by.len() > 1).map(|(guest, by)| (&**guest, by.len())).collect();
    assert_eq!(twice, [("g05.raw", 2)]);
    assert!(begun.values().flatten().all(|by| by.starts_with("127.0.0.1 ")), "not over ssh: {begun:?}");
    let connections: std::collections::BTreeSet<_> = begun.values().map(|by| &by[0]).collect();
    assert_eq!(connections.len(), 3, "each share has a host of its own: {begun:?}");
    let records = virt_bmap_testutil::fleet::records(&hosts.at("shared/maps/fleet.jsonl"));
    assert_eq!(records.values().filter(|record| record["status"] == "complete").count(), GUESTS);
    let tables = (1..=3).map(|share| hosts.log(&format!("shared/share.{share}.csv")));
    assert_eq!(tables.map(|table| table.lines().count() - 1).sum::<usize>(), GUESTS);
}

/// Kills the mapper that sleeps. Its environment identifies it.
fn end_sleeper(shared: &Path) {
    let mark = format!("SHARED={}", shared.display());
    let mut processes = processes_with(&mark).into_iter();
    let sleeper = processes.find(|(_, directory)| {
        fs::read(directory.join("cmdline")).is_ok_and(|line| line == b"sleep\x001000\x00")
    });
    let (pid, _) = sleeper.expect("a mapper sleeps");
    kill(pid, rustix::process::Signal::KILL);
}

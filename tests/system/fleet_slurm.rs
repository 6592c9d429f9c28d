//! A fleet as a Slurm job array. The cluster has two nodes, and both run on this machine.

use crate::PROGRAM;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_testutil::sandbox::run;
use virt_bmap_testutil::tools::{self, needs};

/// The time limit for everything that the test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A controller, two nodes, and munge. They are children of the test, and all their files are in
/// one directory.
struct Cluster {
    dir: PathBuf,
    daemons: Vec<Child>,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        // munged requires that other users can reach its socket, but cannot read its key.
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "spool.n1", "spool.n2"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let key = dir.join("key");
        let mut random = [0; 1024];
        File::open("/dev/urandom").unwrap().read_exact_at(&mut random, 0).unwrap();
        fs::write(&key, random).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
        fs::write(dir.join("slurm.conf"), configuration(dir)).unwrap();

        let mut cluster = Self { dir: dir.to_owned(), daemons: Vec::new() };
        let munge = |name: &str| format!("--{name}-file={}", dir.join(format!("munge.{name}")).display());
        let socket = format!("--socket={}", dir.join("munge.socket").display());
        let key = format!("--key-file={}", key.display());
        cluster.daemon("munged", &["-F", &socket, &key, &munge("pid"), &munge("log"), &munge("seed")]);
        cluster.wait("munge's socket", || dir.join("munge.socket").exists());
        cluster.daemon("slurmctld", &["-D", "-i"]);
        cluster.wait("the controller", || cluster.ask("scontrol", &["ping"]).contains("UP"));
        cluster.daemon("slurmd", &["-D", "-N", "n1"]);
        cluster.daemon("slurmd", &["-D", "-N", "n2"]);
        cluster.wait("two nodes", || {
            let states = cluster.ask("sinfo", &["-h", "-N", "-o", "%t"]);
            states.lines().filter(|state| state.trim() == "idle").count() == 2
        });
        cluster
    }

    fn command(&self, program: &str) -> Command {
        let mut command = tools::command(program);
        command.env("SLURM_CONF", self.dir.join("slurm.conf")).current_dir(&self.dir);
        command
    }

    fn daemon(&mut self, program: &str, args: &[&str]) {
        let log = File::create(self.dir.join(format!("{program}.{}.out", self.daemons.len()))).unwrap();
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    /// The output of a client of Slurm. It is empty if the client fails.
    fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !reached() {
            if begun.elapsed() > PATIENCE {
                let logs = fs::read_dir(&self.dir).unwrap().flatten().map(|entry| entry.path());
                let logs = logs
                    .filter(|path| path.extension().is_some_and(|suffix| suffix == "out" || suffix == "log"));
                let logs: Vec<_> = logs.map(|path| (path.clone(), fs::read_to_string(path))).collect();
                panic!("waited in vain for {what}\n{}\n{logs:#?}", self.ask("squeue", &[]));
            }
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.command("scancel").args(["--state=PENDING", "--me"]).output();
        let _ = self.command("scancel").args(["--state=RUNNING", "--me"]).output();
        // Stop the nodes first, then the controller, then munge.
        for daemon in self.daemons.iter_mut().rev() {
            let pid = rustix::process::Pid::from_child(daemon);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            let begun = Instant::now();
            while daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
                if begun.elapsed() > Duration::from_secs(20) {
                    daemon.kill().ok();
                }
                sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The configuration of the cluster. It has no accounting and no control groups. Slurm finds the
/// processes of a job by their parents.
fn configuration(dir: &Path) -> String {
    let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    let output =
        |program: &str, arg: &str| String::from_utf8(tools::run(program, [arg])).unwrap().trim().to_owned();
    let (host, user) = (output("hostname", "-s"), output("id", "-un"));
    let d = dir.display();
    let [controller, first, second] = ports[..] else { unreachable!() };
    format!(
        "ClusterName=fleet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={d}/munge.socket,cred_expire=5
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool.%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=100 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=100 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP
"
    )
}

/// A script in place of the mapper of each guest.
const MAPPER: &str = r#"#!/bin/sh
for word; do
    case $word in */map.*) maps="$maps $word" ;; esac
    image=$word
done
echo "$(basename "$image") ${SLURM_ARRAY_TASK_ID}.${SLURM_RESTART_COUNT:-0} $SLURMD_NODENAME" >> "$LOG"
sleep 0.5
for map in $maps; do echo "map of $image" > "$map"; done
echo '{"event":"done","partitions":0,"volumes":0,"filesystems":0,"directories":0,"files":0}' >&2
"#;

#[test]
fn a_job_array_whose_task_is_killed_and_queued_again() {
    needs!("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo", "hostname");
    let dir = tempfile::Builder::new().prefix("vbslurm").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("images")).unwrap();
    for number in 0..24 {
        fs::write(at("images").join(format!("g{number:02}.raw")), b"image").unwrap();
    }
    fs::write(at("mapper"), MAPPER).unwrap();
    fs::set_permissions(at("mapper"), Permissions::from_mode(0o755)).unwrap();
    let manifest = at("guests.jsonl");
    let plan = [
        "fleet".as_ref(),
        "plan".as_ref(),
        at("images").into_os_string().as_os_str(),
        "-o".as_ref(),
        manifest.as_os_str(),
    ]
    .map(OsStr::to_owned);
    run(plan).assert_code(0);

    fs::create_dir(at("cluster")).unwrap();
    let cluster = Cluster::start(&at("cluster"));
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/slurm/fleet.sbatch");
    let exported = format!(
        "--export=ALL,MANIFEST={},MAPS={},MAPPER={},LOG={},VIRT_BMAP={PROGRAM}",
        manifest.display(),
        at("maps").display(),
        at("mapper").display(),
        at("log").display()
    );
    let submitted =
        cluster.ask("sbatch", &["--parsable", "--array=1-4", "--cpus-per-task=1", &exported, job]);
    let array: u32 = submitted.trim().parse().unwrap_or_else(|_| panic!("sbatch: {submitted:?}"));
    let log = || fs::read_to_string(at("log")).unwrap_or_default();
    let begun_by = |task: &str| log().lines().filter(|line| line.split(' ').nth(1) == Some(task)).count();

    // The second task is requeued in the middle of its second guest.
    cluster.wait("the second task's second guest", || begun_by("2.0") >= 2);
    tools::output(cluster.command("scontrol").args(["requeue", &format!("{array}_2")]));
    cluster.wait("the task to begin again", || begun_by("2.1") >= 1);
    cluster.wait("the end of the array", || cluster.ask("squeue", &["-h"]).trim().is_empty());

    let merged = run(["fleet", "merge", "--json", "--out-dir", at("maps").to_str().unwrap()]);
    merged.assert_code(0);
    let answer: Value = serde_json::from_slice(&merged.stdout).unwrap();
    assert_eq!(answer["summary"]["complete"], 24);
    assert_eq!(fs::read_to_string(at("maps").join("fleet.jsonl")).unwrap().lines().count(), 24);
    assert_eq!(fs::read_dir(at("maps/.fleet/work")).unwrap().count(), 0);
    // Every guest was mapped once, except for the one that the requeued task was mapping.
    let mut begun: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in log().lines() {
        let (guest, by) = line.split_once(' ').unwrap();
        begun.entry(guest.to_owned()).or_default().push(by.to_owned());
    }
    assert_eq!(begun.len(), 24);
    let twice: Vec<_> = begun.values().filter(|by| by.len() > 1).collect();
    assert!(
        twice.len() <= 1 && twice.iter().all(|by| by.len() == 2 && by[0].starts_with("2.0")),
        "{begun:?}"
    );
    let nodes = |name: &str| begun.values().flatten().any(|by| by.ends_with(name));
    assert!(nodes("n1") || nodes("n2"), "{begun:?}");
}

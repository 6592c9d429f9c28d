//! A consistent view of a qemu by its monitor.
//!
//! For each disk a *scratch* image is added, a qcow2 over the node of the disk, and a backup job
//! with `sync=none` whose target it is: before the guest's first write to a cluster, the job copies
//! the old data there. Read through the scratch image, the disk stays as it was when the job
//! started; this is *image fleecing* (`docs/interop/live-block-operations.rst` in qemu). One
//! transaction starts all jobs, so all disks are of one moment.
//!
//! The scratch images are unnamed files, and the NBD server's socket is in a directory of ours.
//! qemu gets both as open files, so it needs no right to any path.

use super::owner::Owner;
use super::scratch::Scratch;
use super::watchdog::{self, Watchdog};
use super::{Disk, FIXED, LeftOut, LiveError, Quiesced, Wanted};
use crate::qmp::{Qmp, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_child as child;
use virt_bmap_image::{NbdUri, Server, private_directory};
use virt_bmap_map::ImageFile;

/// Time for jobs, exports and nodes to end.
const END: Duration = Duration::from_secs(60);

/// Interval of looking whether they have.
const TICK: Duration = Duration::from_millis(20);

/// Time for `qemu-img create`, which writes a few tables.
const CREATE: Duration = Duration::from_secs(20);

/// Most images of a chain that are named.
const MOST_LINKS: usize = 200;

/// Drivers of nodes that stand over an image and change nothing in it, see `BlockdevDriver` in
/// `qapi/block-core.json`. qemu lists what is below as their backing image.
const FILTERS: [&str; 5] = ["throttle", "copy-on-read", "copy-before-write", "preallocate", "compress"];

/// The name of the socket in its directory.
const SOCKET: &str = "live.sock";

/// A qemu whose disks can be read as they were.
#[derive(Debug)]
pub(super) struct Qemu {
    socket: PathBuf,
    qmp: Qmp,
    owner: Owner,
    jobs: usize,
    /// The scratch images. They have no names, so they are gone when qemu and this process have
    /// closed them.
    _files: Vec<File>,
}

/// The parts of `BlockInfo` and what is in it (`qapi/block-core.json` in qemu) that matter here.
#[derive(Deserialize)]
struct Device {
    device: String,
    qdev: Option<String>,
    removable: bool,
    inserted: Option<Medium>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Medium {
    node_name: Option<String>,
    ro: bool,
    image: Image,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: String,
    format: String,
    virtual_size: u64,
    backing_image: Option<Box<Image>>,
}

/// What has an id: a job, an export.
#[derive(Deserialize)]
struct WithId {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u64,
    fds: Vec<Fd>,
}

#[derive(Deserialize)]
struct Fd {
    opaque: Option<String>,
}

/// A disk of the guest.
struct Source {
    name: String,
    node: String,
    size: u64,
    files: Vec<ImageFile>,
}

impl Qemu {
    /// Makes the view. What is in the way of a run that was killed is removed first.
    pub(super) fn begin(socket: &Path, wanted: &Wanted) -> Result<super::Parts, LiveError> {
        let at = |source| LiveError::Monitor { socket: socket.to_owned(), source };
        let mut qmp = Qmp::connect(socket).map_err(at)?;
        let threads = qmp.query::<Vec<Value>>("query-iothreads", &json!({})).map_err(at)?;
        if !threads.is_empty() && qmp.version().is_none_or(|version| version < FIXED) {
            return Err(LiveError::Unsafe { guest: socket.display().to_string() });
        }
        remove_leftovers(&mut qmp, at)?;
        let (sources, left_out) = sources(&mut qmp).map_err(at)?;
        if sources.is_empty() {
            return Err(LiveError::NoDisk { guest: socket.display().to_string() });
        }
        let place = wanted.scratch_directory.clone().unwrap_or_else(std::env::temp_dir);
        let total = sources.iter().map(|source| source.size).fold(0, u64::saturating_add);
        let mut scratch = Scratch::new(&place, wanted.scratch_limit, total)?;

        let set_up = |what: &str| {
            let what = what.to_owned();
            move |source| LiveError::SetUp { what, source }
        };
        let directory = private_directory().map_err(set_up("a directory for a socket"))?.keep();
        let owner = Owner::ours();
        let undo = watchdog::Undo::Qemu(Undo { owner: owner.to_string(), directory: directory.clone() });
        let monitor = qmp.stream().try_clone().map_err(set_up("a watchdog process"))?;
        let watchdog = Watchdog::start(undo, Some(monitor))?;

        let mut files = Vec::new();
        for (number, source) in sources.iter().enumerate() {
            let file = scratch_image(&place, source.size).map_err(set_up("a scratch file"))?;
            scratch.add(format!("/proc/self/fd/{}", file.as_raw_fd()).into());
            add_scratch(&mut qmp, &owner.name(number), &source.node, &file).map_err(at)?;
            files.push(file);
        }
        let listening = directory.join(SOCKET);
        let listener = UnixListener::bind(&listening).map_err(set_up("a socket"))?;
        serve(&mut qmp, owner, &listener).map_err(at)?;
        drop(listener);
        start(&mut qmp, owner, &sources).map_err(at)?;
        let disks = sources.into_iter().enumerate().map(|(number, source)| {
            let name = owner.name(number);
            let export =
                json!({"type": "nbd", "id": name, "node-name": name, "name": source.name, "writable": false});
            qmp.execute("block-export-add", &export).map_err(at)?;
            let uri = NbdUri::new(Server::Unix(listening.clone()), &source.name, false)?;
            Ok(Disk { name: source.name, uri, files: source.files, context: None })
        });
        let disks = disks.collect::<Result<Vec<_>, LiveError>>()?;
        let guest = Self { socket: socket.to_owned(), qmp, owner, jobs: disks.len(), _files: files };
        let (guest, quiesced) = (super::Guest::Qemu(Box::new(guest)), Quiesced::NotAsked);
        Ok(super::Parts { guest, disks, left_out, quiesced, scratch, watchdog })
    }

    /// Whether all jobs still run. Without its job, a scratch image shows the disk as it is now.
    pub(super) fn holds(&mut self) -> Result<bool, LiveError> {
        /// The parts of `JobInfo` (`qapi/job.json` in qemu) that matter here.
        #[derive(Deserialize)]
        struct Job {
            id: String,
            status: String,
        }
        let jobs = self.qmp.query::<Vec<Job>>("query-jobs", &json!({}));
        let jobs = jobs.map_err(|source| LiveError::Monitor { socket: self.socket.clone(), source })?;
        let runs = |job: &&Job| Owner::of(&job.id) == Some(self.owner) && job.status == "running";
        Ok(jobs.iter().filter(runs).count() == self.jobs)
    }
}

/// The writable disks, in the order in which qemu lists them, and what else it lists.
fn sources(qmp: &mut Qmp) -> Result<(Vec<Source>, Vec<LeftOut>), QmpError> {
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    let directory = directory_of(qmp.stream());
    for (number, device) in qmp.query::<Vec<Device>>("query-block", &json!({}))?.into_iter().enumerate() {
        let qdev = device.qdev.unwrap_or_default();
        let id = qdev.rsplit('/').find(|part| *part != "virtio-backend").unwrap_or_default();
        let is_taken = |name: &str| found.iter().any(|source: &Source| source.name == name);
        let name = [&device.device, id].into_iter().find(|name| !name.is_empty() && !is_taken(name));
        let name = name.map_or_else(|| format!("disk{number}"), str::to_owned);
        let mut leave_out = |reason| left_out.push(LeftOut { name: name.clone(), reason });
        let Some(Medium { node_name: Some(node), ro, image }) = device.inserted else {
            leave_out("it has no medium");
            continue;
        };
        if device.removable {
            leave_out("it is a drive for removable media");
        } else if qdev.is_empty() {
            leave_out("no device of the guest uses it");
        } else if ro {
            leave_out("the guest cannot write to it");
        } else if is_flash(qmp, &qdev)? {
            leave_out("it is flash memory, for the firmware");
        } else {
            let size = image.virtual_size.checked_next_multiple_of(512).ok_or(QmpError::Protocol)?;
            let files = chain(image, directory.as_deref());
            found.push(Source { name, node, size, files });
        }
    }
    Ok((found, left_out))
}

/// Whether a device is flash memory: `hw/block/pflash_cfi01.c` and its sibling in qemu.
fn is_flash(qmp: &mut Qmp, qdev: &str) -> Result<bool, QmpError> {
    // The names of devices without an id are paths.
    let path = if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") };
    match qmp.execute("qom-get", &json!({"path": path, "property": "type"})) {
        Ok(kind) => Ok(kind.as_str().is_some_and(|kind| kind.starts_with("cfi.pflash"))),
        Err(QmpError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The working directory of qemu, if it is the process that listens at this connection.
fn directory_of(stream: &UnixStream) -> Option<PathBuf> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    fs::read_link(format!("/proc/{}/cwd", peer.pid.as_raw_nonzero())).ok()
}

/// The images of a chain, from the top.
fn chain(image: Image, directory: Option<&Path>) -> Vec<ImageFile> {
    let mut files = Vec::new();
    let mut next = Some(Box::new(image));
    while let Some(image) = next.filter(|_| files.len() < MOST_LINKS) {
        let name = Path::new(OsStr::from_bytes(image.filename.as_bytes()));
        let name = match directory {
            // Anything but a path of a file has a colon: nbd:…, json:….
            Some(directory) if !image.filename.contains(':') => directory.join(name),
            _ => name.to_owned(),
        };
        if !FILTERS.contains(&&*image.format) || image.backing_image.is_none() {
            files.push(ImageFile { name: name.into_os_string().into_encoded_bytes(), format: image.format });
        }
        next = image.backing_image;
    }
    files
}

/// A new qcow2 without a name.
fn scratch_image(place: &Path, size: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(place)?;
    let mut command = child::command("qemu-img".as_ref());
    let path = child::inherit(&mut command, file.as_fd().try_clone_to_owned()?);
    command.args(["create", "-q", "-f", "qcow2", &path, &size.to_string()]);
    let output = child::run(command, CREATE)?;
    if output.status.success() { Ok(file) } else { Err(io::Error::other(child::message(&output.stderr))) }
}

/// Gives the file to qemu, as an image over this node.
fn add_scratch(qmp: &mut Qmp, name: &str, node: &str, file: &File) -> Result<(), QmpError> {
    /// The answer of `add-fd`.
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Added {
        fdset_id: u64,
    }
    let added = qmp.execute_with("add-fd", &json!({"opaque": name}), Some(file.as_fd()))?;
    let added: Added = serde_json::from_value(added).map_err(|_| QmpError::Protocol)?;
    let filename = format!("/dev/fdset/{}", added.fdset_id);
    let node = json!({
        "driver": "qcow2",
        "node-name": name,
        "file": {"driver": "file", "filename": filename},
        "backing": node,
    });
    qmp.execute("blockdev-add", &node).map(drop)
}

/// Lets qemu serve NBD at our socket.
fn serve(qmp: &mut Qmp, owner: Owner, listener: &UnixListener) -> Result<(), QmpError> {
    let name = owner.to_string();
    qmp.execute_with("getfd", &json!({"fdname": name}), Some(listener.as_fd()))?;
    let address = json!({"addr": {"type": "fd", "data": {"str": name}}});
    qmp.execute("nbd-server-start", &address).map(drop)
}

/// Starts all jobs at one moment.
fn start(qmp: &mut Qmp, owner: Owner, sources: &[Source]) -> Result<(), QmpError> {
    // What happens if old data cannot be kept. By default the guest's write fails; since qemu 10.1
    // the backup can be what fails.
    let schema = qmp.execute("query-qmp-schema", &json!({}))?;
    let policy = if is_member(&schema, "on-cbw-error") { Some("break-snapshot") } else { None };
    let action = |(number, source): (usize, &Source)| {
        let name = owner.name(number);
        let mut job = json!({"job-id": name, "device": source.node, "target": name, "sync": "none"});
        if let Some(policy) = policy {
            job["on-cbw-error"] = json!(policy);
        }
        json!({"type": "blockdev-backup", "data": job})
    };
    let actions: Vec<Value> = sources.iter().enumerate().map(action).collect();
    qmp.execute("transaction", &json!({"actions": actions})).map(drop)
}

/// Whether `blockdev-backup` has this argument: an object of the schema has it, and `sync`.
fn is_member(schema: &Value, argument: &str) -> bool {
    schema.as_array().into_iter().flatten().any(|entity| {
        let members = entity.get("members").and_then(Value::as_array);
        let has = |name: &str| members.into_iter().flatten().any(|member| member["name"] == name);
        has(argument) && has("sync") && has("job-id")
    })
}

/// Removes what runs that have ended left.
fn remove_leftovers(qmp: &mut Qmp, at: impl Fn(QmpError) -> LiveError) -> Result<(), LiveError> {
    let mut names = nodes(qmp).map_err(&at)?;
    names.extend(ids(qmp, "query-jobs").map_err(&at)?);
    names.extend(ids(qmp, "query-block-exports").map_err(&at)?);
    let mut owners: Vec<Owner> = names.iter().filter_map(|name| Owner::of(name)).collect();
    owners.dedup();
    for owner in owners {
        if owner.is_alive() {
            return Err(LiveError::Busy { process: owner.process() });
        }
        undo(qmp, owner, None).map_err(&at)?;
    }
    Ok(())
}

/// The ids that a query returns.
fn ids(qmp: &mut Qmp, query: &str) -> Result<Vec<String>, QmpError> {
    Ok(qmp.query::<Vec<WithId>>(query, &json!({}))?.into_iter().map(|with| with.id).collect())
}

/// The names of all nodes.
fn nodes(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let nodes: Vec<Node> = qmp.query("query-named-block-nodes", &json!({"flat": true}))?;
    Ok(nodes.into_iter().filter_map(|node| node.node_name).collect())
}

/// Those of `names` that this owner has given.
fn of_owner(names: Vec<String>, owner: Owner) -> Vec<String> {
    names.into_iter().filter(|name| Owner::of(name) == Some(owner)).collect()
}

/// What has to be undone in a qemu.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Undo {
    owner: String,
    /// That of the socket.
    directory: PathBuf,
}

impl Undo {
    /// Undoes everything that is there.
    pub(super) fn run(&self, monitor: UnixStream) -> Result<(), LiveError> {
        let socket = self.directory.join(SOCKET);
        let owner = Owner::of(&self.owner).ok_or_else(|| LiveError::NotUndone(self.owner.clone()))?;
        let result = undo(&mut Qmp::resume(monitor), owner, Some(&socket));
        // What is not there need not be removed.
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_dir(&self.directory);
        result.map_err(|error| LiveError::NotUndone(virt_bmap_ranges::error_chain(&error).to_string()))
    }
}

/// Ends the jobs of an owner and removes what they needed; nothing else. If qemu serves at `socket`,
/// it stops.
fn undo(qmp: &mut Qmp, owner: Owner, socket: Option<&Path>) -> Result<(), QmpError> {
    // A refusal means that it has ended by itself. That all is gone is checked below.
    for job in of_owner(ids(qmp, "query-jobs")?, owner) {
        accept(qmp.execute("job-cancel", &json!({"id": job})))?;
    }
    let exports = of_owner(ids(qmp, "query-block-exports")?, owner);
    for export in &exports {
        accept(qmp.execute("block-export-del", &json!({"id": export, "mode": "hard"})))?;
    }
    let deadline = Instant::now() + END;
    while !of_owner(ids(qmp, "query-jobs")?, owner).is_empty()
        || !of_owner(ids(qmp, "query-block-exports")?, owner).is_empty()
    {
        wait(deadline)?;
    }
    // Only a run that has started the server has exports.
    accept(qmp.execute("closefd", &json!({"fdname": owner.to_string()})))?;
    if !exports.is_empty() || socket.is_some_and(|socket| UnixStream::connect(socket).is_ok()) {
        accept(qmp.execute("nbd-server-stop", &json!({})))?;
    }
    loop {
        let nodes = of_owner(nodes(qmp)?, owner);
        if nodes.is_empty() {
            break;
        }
        for node in nodes {
            accept(qmp.execute("blockdev-del", &json!({"node-name": node})))?;
        }
        wait(deadline)?;
    }
    for set in qmp.query::<Vec<FdSet>>("query-fdsets", &json!({}))? {
        let mut names = set.fds.iter().filter_map(|fd| fd.opaque.as_deref());
        if names.any(|name| Owner::of(name) == Some(owner)) {
            accept(qmp.execute("remove-fd", &json!({"fdset-id": set.fdset_id})))?;
        }
    }
    Ok(())
}

/// A refusal is an answer, too.
fn accept(answer: Result<Value, QmpError>) -> Result<(), QmpError> {
    match answer {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn wait(deadline: Instant) -> Result<(), QmpError> {
    if Instant::now() > deadline {
        return Err(QmpError::Silent);
    }
    sleep(TICK);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_named_from_the_top() {
        let image = json!({"filename": "top.qcow2", "format": "qcow2", "virtual-size": 7, "backing-image":
            {"filename": "/base.raw", "format": "raw", "virtual-size": 7}});
        let files = chain(serde_json::from_value(image).unwrap(), Some(Path::new("/images")));
        let names: Vec<_> = files.iter().map(|file| (&*file.name, &*file.format)).collect();
        assert_eq!(names, [(&b"/images/top.qcow2"[..], "qcow2"), (b"/base.raw", "raw")]);
        let image = json!({"filename": "json:{}", "format": "throttle", "virtual-size": 7, "backing-image":
            {"filename": "nbd://host/x", "format": "raw", "virtual-size": 7}});
        let files = chain(serde_json::from_value(image).unwrap(), Some(Path::new("/images")));
        assert_eq!(files[0].name, b"nbd://host/x");
    }

    #[test]
    fn an_argument_is_found_in_the_schema() {
        let member = |name: &str| json!({"name": name, "type": "str"});
        let backup =
            json!({"name": "7", "members": [member("job-id"), member("sync"), member("on-cbw-error")]});
        let other = json!({"name": "8", "members": [member("on-cbw-error"), member("file")]});
        assert!(is_member(&json!([other, backup]), "on-cbw-error"));
        assert!(!is_member(&json!([other]), "on-cbw-error"));
        assert!(!is_member(&json!("nonsense"), "on-cbw-error"));
    }
}

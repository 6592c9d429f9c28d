//! A consistent view of a libvirt domain: a backup in pull mode (`backup-begin` in virsh(1), "Backup
//! XML format" in libvirt's documentation).
//!
//! The socket lies in the domain's own directory, where qemu may write under AppArmor and SELinux,
//! and nobody but qemu's user and root may look. libvirt makes and labels the scratch files, and
//! removes them with the job.

use super::owner::Owner;
use super::scratch::Scratch;
use super::watchdog::{self, Watchdog};
use super::{Disk, FIXED, LeftOut, LiveError, Quiesced, Wanted};
use crate::fleet::libvirt::{DiskXml, Host, LibvirtError, escaped};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_image::{NbdUri, Server};
use virt_bmap_map::ImageFile;

/// Time for the end of a backup.
const END: Duration = Duration::from_secs(60);

/// Time after which libvirt no longer starts a job that a killed process has asked for.
const BEGIN: Duration = Duration::from_secs(5);

/// Interval of looking whether it has ended.
const TICK: Duration = Duration::from_millis(50);

/// Longest path of a Unix socket, see unix(7).
const MAX_SOCKET: usize = 107;

/// A domain whose disks can be read as they were.
#[derive(Debug)]
pub(super) struct Domain {
    host: Host,
    undo: Undo,
}

/// What has to be undone in a domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Undo {
    uri: Option<String>,
    uuid: String,
    /// The job is ours if this is its socket.
    socket: PathBuf,
    scratch: Vec<PathBuf>,
    /// Whether libvirt may still be about to start the job.
    may_begin: bool,
    /// Whether the guest's filesystems may be frozen.
    thaw: bool,
    /// The checkpoint that is made with the backup, as long as there is no map of its moment.
    checkpoint: Option<String>,
}

impl Domain {
    /// Makes the view. What is in the way of a run that was killed is removed first.
    pub(super) fn begin(host: &Host, domain: &str, wanted: &Wanted) -> Result<super::Parts, LiveError> {
        let described = host.described(domain)?;
        let (name, uuid) = (described.name, described.uuid);
        let by_uuid = format!("--domain={uuid}");
        let id = host.virsh(&["domid", &by_uuid])?;
        let Ok(id) = id.trim().parse::<u32>() else { return Err(LiveError::NotRunning { name }) };
        let directory = directory(host.virsh(&["uri"])?.trim(), id)?;
        if described.has_threads && version(host)?.is_none_or(|version| version < FIXED) {
            return Err(LiveError::Unsafe { guest: name });
        }
        end_leftover(host, &uuid, &name)?;

        let (disks, left_out) = chosen(&described.disks);
        if disks.is_empty() {
            return Err(LiveError::NoDisk { guest: name });
        }
        check_checkpoints(host, &by_uuid, &name, &disks, wanted)?;
        let place = wanted.scratch_directory.clone().unwrap_or_else(|| directory.clone());
        let mut total: u64 = 0;
        for disk in &disks {
            total = total.saturating_add(capacity(host, &by_uuid, &disk.target)?);
        }
        let mut scratch = Scratch::new(&place, wanted.scratch_limit, total)?;
        let owner = Owner::ours();
        let socket = directory.join(format!("{owner}.sock"));
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(LiveError::Directory {
                path: directory,
                problem: "its path is too long for a socket",
            });
        }
        let files: Vec<PathBuf> =
            (0..disks.len()).map(|number| place.join(format!("{}.scratch", owner.name(number)))).collect();
        files.iter().for_each(|file| scratch.add(file.clone()));
        let mut undo = Undo {
            uri: host.uri.clone(),
            uuid,
            socket: socket.clone(),
            scratch: files.clone(),
            may_begin: true,
            thaw: wanted.quiesce,
            checkpoint: wanted.checkpoint.clone(),
        };
        let mut watchdog = Watchdog::start(watchdog::Undo::Domain(undo.clone()), None)?;

        let backup = backup(&socket, &described.disks, &disks, &files, wanted.since.as_deref());
        let checkpoint = wanted.checkpoint.as_ref().map(|name| checkpoint(name, &described.disks, &disks));
        let mut xml = vec![("--backupxml", backup.as_bytes())];
        xml.extend(checkpoint.iter().map(|checkpoint| ("--checkpointxml", checkpoint.as_bytes())));
        let frozen = wanted.quiesce.then(|| host.act(&["domfsfreeze", &by_uuid], &[]));
        let begun = host.act(&["backup-begin", &by_uuid], &xml);
        let quiesced = match frozen {
            None => Quiesced::NotAsked,
            Some(Ok(_)) => {
                host.act(&["domfsthaw", &by_uuid], &[])?;
                Quiesced::Frozen
            }
            Some(Err(error)) => {
                // An agent that does not answer in time may still do what it was told.
                let _ = host.act(&["domfsthaw", &by_uuid], &[]);
                Quiesced::NoAgent(virt_bmap_ranges::error_chain(&error))
            }
        };
        (undo.may_begin, undo.thaw) = (false, false);
        watchdog.change(watchdog::Undo::Domain(undo.clone()))?;
        begun.map_err(|source| LiveError::Backup { remedy: remedy(&place), source })?;
        let disks = disks.into_iter().map(|disk| {
            let uri = NbdUri::new(Server::Unix(socket.clone()), &disk.target, false)?;
            let image =
                disk.source("file").or(disk.source("dev")).or(disk.source("name")).unwrap_or(&disk.target);
            let format = disk.format.clone().unwrap_or_else(|| "raw".to_owned());
            let files = vec![ImageFile { name: image.as_bytes().to_vec(), format }];
            // libvirt's name for the bitmap, see "exportbitmap" in its documentation.
            let context = wanted.since.as_ref().map(|_| format!("qemu:dirty-bitmap:backup-{}", disk.target));
            Ok(Disk { name: disk.target.clone(), uri, files, context })
        });
        let disks = disks.collect::<Result<Vec<_>, LiveError>>()?;
        let guest = super::Guest::Domain(Self { host: host.clone(), undo });
        Ok(super::Parts { guest, disks, left_out, quiesced, scratch, watchdog })
    }

    /// Whether the backup is still there.
    pub(super) fn holds(&mut self) -> Result<bool, LiveError> {
        Ok(socket_of_job(&self.host, &self.undo.uuid).as_deref() == Some(&*self.undo.socket))
    }

    /// What is to be undone when the map is made: all but the checkpoint.
    pub(super) fn undo_but_checkpoint(&self) -> watchdog::Undo {
        watchdog::Undo::Domain(Undo { checkpoint: None, ..self.undo.clone() })
    }
}

/// The major version of the host's qemu: `Running hypervisor: QEMU 7.2.22`.
fn version(host: &Host) -> Result<Option<u64>, LibvirtError> {
    let answer = host.virsh(&["version"])?;
    let qemu = answer.lines().find_map(|line| line.strip_prefix("Running hypervisor: QEMU "));
    Ok(qemu.and_then(|version| version.split('.').next()?.trim().parse().ok()))
}

/// The disks to map, and the others.
fn chosen(disks: &[DiskXml]) -> (Vec<&DiskXml>, Vec<LeftOut>) {
    let reason = |disk: &DiskXml| match disk {
        disk if !disk.holds_data() => Some("it is a drive for removable media"),
        disk if disk.is_read_only => Some("the guest cannot write to it"),
        _ => None,
    };
    let left_out =
        disks.iter().filter_map(|disk| Some(LeftOut { name: disk.target.clone(), reason: reason(disk)? }));
    (disks.iter().filter(|disk| reason(disk).is_none()).collect(), left_out.collect())
}

/// Bytes of a disk.
fn capacity(host: &Host, domain: &str, target: &str) -> Result<u64, LiveError> {
    let answer = host.virsh(&["domblkinfo", domain, &format!("--device={target}")])?;
    let bytes = answer.lines().find_map(|line| line.strip_prefix("Capacity:")?.trim().parse().ok());
    Ok(bytes.unwrap_or_default())
}

/// The description of the backup.
fn backup(
    socket: &Path,
    all: &[DiskXml],
    chosen: &[&DiskXml],
    files: &[PathBuf],
    since: Option<&str>,
) -> String {
    let path = |path: &Path| escaped(&path.to_string_lossy());
    let since =
        since.map_or_else(String::new, |name| format!("<incremental>{}</incremental>", escaped(name)));
    let mut xml = format!(
        "<domainbackup mode='pull'>{since}<server transport='unix' socket='{}'/><disks>",
        path(socket)
    );
    for (disk, file) in chosen.iter().zip(files) {
        let name = escaped(&disk.target);
        let file = path(file);
        let _ = write!(
            xml,
            "<disk name='{name}' backup='yes' type='file' exportname='{name}'><driver type='qcow2'/><scratch file='{file}'/></disk>"
        );
    }
    for disk in all.iter().filter(|disk| !chosen.contains(disk)) {
        let _ = write!(xml, "<disk name='{}' backup='no'/>", escaped(&disk.target));
    }
    xml + "</disks></domainbackup>"
}

/// The description of a checkpoint of the chosen disks.
fn checkpoint(name: &str, all: &[DiskXml], chosen: &[&DiskXml]) -> String {
    let mut xml = format!("<domaincheckpoint><name>{}</name><disks>", escaped(name));
    for disk in all {
        let kind = if chosen.contains(&disk) { "bitmap" } else { "no" };
        let _ = write!(xml, "<disk name='{}' checkpoint='{kind}'/>", escaped(&disk.target));
    }
    xml + "</disks></domaincheckpoint>"
}

/// The names of a domain's checkpoints.
fn checkpoints(host: &Host, domain: &str) -> Result<Vec<String>, LibvirtError> {
    let answer = host.virsh(&["checkpoint-list", domain, "--name"])?;
    Ok(answer.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Refuses a checkpoint that cannot be made, and one that is not there.
fn check_checkpoints(
    host: &Host,
    domain: &str,
    name: &str,
    disks: &[&DiskXml],
    wanted: &Wanted,
) -> Result<(), LiveError> {
    if let Some(disk) = disks.iter().find(|disk| disk.format.as_deref() != Some("qcow2"))
        && wanted.checkpoint.is_some()
    {
        let format = disk.format.clone().unwrap_or_else(|| "raw".to_owned());
        return Err(LiveError::NoBitmap { name: name.to_owned(), disk: disk.target.clone(), format });
    }
    if wanted.checkpoint.is_none() && wanted.since.is_none() {
        return Ok(());
    }
    let there = checkpoints(host, domain)?;
    let is_there = |checkpoint: &&String| there.contains(*checkpoint);
    if let Some(checkpoint) = wanted.checkpoint.as_ref().filter(is_there) {
        let (name, checkpoint) = (name.to_owned(), checkpoint.clone());
        return Err(LiveError::CheckpointExists { name, checkpoint });
    }
    if let Some(checkpoint) = wanted.since.as_ref().filter(|checkpoint| !is_there(checkpoint)) {
        let (name, checkpoint) = (name.to_owned(), checkpoint.clone());
        return Err(LiveError::NoCheckpoint { name, checkpoint });
    }
    Ok(())
}

/// The domain's own directory, on this machine.
fn directory(uri: &str, id: u32) -> Result<PathBuf, LiveError> {
    let base = match uri {
        "qemu:///system" => PathBuf::from("/var/lib/libvirt/qemu"),
        "qemu:///session" => {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
            config.unwrap_or_default().join("libvirt/qemu/lib")
        }
        _ => return Err(LiveError::NotHere { uri: uri.to_owned() }),
    };
    let cannot = |path: &Path, problem| LiveError::Directory { path: path.to_owned(), problem };
    let unreadable = "this user cannot look into it; run this as root, or as the user that qemu runs as";
    let beginning = format!("domain-{id}-");
    let entries = fs::read_dir(&base).map_err(|_| cannot(&base, unreadable))?;
    let found = entries.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(&beginning))
    });
    let found = found.ok_or_else(|| cannot(&base, "it has no directory of this domain"))?;
    let mode = fs::metadata(&found).map_err(|_| cannot(&found, unreadable))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(cannot(
            &found,
            "other users can look into it; take their rights away (chmod o= DIRECTORY)",
        ));
    }
    if fs::read_dir(&found).is_err() {
        return Err(cannot(&found, unreadable));
    }
    Ok(found)
}

/// Ends the backup of a run that was killed. Another job is left alone.
fn end_leftover(host: &Host, uuid: &str, name: &str) -> Result<(), LiveError> {
    let domain = format!("--domain={uuid}");
    let job = host.virsh(&["domjobinfo", &domain])?;
    let field = |label: &str| job.lines().find_map(|line| Some(line.strip_prefix(label)?.trim().to_owned()));
    if field("Job type:").is_none_or(|kind| kind == "None") {
        return Ok(());
    }
    let socket = socket_of_job(host, uuid);
    let owner = socket.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).and_then(Owner::of);
    match (owner, socket) {
        (Some(owner), _) if owner.is_alive() => Err(LiveError::Busy { process: owner.process() }),
        (Some(_), Some(socket)) => {
            let (uri, uuid) = (host.uri.clone(), uuid.to_owned());
            Undo { uri, uuid, socket, scratch: Vec::new(), may_begin: false, thaw: false, checkpoint: None }
                .run()
        }
        _ => {
            let job = field("Operation:").unwrap_or_else(|| "unknown".to_owned());
            Err(LiveError::OtherJob { name: name.to_owned(), job })
        }
    }
}

/// The socket of the backup that runs. `None` if there is none.
fn socket_of_job(host: &Host, uuid: &str) -> Option<PathBuf> {
    let xml = host.virsh(&["backup-dumpxml", &format!("--domain={uuid}")]).ok()?;
    crate::fleet::libvirt::attribute(&xml, &["domainbackup", "server"], "socket").map(PathBuf::from)
}

impl Undo {
    /// Undoes everything that is there.
    pub(super) fn run(&self) -> Result<(), LiveError> {
        let host = Host { uri: self.uri.clone(), force_share: true };
        let domain = format!("--domain={}", self.uuid);
        if self.thaw {
            host.act(&["domfsthaw", &domain], &[])?;
        }
        let is_there = || socket_of_job(&host, &self.uuid).as_deref() == Some(&*self.socket);
        let begun = Instant::now();
        while self.may_begin && !is_there() && begun.elapsed() < BEGIN {
            sleep(TICK);
        }
        if is_there() {
            host.act(&["domjobabort", &domain], &[])?;
        }
        let deadline = Instant::now() + END;
        while is_there() {
            if Instant::now() > deadline {
                return Err(LiveError::NotUndone("libvirt does not end the backup".to_owned()));
            }
            sleep(TICK);
        }
        // libvirt has removed them with the job, unless it failed to start.
        for file in self.scratch.iter().chain([&self.socket]) {
            let _ = fs::remove_file(file);
        }
        if let Some(name) = &self.checkpoint
            && checkpoints(&host, &domain)?.contains(name)
        {
            host.act(&["checkpoint-delete", &domain, &format!("--checkpointname={name}")], &[])?;
        }
        Ok(())
    }
}

/// What may be wrong if qemu may not use a directory.
fn remedy(place: &Path) -> String {
    let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with('Y'));
    let place = place.display();
    if is_on("/sys/module/apparmor/parameters/enabled") {
        format!(
            "; if AppArmor keeps qemu from its files, add this line to /etc/apparmor.d/local/abstractions/libvirt-qemu: \
             \"{place}/virt-bmap-*\" rwk,"
        )
    } else if Path::new("/sys/fs/selinux/enforce").exists() {
        format!(
            "; if SELinux keeps qemu from its files: semanage fcontext -a -t virt_image_t '{place}(/.*)?' && restorecon -R {place}"
        )
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(target: &str, device: &str) -> DiskXml {
        DiskXml { target: target.to_owned(), device: device.to_owned(), ..DiskXml::default() }
    }

    #[test]
    fn names_are_escaped_in_descriptions() {
        let disks =
            [disk("vd'a", "disk"), disk("hda", "cdrom"), DiskXml { is_read_only: true, ..disk("vdb", "") }];
        let (chosen, left_out) = chosen(&disks);
        let names: Vec<&str> = left_out.iter().map(|left_out| &*left_out.name).collect();
        assert_eq!((chosen.len(), names), (1, vec!["hda", "vdb"]));
        let xml = backup(Path::new("/a&b.sock"), &disks, &chosen, &["/s<".into()], Some("\"monday\""));
        let found = |at: &[&str], name| crate::fleet::libvirt::attribute(&xml, at, name);
        assert_eq!(found(&["domainbackup", "server"], "socket").as_deref(), Some("/a&b.sock"));
        assert_eq!(found(&["domainbackup", "disks", "disk"], "name").as_deref(), Some("vd'a"));
        assert_eq!(found(&["domainbackup", "disks", "disk", "scratch"], "file").as_deref(), Some("/s<"));
        assert_eq!(xml.matches("backup='no'").count(), 2);
        let xml = checkpoint("<x>", &disks, &chosen);
        assert!(
            xml.contains("<name>&lt;x&gt;</name>") && xml.matches("checkpoint='no'").count() == 2,
            "{xml}"
        );
    }

    #[test]
    fn a_domain_elsewhere_is_refused() {
        for uri in ["qemu+ssh://host/system", "test:///default", ""] {
            assert!(matches!(directory(uri, 1), Err(LiveError::NotHere { .. })), "{uri}");
        }
    }
}

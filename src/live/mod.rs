//! A consistent view of a guest that runs.
//!
//! A [`View`] shows the disks of a running guest as they were at one moment, over NBD, while the
//! guest goes on writing to them. There are two ways to one: [by the monitor of a qemu](qemu), and
//! by a backup of a [libvirt] domain. Both have qemu copy the old data of each cluster to a
//! *scratch* file before the guest overwrites it.
//!
//! Whatever is added to the guest for this is undone by a [child process](watchdog), however this
//! process ends. It touches only what has the name of this run.

mod libvirt;
mod owner;
mod qemu;
mod scratch;
pub mod watchdog;

pub use crate::qmp::QmpError;
pub use scratch::Watch;

use crate::fleet::libvirt::{Host, LibvirtError};
use crate::mapper::{Cancel, GuestDisk};
use scratch::Scratch;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use virt_bmap_image::{BadUri, ImageFormat, Location, NbdUri, OpenError};
use virt_bmap_map::rangelist::{self, RangeListOptions};
use virt_bmap_map::{Header, ImageFile};
use virt_bmap_ranges::{DiskNumber, Human, IndexedRanges};
use watchdog::Watchdog;

/// Why there is no view of a running guest, or why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The monitor of a qemu.
    #[error("{socket:?}")]
    Monitor {
        /// The monitor's socket.
        socket: PathBuf,
        /// What happened.
        #[source]
        source: QmpError,
    },
    /// Its qemu could crash.
    #[error(
        "{guest}: its disks may be on I/O threads, and the NBD server of this qemu can crash the guest then; \
         this needs qemu {FIXED} or later, or map it when it is shut off"
    )]
    Unsafe {
        /// The guest.
        guest: String,
    },
    /// There is nothing to map while it runs.
    #[error("{name}: the domain is not running; map it without --live")]
    NotRunning {
        /// The domain.
        name: String,
    },
    /// The domain is on another machine, or is none of qemu.
    #[error("{uri}: a view of a running domain needs qemu:///system or qemu:///session of this machine")]
    NotHere {
        /// libvirt's URI.
        uri: String,
    },
    /// The directory for the socket.
    #[error("{path:?}: {problem}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// libvirt does one job of a domain at a time.
    #[error("{name}: another job runs ({job}); wait for its end, or end it: virsh domjobabort {name}")]
    OtherJob {
        /// The domain.
        name: String,
        /// The job, as libvirt names it.
        job: String,
    },
    /// The backup did not start.
    #[error("the backup that would keep the disks as they are does not start{remedy}")]
    Backup {
        /// What may help, after a semicolon.
        remedy: String,
        /// libvirt's answer.
        #[source]
        source: LibvirtError,
    },
    /// A disk cannot have a dirty bitmap.
    #[error("{name}: no checkpoint is possible, because disk {disk} is {format}: only qcow2 keeps a bitmap")]
    NoBitmap {
        /// The domain.
        name: String,
        /// The disk.
        disk: String,
        /// Its format.
        format: String,
    },
    /// A checkpoint is not made twice.
    #[error(
        "{name}: checkpoint {checkpoint} exists; take another name, or delete it: virsh checkpoint-delete {name} {checkpoint}"
    )]
    CheckpointExists {
        /// The domain.
        name: String,
        /// The checkpoint.
        checkpoint: String,
    },
    /// There is no such checkpoint.
    #[error(
        "{name}: there is no checkpoint {checkpoint}; make one with --checkpoint when the guest is mapped"
    )]
    NoCheckpoint {
        /// The domain.
        name: String,
        /// The checkpoint.
        checkpoint: String,
    },
    /// What was written is not known.
    #[error("cannot find out what was written since the checkpoint")]
    Written(#[from] OpenError),
    /// libvirt.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// No disk is left.
    #[error("{guest}: the guest has no disk that it can write to")]
    NoDisk {
        /// The guest.
        guest: String,
    },
    /// Another run maps this guest.
    #[error("process {process} maps this guest already; wait for its end, or end it")]
    Busy {
        /// The process.
        process: u32,
    },
    /// No room for scratch files.
    #[error(
        "{place:?} has {} free, and what the guest overwrites meanwhile may need {}; make room there, or state less with --scratch-limit",
        Human(*free), Human(*needed)
    )]
    NoSpace {
        /// The directory.
        place: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The scratch files have reached their ceiling, or the disk is nearly full.
    #[error(
        "the guest overwrote too much meanwhile: the scratch files in {place:?} reached their limit of {}, or the disk there is nearly full; give more room with --scratch-limit, or map at a quieter time",
        Human(*limit)
    )]
    Full {
        /// The directory.
        place: PathBuf,
        /// Bytes.
        limit: u64,
    },
    /// The job has ended too early.
    #[error("the job that kept the guest's disks as they were has ended early, so the map would be torn")]
    Torn,
    /// Something of this host cannot be used.
    #[error("cannot make or use {what}")]
    SetUp {
        /// What.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Something is left in the guest.
    #[error("what was added to the guest could not be removed: {0}")]
    NotUndone(String),
    /// The name of a disk cannot be that of an export.
    #[error("the name of a disk cannot be that of an export")]
    Name(#[from] BadUri),
}

/// The first major version of qemu whose NBD server may serve disks on I/O threads. Before, it calls
/// `nbd_blockdev_client_closed` on such a thread when a client leaves; versions with the fixes for
/// CVE-2024-7409 (7.2.14 for instance) abort there, with the guest (`blockdev-nbd.c` in qemu).
const FIXED: u64 = 9;

/// How a view is to be made.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Most bytes of the scratch files. `None`: half of what is free.
    pub scratch_limit: Option<u64>,
    /// Where they are. `None`: $TMPDIR, or the directory of the domain.
    pub scratch_directory: Option<PathBuf>,
    /// Have the guest agent freeze the guest's filesystems for the moment of the view. Only for
    /// domains.
    pub quiesce: bool,
    /// Leave a checkpoint of this name at the moment of the view. Only for domains.
    pub checkpoint: Option<String>,
    /// Find out what was written since this checkpoint. Only for domains.
    pub since: Option<String>,
}

/// The disks of a running guest, as they were when the view was made. Dropping it undoes all that
/// was done to the guest.
#[derive(Debug)]
pub struct View {
    parts: Mutex<Parts>,
    began: SystemTime,
}

/// What a view consists of.
#[derive(Debug)]
struct Parts {
    guest: Guest,
    disks: Vec<Disk>,
    left_out: Vec<LeftOut>,
    quiesced: Quiesced,
    scratch: Scratch,
    watchdog: Watchdog,
}

/// A way to talk to the guest.
#[derive(Debug)]
enum Guest {
    /// By a monitor.
    Qemu(Box<qemu::Qemu>),
    /// By libvirt.
    Domain(libvirt::Domain),
}

/// A disk of a view.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its name in the guest's configuration.
    pub name: String,
    /// Where it is read.
    pub uri: NbdUri,
    /// What it really is: its image, and those below.
    pub files: Vec<ImageFile>,
    /// The metadata context of what was written since the checkpoint, if one was named.
    context: Option<String>,
}

/// Whether the guest's filesystems were frozen when the view was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quiesced {
    /// Nobody wanted it.
    NotAsked,
    /// They were, and they are thawed again.
    Frozen,
    /// No guest agent did it, for this reason.
    NoAgent(String),
}

/// A disk that is not in a view.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// The reason, a part of a sentence.
    pub reason: &'static str,
}

impl View {
    /// A view of the qemu whose monitor is at this socket.
    ///
    /// # Errors
    /// [`LiveError`]. Nothing is left in the guest.
    pub fn of_qemu(socket: &Path, wanted: &Wanted) -> Result<Self, LiveError> {
        let began = SystemTime::now();
        Ok(Self { parts: Mutex::new(qemu::Qemu::begin(socket, wanted)?), began })
    }

    /// A view of a domain of a libvirt host.
    ///
    /// # Errors
    /// [`LiveError`]. Nothing is left in the guest.
    pub fn of_domain(host: &Host, domain: &str, wanted: &Wanted) -> Result<Self, LiveError> {
        let began = SystemTime::now();
        Ok(Self { parts: Mutex::new(libvirt::Domain::begin(host, domain, wanted)?), began })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment before that of which the view is: what is written to an image later may not be in
    /// it.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// The disks in order, for the mapper.
    pub fn disks(&self) -> Vec<GuestDisk> {
        let disk =
            |disk: &Disk| GuestDisk::new(Location::Nbd(Box::new(disk.uri.clone())), Some(ImageFormat::Raw));
        self.parts().disks.iter().map(disk).collect()
    }

    /// What the guest has besides.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.parts().left_out.clone()
    }

    /// Whether its filesystems were frozen.
    pub fn quiesced(&self) -> Quiesced {
        self.parts().quiesced.clone()
    }

    /// What was written to each disk since the checkpoint that the view was made with.
    ///
    /// # Errors
    /// The server does not say it.
    pub fn written(&self) -> Result<BTreeMap<DiskNumber, IndexedRanges>, LiveError> {
        let options = RangeListOptions::of(rangelist::Kind::Nbdinfo);
        let mut written = BTreeMap::new();
        for (number, disk) in (1..).zip(&self.parts().disks) {
            let Some(context) = &disk.context else { continue };
            let list = disk.uri.extents(context, |list| rangelist::read(list, &options))?;
            written.insert(number, list.spans);
        }
        Ok(written)
    }

    /// Cancels a run if what the guest overwrites takes too much room, until the guard is dropped.
    pub fn watch(&self, cancel: Cancel) -> Watch {
        self.parts().scratch.watch(cancel)
    }

    /// Ends the view: checks that everything that was read was of the same moment, and undoes what
    /// was done to the guest. A checkpoint stays only if there `is_map` of its moment.
    ///
    /// # Errors
    /// [`LiveError::Full`], [`LiveError::Torn`], or what could not be undone.
    pub fn end(&self, is_map: bool) -> Result<(), LiveError> {
        let parts = &mut *self.parts();
        let holds = parts.scratch.check().and_then(|()| match &mut parts.guest {
            Guest::Qemu(qemu) => qemu.holds(),
            Guest::Domain(domain) => domain.holds(),
        });
        if let (Ok(true), true, Guest::Domain(domain)) = (&holds, is_map, &parts.guest) {
            parts.watchdog.change(domain.undo_but_checkpoint())?;
        }
        let undone = parts.watchdog.end();
        if !holds? {
            return Err(LiveError::Torn);
        }
        undone
    }

    /// Names the real images in the header of a map. Its reader has no use for the view's sockets.
    pub fn describe(&self, header: &mut Header) {
        for (info, disk) in header.images.iter_mut().zip(&self.parts().disks) {
            if let Some((image, chain)) = disk.files.split_first() {
                info.image = image.clone();
                info.chain = chain.to_vec();
            }
        }
    }
}

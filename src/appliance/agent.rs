//! Uploads the probe agent into the appliance and runs it there.

use super::{Appliance, CallError};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;
use virt_bmap_agent::inodes::InodeSet;
use virt_bmap_agent::listings::Listings;
use virt_bmap_agent::{ReadOrder, pairs};

/// The agent, a static program; see `build.rs`.
const AGENT: &[u8] = include_bytes!(env!("VIRT_BMAP_AGENT"));
/// Where it is put in the appliance: `debug_upload` takes a path there, whatever its manual says of `/tmp`.
const AGENT_PATH: &str = "/tmp/virt-bmap-agent";
const KEY_PATH: &str = "/tmp/virt-bmap-key";
const PLAN_PATH: &str = "/tmp/virt-bmap-plan";
const KNOWN_PATH: &str = "/tmp/virt-bmap-known";
const LISTINGS_PATH: &str = "/tmp/virt-bmap-listings";
const AHEAD_PATH: &str = "/tmp/virt-bmap-ahead";
/// Where libguestfs mounts the guest's `/`.
const SYSROOT: &str = "/sysroot";

/// Why the agent did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// What is to be uploaded could not be written to a temporary file.
    #[error("cannot write a temporary file")]
    Temporary(#[source] io::Error),
    /// It could not be uploaded.
    #[error("cannot upload the probe agent")]
    Upload(#[source] CallError),
    /// It ended in failure.
    #[error("the probe agent failed")]
    Run(#[source] CallError),
}

/// How a file system is to be gone through.
#[derive(Clone, Debug)]
pub struct WalkPlan {
    /// Number of the next frame.
    pub sequence: u32,
    /// Number of the first object.
    pub first: u32,
    /// How files are read.
    pub order: ReadOrder,
    /// Whether symbolic links and extended attributes are read, too.
    pub metadata: bool,
    /// Whether the agent asks which files to read.
    pub asks: bool,
    /// Of files with these inodes only the names are wanted.
    pub known: InodeSet,
    /// Directories that need not be listed, and what in them is to be looked at.
    pub listings: Listings,
    /// Parts of the device, by start and length, that are best read at once, before all else.
    pub ahead: Vec<(u64, u64)>,
}

/// Pieces of devices to be read, each under a tag.
#[derive(Clone, Debug, Default)]
pub struct ReadPlan {
    lines: String,
}

impl ReadPlan {
    /// Adds a piece: `length` bytes of `device` from `offset`.
    pub fn push(&mut self, tag: u32, device: &str, offset: u64, length: u64) {
        let _ = writeln!(self.lines, "{tag} {device} {offset} {length}");
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl Appliance {
    /// Uploads the agent and has it turn off all that reads ahead.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn start_agent(&self) -> Result<(), AgentError> {
        self.upload(AGENT, AGENT_PATH, 0o755)?;
        self.run("quiet").map(drop)
    }

    /// What the kernel has said since the last time, or since the agent was started.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn kernel_log(&self) -> Result<String, AgentError> {
        self.run("log")
    }

    /// What the appliance's kernel knows of the guest's block devices, a line each: those that are named,
    /// then all.
    pub(super) fn describe(&self, named: &[String]) -> Result<String, AgentError> {
        let named: String = named.iter().map(|name| format!(" {}", quote(name))).collect();
        self.run(&format!("devices {}{named}", self.control))
    }

    /// Reads pieces of devices. `sequence` is the number of the next frame.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn read_devices(&self, sequence: u32, plan: &ReadPlan) -> Result<(), AgentError> {
        self.upload(plan.lines.as_bytes(), PLAN_PATH, 0o644)?;
        self.run(&format!("read {} {sequence} {PLAN_PATH}", self.control)).map(drop)
    }

    /// Reads every directory and file of what is mounted as `/`.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn walk(&self, plan: &WalkPlan) -> Result<(), AgentError> {
        let WalkPlan { sequence, first, order, metadata, asks, known, listings, ahead } = plan;
        let mut walk = format!("walk {} {sequence} {first} {order} {SYSROOT}", self.control);
        if *metadata {
            walk.push_str(" metadata");
        }
        if *asks {
            walk.push_str(" ask");
        }
        for (word, path, bytes) in [
            ("known", KNOWN_PATH, known.encode()),
            ("listings", LISTINGS_PATH, listings.encode()),
            ("ahead", AHEAD_PATH, pairs::encode(ahead)),
        ] {
            if !bytes.is_empty() {
                self.upload(&bytes, path, 0o644)?;
                let _ = write!(walk, " {word} {path}");
            }
        }
        let spent = self.run(&walk)?;
        tracing::debug!("the agent's time: {}", spent.trim_end());
        Ok(())
    }

    /// Unlocks an encrypted device as `/dev/mapper/NAME`.
    ///
    /// # Errors
    /// [`AgentError`] where the key could not be brought into the appliance.
    pub fn unlock(
        &self,
        device: &str,
        name: &str,
        secret: &[u8],
        bitlocker: bool,
    ) -> Result<Unlocked, AgentError> {
        self.upload(secret, KEY_PATH, 0o600)?;
        let kind = if bitlocker { "--type bitlk " } else { "" };
        // udev has been ended; without the variable cryptsetup would wait for it for ever.
        // Writable, because a journal may have to be replayed; what is written stays with us.
        let command = format!(
            "DM_DISABLE_UDEV=1 timeout -k 5 {} cryptsetup open {kind}--key-file {KEY_PATH} {} {}",
            UNLOCKING.as_secs(),
            quote(device),
            quote(name)
        );
        let ended = self.shell(&format!("{command} >/dev/null 2>&1; echo $?"));
        self.shell(&format!("rm -f {KEY_PATH}")).map_err(AgentError::Run)?;
        Ok(match ended.as_deref().map(str::trim) {
            Ok("0") => Unlocked::Yes,
            // timeout(1): 124, or 137 where it had to use SIGKILL.
            Ok("124" | "137") => Unlocked::Never,
            _ => Unlocked::No,
        })
    }

    fn upload(&self, bytes: &[u8], to: &str, mode: i32) -> Result<(), AgentError> {
        let mut file = tempfile::NamedTempFile::new().map_err(AgentError::Temporary)?;
        file.write_all(bytes).map_err(AgentError::Temporary)?;
        let path = file.path().to_string_lossy();
        self.call(|g| g.debug_upload(&path, to, mode)).map_err(AgentError::Upload)
    }

    fn run(&self, arguments: &str) -> Result<String, AgentError> {
        self.shell(&format!("{AGENT_PATH} {arguments}")).map_err(AgentError::Run)
    }
}

/// How an attempt to unlock a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// It is open.
    Yes,
    /// The key is not one of it.
    No,
    /// It took longer than [`UNLOCKING`].
    Never,
}

/// How long it may take to unlock a device: a key that takes seconds to derive takes a minute under emulation. There are
/// BitLocker headers for which cryptsetup never ends.
pub const UNLOCKING: Duration = Duration::from_secs(240);

/// A word for the shell, whatever is in it.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

//! Derives the key of an encrypted device on the host.
//!
//! Deriving a key takes long on purpose, a second or two of the processor that made it, and a
//! hundred times that in an emulated appliance. So `cryptsetup` does it on the host, in a child
//! that has neither network nor rights, with limits, on a copy of the header alone. The device
//! itself is opened in the appliance.

use super::header;
use crate::probe::device::Device;
use rustix::fd::OwnedFd;
use rustix::fs::MemfdFlags;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;
use virt_bmap_agent_protocol::{Encryption, Secret, wipe};
use virt_bmap_child as child;

/// What a derivation may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of address space.
    pub(super) memory: u64,
    /// Processor time, of all threads.
    pub(super) processor: Duration,
    /// Time by the clock.
    pub(super) clock: Duration,
}

impl Limits {
    /// LUKS2 as cryptsetup makes it uses up to 1 GiB of memory and four threads for two seconds.
    /// The program, its libraries and the stacks and heaps of the threads come on top.
    pub(super) const NORMAL: Self = Self {
        memory: (1 << 30) + (512 << 20),
        processor: Duration::from_secs(10),
        clock: Duration::from_secs(60),
    };
}

/// The result of a derivation.
#[derive(Debug)]
pub(super) enum Derived {
    /// The volume key.
    Key(Secret),
    /// The passphrase fits no key slot.
    WrongPassphrase,
    /// It could not be done here, for this reason.
    NotHere(String),
}

/// A sparse copy of an encrypted device, in memory: only what keys are derived from.
pub(super) struct HeaderCopy {
    file: File,
    encryption: Encryption,
}

impl HeaderCopy {
    /// Copies the header of a device. `None` if it is of no known form, or cannot be read.
    pub(super) fn of(device: &Device<'_>, encryption: Encryption) -> Option<Self> {
        Self::read(&|at, length| device.read(at, length), device.size, encryption)
    }

    fn read(read: crate::probe::device::Read<'_>, size: u64, encryption: Encryption) -> Option<Self> {
        let parts = match encryption {
            Encryption::Luks => header::luks(read)?,
            Encryption::BitLocker => header::bitlocker(read)?,
        };
        let file = File::from(rustix::fs::memfd_create("header", MemfdFlags::CLOEXEC).ok()?);
        // cryptsetup compares the places in the header with the size of the device.
        file.set_len(size).ok()?;
        for (at, length) in parts {
            file.write_all_at(&read(at, length)?, at).ok()?;
        }
        Some(Self { file, encryption })
    }

    /// Derives the volume key from a passphrase.
    pub(super) fn derive(&self, passphrase: &Secret, limits: Limits) -> Derived {
        self.dump(passphrase, limits).unwrap_or_else(|error| Derived::NotHere(error.to_string()))
    }

    fn dump(&self, passphrase: &Secret, limits: Limits) -> io::Result<Derived> {
        // cryptsetup's exit status for a passphrase that fits no key slot, see cryptsetup(8).
        const NO_PERMISSION: Option<i32> = Some(2);
        let mut command = child::command(&program());
        let action = match self.encryption {
            Encryption::Luks => "luksDump",
            Encryption::BitLocker => "bitlkDump",
        };
        let copy = child::inherit(&mut command, OwnedFd::from(self.file.try_clone()?));
        // The passphrase comes, and the key goes, through a pipe.
        command.args([action, "--dump-volume-key", "--batch-mode", "--key-file", "-", &copy]);
        child::confine(&mut command);
        child::limit(&mut command, limits.memory, limits.processor);
        let passphrase = passphrase.clone();
        // It fails if the child ends before it has read, which its exit status tells.
        let write = move |mut input: std::process::ChildStdin| drop(input.write_all(passphrase.expose()));
        let mut output = child::run_with_input(command, write, limits.clock)?;
        let key = key_in(&output.stdout);
        wipe(&mut output.stdout);
        Ok(match key {
            Some(key) if output.status.success() => Derived::Key(key),
            _ if output.status.code() == NO_PERMISSION => Derived::WrongPassphrase,
            _ => Derived::NotHere(format!("{}: {}", output.status, child::message(&output.stderr))),
        })
    }
}

/// cryptsetup, which ordinary users do not have in their path everywhere.
fn program() -> OsString {
    const NAME: &str = "cryptsetup";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join(NAME));
    let sbin = || Path::new("/usr/sbin").join(NAME);
    found.find(|program| program.is_file()).unwrap_or_else(sbin).into_os_string()
}

/// The volume key in the output of `luksDump` and `bitlkDump`: pairs of hexadecimal digits at its
/// end. What the header says of itself stands before them.
fn key_in(output: &[u8]) -> Option<Secret> {
    const BEFORE: &[u8] = b"MK dump:";
    /// Bytes of a longer key than any cipher has.
    const MOST: usize = 1024;
    let start = output.windows(BEFORE.len()).rposition(|window| window == BEFORE)?;
    let digits = output.get(start + BEFORE.len()..)?.iter().filter(|byte| !byte.is_ascii_whitespace());
    let mut key = Vec::with_capacity(MOST);
    let mut high = None;
    for digit in digits {
        let digit = char::from(*digit).to_digit(16)? as u8;
        match high.take() {
            None => high = Some(digit),
            Some(_) if key.len() == MOST => return None,
            Some(high) => key.push(high << 4 | digit),
        }
    }
    (high.is_none() && !key.is_empty()).then(|| Secret::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn the_key_is_at_the_end_of_the_output() {
        let key = |text: &str| key_in(text.as_bytes()).map(|key| key.expose().to_vec());
        let text =
            "LUKS header information\nUUID:\tMK dump:\t77\nMK bits:\t32\nMK dump:\t01 ff \n\t\ta0 0b \n";
        assert_eq!(key(text), Some(vec![1, 0xff, 0xa0, 0x0b]));
        for text in ["", "MK dump:", "MK dump: 0", "MK dump: 0g", "MK bits: 32"] {
            assert_eq!(key(text), None, "{text}");
        }
        assert_eq!(key(&format!("MK dump: {}", "00 ".repeat(1025))), None);
    }

    /// The volume key of the devices here.
    const KEY: [u8; 64] = [0x5a; 64];

    /// A file with a LUKS header, formatted with these options, and the passphrase `sesame`.
    fn luks(options: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(20 << 20).unwrap();
        let mut key = tempfile::NamedTempFile::new().unwrap();
        key.write_all(&KEY).unwrap();
        let mut command = Command::new(program());
        command.args(["luksFormat", "-q", "--key-size", "512", "--volume-key-file"]).arg(key.path());
        let mut child =
            command.args(options).arg(file.path()).arg("-").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"sesame").unwrap();
        assert!(child.wait().unwrap().success());
        file
    }

    fn copy(file: &File) -> HeaderCopy {
        let read = |at: u64, length: u64| {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        };
        HeaderCopy::read(&read, file.metadata().unwrap().len(), Encryption::Luks).unwrap()
    }

    #[test]
    fn keys_of_luks_are_derived_from_copies_of_headers() {
        let quick = ["--pbkdf-force-iterations", "1000"];
        let argon = ["--pbkdf-memory", "1048576", "--pbkdf-parallel", "4", "--pbkdf-force-iterations", "4"];
        for options in [
            [&["--type", "luks1"][..], &quick].concat(),
            [&["--type", "luks2", "--pbkdf", "pbkdf2"][..], &quick].concat(),
            // The most that cryptsetup chooses by itself.
            [&["--type", "luks2"][..], &argon].concat(),
        ] {
            let file = luks(&options);
            let copy = copy(file.as_file());
            match copy.derive(&Secret::new(b"sesame".to_vec()), Limits::NORMAL) {
                Derived::Key(key) => assert_eq!(key.expose(), KEY, "{options:?}"),
                other => panic!("{options:?}: {other:?}"),
            }
            if options.contains(&argon[0]) {
                // It takes seconds.
                continue;
            }
            let wrong = copy.derive(&Secret::new(b"sesam".to_vec()), Limits::NORMAL);
            assert!(matches!(wrong, Derived::WrongPassphrase), "{options:?}: {wrong:?}");
        }
    }

    #[test]
    fn a_derivation_beyond_the_limits_ends_soon() {
        let second = Duration::from_secs(1);
        let small = Limits { memory: 256 << 20, processor: second, clock: 30 * second };
        let greedy = ["--type", "luks2", "--pbkdf-memory", "300000", "--pbkdf-force-iterations", "4"];
        let endless = ["--type", "luks1", "--pbkdf-force-iterations", "3000000"];
        for options in [&greedy[..], &endless[..]] {
            let file = luks(options);
            let begin = Instant::now();
            let derived = copy(file.as_file()).derive(&Secret::new(b"sesame".to_vec()), small);
            assert!(matches!(derived, Derived::NotHere(_)), "{options:?}: {derived:?}");
            assert!(begin.elapsed() < small.clock, "{options:?}");
        }
    }
}

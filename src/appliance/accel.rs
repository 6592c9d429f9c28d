//! Whether KVM is usable on this host.
//!
//! An accessible `/dev/kvm` is not enough. On some hosts qemu aborts as soon as it uses KVM; on
//! others KVM itself is emulated, a thousand times too slow, without any error. Neither qemu nor
//! libguestfs falls back from these. So a test measures time: a ROM of 64 KiB (`kvm-probe.S`)
//! enters long mode, counts to 100 million and leaves through qemu's `isa-debug-exit` device. It
//! runs with the qemu and the CPU model of the appliance; real hardware needs a tenth of a second.
//! The result is cached until the next boot.

use crate::cache::{self, TrustedDirectory};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use virt_bmap_child as child;

/// The user's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if the test succeeds, otherwise emulation.
    #[default]
    Auto,
    /// KVM, without a test.
    Kvm,
    /// Emulation (qemu's TCG).
    Tcg,
}

/// The decision, and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The appliance runs on KVM.
    Kvm,
    /// The appliance is emulated.
    Tcg {
        /// Why not KVM; empty if the user chose emulation.
        because: String,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => write!(f, "KVM"),
            Self::Tcg { because } if because.is_empty() => write!(f, "emulation (TCG)"),
            Self::Tcg { because } => write!(f, "emulation (TCG): {because}"),
        }
    }
}

impl Decision {
    /// Whether the appliance is emulated.
    pub fn is_emulated(&self) -> bool {
        matches!(self, Self::Tcg { .. })
    }
}

/// The CPU model that libguestfs gives its appliance on x86.
const CPU: &str = "max,la57=off";

/// How long the ROM may run.
const DEADLINE: Duration = Duration::from_secs(2);

/// The ROM's first bytes; `kvm-probe.S` is the source.
const ROM_HEAD: &[u8] = include_bytes!("kvm-probe.bin");
const ROM_SIZE: usize = 64 << 10;
/// Where the processor starts: a far jump to the beginning of the ROM.
const RESET_VECTOR: usize = ROM_SIZE - 16;
const JUMP: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];
/// `isa-debug-exit` turns the byte 0x10, written by the ROM, into `(0x10 << 1) | 1`.
const EXIT_CODE: i32 = 33;

/// Decides how to run the appliance with `qemu`; `None`: it is not known which qemu that is.
pub fn decide(wanted: Acceleration, qemu: Option<&Path>) -> Decision {
    match wanted {
        Acceleration::Kvm => Decision::Kvm,
        Acceleration::Tcg => Decision::Tcg { because: String::new() },
        Acceleration::Auto => match usable(qemu) {
            Ok(()) => Decision::Kvm,
            Err(because) => Decision::Tcg { because },
        },
    }
}

fn usable(qemu: Option<&Path>) -> Result<(), String> {
    let device = Path::new("/dev/kvm");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
        return Err(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no /dev/kvm".into(),
            _ => format!("/dev/kvm cannot be opened: {error}"),
        });
    }
    if !cfg!(target_arch = "x86_64") {
        // The ROM is x86 code. On other hosts only the launch shows whether KVM works.
        return Ok(());
    }
    let Some(qemu) = qemu else {
        return Err("KVM cannot be tested, because qemu was not found; LIBGUESTFS_HV can name it".into());
    };
    let cache = cache::directory().and_then(|path| TrustedDirectory::make(&path).ok());
    let note = cache.zip(note_name(qemu, device));
    if let Some(answer) = note.as_ref().and_then(|(cache, name)| cache.note(name)) {
        return if answer.is_empty() { Ok(()) } else { Err(answer) };
    }
    let answer = run_rom(qemu);
    if let Some((cache, name)) = note {
        // Only for speed: without it the next run tests again.
        let text = answer.as_ref().err().map_or("", String::as_str);
        let _ = cache.write_note(&name, text);
    }
    answer
}

fn run_rom(qemu: &Path) -> Result<(), String> {
    let rom =
        rom_file().map_err(|error| format!("the test program for KVM could not be written: {error}"))?;
    match child::run(rom_command(qemu, "kvm", rom.path()), DEADLINE) {
        Ok(output) if output.status.code() == Some(EXIT_CODE) => Ok(()),
        Ok(output) => Err(format!("qemu fails with KVM on this host ({})", output.status)),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err("KVM on this host is too slow to be real (nested software emulation)".into())
        }
        Err(error) => Err(format!("qemu could not be run: {error}")),
    }
}

fn rom_command(qemu: &Path, accelerator: &str, rom: &Path) -> Command {
    let mut command = child::command(qemu.as_os_str());
    command
        .args(["-machine", &format!("pc,accel={accelerator}"), "-cpu", CPU, "-m", "32", "-bios"])
        .arg(rom)
        .args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-serial", "none", "-monitor", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    command
}

fn rom() -> Vec<u8> {
    let mut rom = vec![0; ROM_SIZE];
    rom[..ROM_HEAD.len()].copy_from_slice(ROM_HEAD);
    rom[RESET_VECTOR..RESET_VECTOR + JUMP.len()].copy_from_slice(&JUMP);
    rom
}

fn rom_file() -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("virt-bmap-kvm-").suffix(".rom").tempfile()?;
    file.write_all(&rom())?;
    Ok(file)
}

/// The name of the note for this qemu, this `/dev/kvm` and this boot.
fn note_name(qemu: &Path, device: &Path) -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let qemu = File::open(qemu).ok()?.metadata().ok()?;
    let device = fs::metadata(device).ok()?;
    Some(format!("kvm-{}-{}-{}-{}", boot.trim(), qemu.ino(), qemu.mtime(), device.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_on_request_needs_no_probe() {
        let decision = decide(Acceleration::Tcg, None);
        assert_eq!(decision, Decision::Tcg { because: String::new() });
    }

    /// The same ROM under emulation shows that the ROM is correct, so that a failure under KVM is a
    /// failure of KVM.
    #[test]
    fn the_rom_runs_under_emulation() {
        let rom = rom_file().unwrap();
        let command = rom_command(Path::new("qemu-system-x86_64"), "tcg", rom.path());
        match child::run(command, Duration::from_secs(20)) {
            Ok(output) => assert_eq!(output.status.code(), Some(EXIT_CODE)),
            Err(error) => {
                assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none(), "{error}");
                eprintln!("SKIPPED: {error}");
            }
        }
    }

    #[test]
    fn the_rom_is_what_its_source_says() {
        let directory = tempfile::tempdir().unwrap();
        let (object, binary) = (directory.path().join("o"), directory.path().join("rom"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/appliance/kvm-probe.S");
        let assembled = Command::new("as")
            .args(["--defsym", "LOOPS=100000000", "-o"])
            .args([&object, &source])
            .status()
            .is_ok_and(|status| status.success());
        if !assembled {
            assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none(), "no assembler (binutils)");
            eprintln!("SKIPPED: no assembler for x86 (binutils)");
            return;
        }
        let status = Command::new("ld")
            .args(["-Ttext=0", "--oformat", "binary", "-e", "0", "-o"])
            .args([&binary, &object])
            .status()
            .unwrap();
        assert!(status.success());
        assert!(fs::read(&binary).unwrap() == rom());
    }
}

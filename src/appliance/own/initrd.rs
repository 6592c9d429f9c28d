//! The initial RAM filesystem of our own appliance: the agent as `/init`, and the modules that
//! reach the root disk, taken from the one that supermin has built.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};

/// The modules that are needed if the kernel does not have them built in, by the names in their
/// files, `-` as `_`. Those that they depend on are found in them.
const NEEDED: [&str; 7] =
    ["virtio_pci", "virtio_mmio", "virtio_scsi", "sd_mod", "virtio_console", "ext4", "ext2"];

/// Modules of the algorithms that others ask for by name, without a dependency.
const ALGORITHMS: [&str; 2] = ["crc", "libcrc"];

/// supermin's list of its modules, in the order in which they have to be loaded.
const LIST: &str = "modules";

/// Most bytes of a file in supermin's archive.
const MOST_BYTES: u32 = 64 << 20;

/// Makes the archive out of supermin's (cpio, "newc").
///
/// # Errors
/// When supermin's archive cannot be read.
pub(super) fn make(supermin: &[u8], agent: &[u8]) -> io::Result<Vec<u8>> {
    let files = read(supermin)?;
    let list = files.get(LIST).map(|list| String::from_utf8_lossy(list).into_owned());
    let list = list.ok_or_else(|| io::Error::other("supermin's initrd has no list of modules"))?;
    let order: Vec<&str> = list.lines().filter(|line| !line.is_empty()).collect();
    let wanted = wanted(&files, &order);
    let order: Vec<&str> = order.into_iter().filter(|file| wanted.contains(&module(file))).collect();
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "root"] {
        archive.add(directory, 0o040_755, &[])?;
    }
    archive.add("init", 0o100_755, agent)?;
    archive.add(LIST, 0o100_644, (order.join("\n") + "\n").as_bytes())?;
    for file in order {
        archive.add(file, 0o100_644, &files[file])?;
    }
    archive.end()
}

/// The regular files of an archive.
fn read(archive: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut rest = archive;
    loop {
        let mut entry = cpio::newc::Reader::new(rest)?;
        if entry.entry().is_trailer() {
            return Ok(files);
        }
        let size = entry.entry().file_size();
        if size > MOST_BYTES {
            return Err(io::Error::other(format!(
                "{} in supermin's initrd is too large",
                entry.entry().name()
            )));
        }
        let name = entry.entry().name().to_owned();
        let mut bytes = Vec::with_capacity(size as usize);
        entry.read_to_end(&mut bytes)?;
        rest = entry.finish()?;
        files.insert(name, bytes);
    }
}

/// The modules that are needed, and those that they depend on.
fn wanted(files: &BTreeMap<String, Vec<u8>>, order: &[&str]) -> BTreeSet<String> {
    let by_module: BTreeMap<String, &Vec<u8>> =
        order.iter().filter_map(|file| Some((module(file), files.get(*file)?))).collect();
    let is_algorithm = |name: &&String| ALGORITHMS.iter().any(|prefix| name.starts_with(prefix));
    let needed = NEEDED.map(str::to_owned);
    let mut open: Vec<String> =
        needed.into_iter().chain(by_module.keys().filter(is_algorithm).cloned()).collect();
    let mut wanted = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(file) = by_module.get(&name) else { continue };
        if wanted.insert(name) {
            open.extend(dependencies(file));
        }
    }
    wanted
}

/// The name of the module in a file, as dependencies spell it.
fn module(file: &str) -> String {
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The modules that a module depends on: `depends=` in its section `.modinfo`, a list of strings
/// that end with a zero.
fn dependencies(file: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = file.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value = &file[at + FIELD.len()..];
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(module).collect()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let entry = cpio::newc::Builder::new(name).ino(self.entries).nlink(1).mode(mode);
        let mut writer = entry.write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn end(mut self) -> io::Result<Vec<u8>> {
        cpio::newc::trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn object(depends: &str) -> Vec<u8> {
        format!("\x7fELF…\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    fn supermins(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut archive = Archive::default();
        for (name, content) in files {
            archive.add(name, 0o100_644, content).unwrap();
        }
        archive.end().unwrap()
    }

    #[test]
    fn what_reaches_the_root_disk_is_kept_in_its_order() {
        let list =
            "scsi_common.ko\nscsi_mod.ko\ncrc32c_generic.ko\nsd_mod.ko\nnfit.ko\nvirtio-scsi.ko\next4.ko\n";
        let archive = supermins(&[
            ("init", b"supermin's".to_vec()),
            ("modules", list.into()),
            ("scsi_common.ko", object("")),
            ("scsi_mod.ko", object("scsi_common")),
            ("crc32c_generic.ko", object("")),
            ("sd_mod.ko", object("scsi_mod,t10-pi")),
            ("nfit.ko", object("libnvdimm")),
            ("virtio-scsi.ko", object("scsi_mod,virtio")),
            ("ext4.ko", object("")),
        ]);
        let files = read(&make(&archive, b"agent").unwrap()).unwrap();
        assert_eq!(files["init"], b"agent");
        let kept = "scsi_common.ko\nscsi_mod.ko\ncrc32c_generic.ko\nsd_mod.ko\nvirtio-scsi.ko\next4.ko\n";
        assert_eq!(String::from_utf8_lossy(&files["modules"]), kept);
        assert!(files.contains_key("virtio-scsi.ko") && !files.contains_key("nfit.ko"));
    }

    #[test]
    fn other_archives_are_refused() {
        assert!(make(b"", b"").is_err());
        assert!(make(b"070701 nothing else", b"").is_err());
        assert!(make(&supermins(&[("init", Vec::new())]), b"").is_err());
    }

    #[test]
    fn cpio_reads_the_archive() {
        let archive =
            make(&supermins(&[("modules", b"ext4.ko\n".to_vec()), ("ext4.ko", object(""))]), b"agent")
                .unwrap();
        let started = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("VIRT_BMAP_REQUIRE_TOOLS").is_none(), "cpio: {error}");
                eprintln!("SKIPPED: cpio: {error}");
                return;
            }
        };
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next_back()).collect();
        assert_eq!(names, ["dev", "proc", "sys", "root", "init", "modules", "ext4.ko"]);
        assert!(text.lines().nth(4).unwrap().starts_with("-rwxr-xr-x"), "{text}");
    }
}

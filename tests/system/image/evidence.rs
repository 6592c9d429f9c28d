//! EnCase images, which `ewfacquire` makes: the program reads all bytes, and compares them with the
//! raw disk. `ewfverify` says which sectors are damaged.

use super::support::{Images, as_ordinary_user, wait_until};
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};
use virt_bmap_testutil::places::program;
use virt_bmap_testutil::sandbox::is_one_error;
use virt_bmap_testutil::tools::{copy_program, needs};

const MAP: &str = "# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=12582912 format=raw name=base.raw\n\
                   1 0 c00000 v /dev/sda\n";

fn acquire(images: &Images, target: &str, options: &[&str]) {
    let arguments = [&["-u", "-q", "-t", target], options, &["base.raw"]].concat();
    images.run("ewfacquire", &arguments);
}

/// The status, the output and the messages.
fn run(images: &Images, arguments: &[&str]) -> (i32, String, String) {
    let before = images.checksums();
    let output = Command::new(program()).args(arguments).current_dir(images.path("")).output().unwrap();
    assert_eq!(images.checksums(), before, "{arguments:?}: a file was changed");
    // It ends with its sockets, a moment later.
    wait_until("the child has ended", || holders(&images.path("")) == 0);
    let Output { status, stdout, stderr } = output;
    let [out, said] = [stdout, stderr].map(|text| String::from_utf8(text).unwrap());
    (status.code().unwrap(), out, said)
}

/// How many open files below a directory other processes have.
fn holders(directory: &Path) -> usize {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().map_while(Result::ok);
    let is_other = |name: &OsStr| {
        name.to_str().and_then(|name| name.parse().ok()).is_some_and(|pid: u32| pid != std::process::id())
    };
    let others = list("/proc".as_ref()).filter(|process| is_other(&process.file_name()));
    let open = others.flat_map(|process| list(&process.path().join("fd")).collect::<Vec<_>>());
    let is_below = |file: &DirEntry| fs::read_link(file.path()).is_ok_and(|at| at.starts_with(directory));
    open.filter(is_below).count()
}

/// Compares an image with `base.raw`: the first line, and the status.
fn compare(images: &Images, name: &str, base: &str) -> (String, i32) {
    let arguments = ["changed", name, "--base", base, "--base-format", "raw", "--map", "base.bmap"];
    let (status, out, said) = run(images, &[&arguments[..], &["--no-boot", "--bytes", "-q"]].concat());
    assert!(status != 1, "{name}: {said}");
    (out.lines().next().unwrap().split(": ").nth(1).unwrap().to_owned(), status)
}

fn images() -> Images {
    let images = Images::new();
    images.write("base.bmap", MAP);
    images
}

#[test]
fn an_encase_image_has_the_bytes_of_its_disk() {
    needs!("ewfacquire", "ewfexport", "md5sum", "sha1sum");
    let images = images();
    let mut other = fs::read(images.path("base.raw")).unwrap();
    other[5 << 20] ^= 1;
    images.write("other.raw", other);
    let sum = |program: &str| {
        let output = Command::new(program).arg(images.path("base.raw")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
    };
    let (md5, sha1) = (sum("md5sum"), sum("sha1sum"));
    // Several segments, other sizes of chunks, chunks that are not compressed.
    for (name, options) in [
        ("a", &["-f", "encase6", "-c", "fast", "-S", "1MiB", "-d", "sha1"][..]),
        ("b", &["-f", "ftk", "-c", "none", "-b", "2048", "-S", "5MiB"]),
        ("c", &["-f", "encase2", "-c", "empty-block", "-b", "16"]),
        ("d", &["-f", "linen7", "-c", "best", "-b", "1024", "-d", "sha1"]),
    ] {
        acquire(&images, name, options);
        let first = format!("{name}.E01");
        assert_eq!(compare(&images, &first, "base.raw"), ("0 differ".to_owned(), 0), "{options:?}");
        assert_eq!(compare(&images, &first, "other.raw").0, "1 differ", "{options:?}");
        images.run("ewfexport", &["-u", "-q", "-f", "raw", "-t", "exported", &first]);
        assert_eq!(compare(&images, &first, "exported.raw").0, "0 differ", "{options:?}");
        let (status, out, _) = run(&images, &["verify", "-q", &first]);
        assert!(status == 0 && out.contains(&md5), "{options:?}: {out}");
        assert_eq!(out.contains(&sha1), options.contains(&"sha1"), "{options:?}: {out}");
    }
    assert!(images.path("a.E02").exists() && images.path("b.E03").exists());
}

#[test]
fn damage_is_in_its_place() {
    needs!("ewfacquire", "ewfverify");
    let images = images();
    acquire(&images, "a", &["-c", "none"]);
    let file = File::options().read(true).write(true).open(images.path("a.E01")).unwrap();
    let size = file.metadata().unwrap().len();
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let flip = |at: usize| file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    // A byte of the disk.
    let base = fs::read(images.path("base.raw")).unwrap();
    let at = bytes.windows(64).position(|window| window == &base[1_500_000..1_500_064]).unwrap();
    flip(at);
    let (status, out, _) = run(&images, &["verify", "-q", "a.E01"]);
    assert_eq!(status, 4, "{out}");
    let place = out.lines().next().unwrap().strip_prefix("damaged: 32768 bytes at 0x").unwrap();
    let sector = u64::from_str_radix(place, 16).unwrap() / 512;
    let output = Command::new("ewfverify").arg("-q").arg(images.path("a.E01")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("at sector(s): {sector} - {} ", sector + 63)), "{sector}: {said}");
    assert!(out.contains("md5 differs"), "{out}");
    // What is compared at once with the part is not called the same.
    assert_eq!(compare(&images, "a.E01", "base.raw"), ("up to 1048576 differ".to_owned(), 3));
    file.write_all_at(&bytes, 0).unwrap();
    // An entry of a table: its copy serves.
    let table = bytes.windows(6).position(|window| window == b"table\0").unwrap();
    flip(table + 76 + 24 + 40);
    assert_eq!(compare(&images, "a.E01", "base.raw"), ("0 differ".to_owned(), 0));
    let copy = bytes.windows(7).position(|window| window == b"table2\0").unwrap();
    flip(copy + 76 + 24 + 44);
    let (status, out, _) = run(&images, &["verify", "-q", "a.E01"]);
    assert!(status == 4 && out.contains("damaged: "), "{out}");
    file.write_all_at(&bytes, 0).unwrap();
    // Another hash.
    let hash = bytes.windows(5).position(|window| window == b"hash\0").unwrap();
    flip(hash + 76);
    let (status, _, said) = run(&images, &["verify", "-q", "a.E01"]);
    assert!(status == 1 && said.contains("no hash"), "a hash with a wrong checksum is none: {said}");
}

#[test]
fn an_image_that_is_not_whole_is_refused() {
    needs!("ewfacquire");
    let images = images();
    acquire(&images, "a", &["-c", "none", "-S", "4MiB"]);
    acquire(&images, "one", &["-c", "fast"]);
    acquire(&images, "smart", &["-f", "smart"]);
    let refused = |name: &str, word: &str| {
        let (status, _, said) = run(&images, &["verify", "-q", name]);
        assert!(status == 1 && is_one_error(&said) && said.contains(word), "{name} {word}: {said}");
    };
    refused("smart.s01", "SMART");
    refused("a.E02", "name the first");
    fs::rename(images.path("a.E03"), images.path("away")).unwrap();
    refused("a.E01", "segment 3 is missing");
    fs::copy(images.path("a.E02"), images.path("a.E03")).unwrap();
    refused("a.E01", "not that segment");
    std::os::unix::fs::symlink("away", images.path("a.E03.link")).unwrap();
    fs::rename(images.path("a.E03.link"), images.path("a.E03")).unwrap();
    refused("a.E01", "a link or device among segments");
    fs::copy(images.path("a.E02"), images.path("one.E02")).unwrap();
    refused("one.E01", "not that segment");
    fs::remove_file(images.path("one.E02")).unwrap();
    File::options().write(true).open(images.path("one.E01")).unwrap().set_len(100_000).unwrap();
    refused("one.E01", "cut off");
    let (status, _, said) = run(&images, &["verify", "-q", "base.raw"]);
    assert!(status == 1 && said.contains("only an EnCase image"), "{said}");
}

/// The child gets open files: neither root nor an ordinary user gives it more.
#[test]
fn an_ordinary_user_reads_an_image() {
    needs!("ewfacquire", "setpriv");
    let images = images();
    fs::set_permissions(images.path("."), Permissions::from_mode(0o755)).unwrap();
    acquire(&images, "a", &["-c", "fast", "-S", "1MiB"]);
    let copy = images.path("program");
    copy_program(program().as_ref(), &copy);
    let verify = |command: &mut Command| {
        let output = command.args(["verify", "-q", "a.E01"]).current_dir(images.path("")).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    fs::set_permissions(images.path("a.E01"), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(images.path("a.E02"), Permissions::from_mode(0o644)).unwrap();
    for part in 3..=9 {
        let part = images.path(&format!("a.E{part:02}"));
        if part.exists() {
            fs::set_permissions(part, Permissions::from_mode(0o644)).unwrap();
        }
    }
    assert_eq!(verify(&mut as_ordinary_user(copy.as_os_str())), (Some(0), String::new()));
    fs::set_permissions(images.path("a.E02"), Permissions::from_mode(0o000)).unwrap();
    let (status, said) = verify(&mut as_ordinary_user(copy.as_os_str()));
    assert!(status == Some(1) && said.contains("a.E02\": permission denied"), "{said}");
    assert_eq!(verify(&mut Command::new(&copy)), (Some(0), String::new()), "whoever runs the tests owns it");
}

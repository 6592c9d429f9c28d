//! Guests on NBD servers, and in files that hold disks in other ways: the commands of
//! docs/sources.md.

use std::fs;
use std::path::Path;
use std::time::Duration;
use virt_bmap_testutil::ranges::normalise;
use virt_bmap_testutil::sandbox::{self, Finished, Sandbox};
use virt_bmap_testutil::textmap::{TextMap, body};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, mapping, oracle_fiwalk, servers};

/// Maps the export of nbdkit with these arguments.
fn map(dir: &Path, nbdkit: &[&str], options: &[&str]) -> Finished {
    let (server, socket) = servers::nbdkit(dir, nbdkit);
    let uri = format!("nbd+unix:///disk%201?socket={}", socket.display());
    let run = Sandbox::new().run([&[uri.as_str()][..], options].concat());
    drop(server);
    run
}

#[test]
fn an_export_is_mapped_like_its_image() {
    needs!("guestfish", "sfdisk", "nbdkit", "qemu-img");
    let dir = tempfile::tempdir().unwrap();
    let small = fixture::small();
    let image = small.image.to_str().unwrap();
    let top = dir.path().join("small.qcow2");
    tools::run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", image, top.to_str().unwrap()]);
    // The server takes one connection, and reads of whole blocks of 4 KiB only.
    let server = ["--filter=blocksize-policy", "--filter=limit", "file", top.to_str().unwrap()];
    let policy = ["limit=1", "blocksize-minimum=4096", "blocksize-error-policy=error"];
    let run = map(dir.path(), &[&server[..], &policy].concat(), &["--format", "qcow2"]);
    run.assert_code(0);
    assert_eq!(run.files(), ["disk 1.bmap"]);
    let text = run.read("disk 1.bmap");
    assert!(body(&text) == body(&mapping::of(&[small], &[]).text));
    let header = String::from_utf8_lossy(&text).into_owned();
    assert!(header.contains("format=qcow2 name=nbd+unix:///disk%201?socket=/"), "{header}");
    // A map is not the user's word for connecting to a server.
    let run = run.sandbox.run(["update", "disk 1.bmap"]);
    run.assert_fails(&["state it with --image"]);
}

/// The server allows several connections, so nothing stands between it and the program.
#[test]
fn a_raw_export_is_read_from_its_server() {
    needs!("guestfish", "sfdisk", "nbdkit");
    let dir = tempfile::tempdir().unwrap();
    let small = fixture::small();
    // It allows fewer than the program asks for.
    let server = ["--filter=limit", "file", small.image.to_str().unwrap(), "limit=2"];
    let run = map(dir.path(), &server, &[]);
    run.assert_code(0);
    assert!(body(&run.read("disk 1.bmap")) == body(&mapping::of(&[small], &[]).text));
}

/// What a server cannot read is like a bad sector: the device and the file are named.
#[test]
fn what_a_server_cannot_read_is_named() {
    needs!("nbdkit", "mkfs.ext4");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for name in ["bad", "good"] {
        fs::write(tree.join(name), vec![name.as_bytes()[0]; 8192]).unwrap();
    }
    let image = dir.path().join("guest.raw");
    let mut mkfs = tools::command("mkfs.ext4");
    tools::output(mkfs.args(["-q", "-F", "-b", "4096", "-d"]).args([&tree, &image]).arg("16M"));
    let bytes = fs::read(&image).unwrap();
    let bad = bytes.chunks(4096).position(|block| block.iter().all(|byte| *byte == b'b')).unwrap() * 4096;
    let script = format!(
        "case $1 in get_size) stat -c %s {image};; \
         pread) [ $4 -ge {end} ] || [ $(($4 + $3)) -le {bad} ] || {{ echo EIO bad >&2; exit 1; }}; \
         dd if={image} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none;; *) exit 2;; esac",
        image = image.display(),
        end = bad + 4096,
    );
    fs::write(dir.path().join("server"), script).unwrap();
    let server = dir.path().join("server");
    tools::run("chmod", ["+x", server.to_str().unwrap()]);
    let run = map(dir.path(), &["sh", server.to_str().unwrap()], &["-o", "guest.bmap", "--proof", "every"]);
    run.assert_code(3);
    let failures: Vec<&str> = run.stderr.lines().filter(|line| line.contains("cannot read it")).collect();
    let [failure] = failures[..] else { panic!("{}", run.stderr) };
    assert!(failure.contains("/dev/sda /bad: "), "{failure}");
    assert!(String::from_utf8_lossy(&run.read("guest.bmap")).contains(" f /dev/sda /good\n"));
}

/// One guest, with its disks in segments, in an appliance, in an EnCase image and compressed. Other
/// programs make these of raw disks, whose map must be the same.
#[test]
fn a_disk_is_mapped_the_same_whatever_holds_it() {
    needs!("mkfs.ext4", "split", "qemu-img", "tar", "ewfacquire", "xz", "fiwalk");
    let dir = tempfile::tempdir().unwrap();
    let sh = |script: &str| tools::run("sh", ["-euc", &format!("cd {}; {script}", dir.path().display())]);
    for disk in ["a", "b", "c", "d"] {
        let tree = dir.path().join(disk);
        fs::create_dir(&tree).unwrap();
        for (name, length) in [("small", 5000), ("large", 300_000)] {
            fs::write(tree.join(format!("{disk}-{name}")), disk.repeat(length)).unwrap();
        }
        sh(&format!("mkfs.ext4 -q -F -b 4096 -L {disk} -d {disk} {disk}.raw 16M"));
    }
    fs::write(
        dir.path().join("vm.ovf"),
        "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'><References>\
         <File ovf:id='f' ovf:href='b.vmdk'/></References><DiskSection><Disk ovf:fileRef='f'/></DiskSection>\
         <VirtualSystem/></Envelope>",
    )
    .unwrap();
    sh("split -d -a 3 --numeric-suffixes=1 -b 5M a.raw a.
        qemu-img convert -f raw -O vmdk -o subformat=streamOptimized b.raw b.vmdk; tar cf b.ova vm.ovf b.vmdk
        ewfacquire -u -q -c none -S 9MiB -t c c.raw
        qemu-img convert -f raw -O qcow2 d.raw d.qcow2; xz d.qcow2");
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let raw = ["a.raw", "b.raw", "c.raw", "d.raw"].map(at);
    let held = ["a.001", "b.ova", "c.E01", "d.qcow2.xz"].map(at);
    let sealed = sandbox::sealed(held.iter().chain(&[at("a.004"), at("c.E02")]));
    let run = Sandbox::new()
        .run([&raw.each_ref().map(String::as_str)[..], &["-o", "raw.bmap", "--format", "raw"]].concat());
    run.assert_code(0);
    let wanted = run.read("raw.bmap");
    let run = run.sandbox.run([&held.each_ref().map(String::as_str)[..], &["-o", "held.bmap"]].concat());
    run.assert_code(0);
    let text = run.read("held.bmap");
    assert!(body(&text) == body(&wanted), "{}", String::from_utf8_lossy(&text));
    let header = String::from_utf8_lossy(&text).into_owned();
    for name in ["a.001", "b.ova/b.vmdk", "c.E01", "d.qcow2.xz"] {
        assert!(header.contains(name), "{header}");
    }
    // fiwalk reads the EnCase image itself.
    let xml = dir.path().join("c.xml");
    tools::run("fiwalk", ["-z", "-g", "-O", "-X", xml.to_str().unwrap(), &held[2]]);
    let theirs = oracle_fiwalk::parse(&fs::read_to_string(&xml).unwrap(), "img_offset");
    let ours = TextMap::parse(&text).paths(3, 'f', "/dev/sdc");
    assert_eq!(ours.len(), 2);
    for (path, ranges) in ours {
        let path = String::from_utf8(path).unwrap();
        // It gives bytes, we give blocks.
        let blocks = theirs[&path].iter().map(|range| range.start..range.end.next_multiple_of(4096));
        assert_eq!(ranges, normalise(blocks), "{path}");
    }
    // The map names its disks, and a write to a later segment is noticed.
    let run = run.sandbox.run(["update", "held.bmap"]);
    run.assert_code(0);
    assert_eq!(run.stdout, b"unchanged\n");
    drop(sealed);
    let later = fs::File::options().write(true).open(at("a.004")).unwrap();
    later.set_modified(std::time::SystemTime::now() + Duration::from_secs(60)).unwrap();
    let traced =
        [&["trace", "--map", "held.bmap", "--run", "true"][..], &held.each_ref().map(String::as_str)]
            .concat();
    run.sandbox.run(traced).assert_fails(&["a.004", "was changed after the map was written"]);
}

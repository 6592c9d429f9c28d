//! Guests on NBD servers.

use std::fs;
use std::path::Path;
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::textmap::body;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, mapping, servers};

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
    let run = map(dir.path(), &["sh", server.to_str().unwrap()], &["-o", "guest.bmap"]);
    run.assert_code(3);
    let failures: Vec<&str> = run.stderr.lines().filter(|line| line.contains("cannot read it")).collect();
    let [failure] = failures[..] else { panic!("{}", run.stderr) };
    assert!(failure.contains("/dev/sda /bad: "), "{failure}");
    assert!(String::from_utf8_lossy(&run.read("guest.bmap")).contains(" f /dev/sda /good\n"));
}

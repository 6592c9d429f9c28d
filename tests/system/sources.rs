//! Disks on NBD servers: the recipes of docs/sources.md, TLS, and lists from a server. No mapping:
//! the program reads all bytes of an export and compares them with what nbdcopy has read.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use virt_bmap_testutil::places::program;
use virt_bmap_testutil::random::Random;
use virt_bmap_testutil::sandbox::is_one_error;
use virt_bmap_testutil::servers::{Server, nbdkit, sshd};
use virt_bmap_testutil::tools::{self, needs};

const PAGE: &str = include_str!("../../docs/sources.md");
const MAPPING: &str = "virt-bmap-rs \"$uri\" -o guest.bmap";
/// Bytes of the disk.
const SIZE: usize = 3 << 20;

/// What stands for mapping: the bytes of the export are copied by nbdcopy and compared, once with
/// the copy, and once with a copy in which one byte is another.
const COMPARE: &str = r##"nbdcopy "$uri" copy.raw
size=$(stat -c %s copy.raw)
printf '# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=%d format=raw name=copy.raw\n1 0 %x v /dev/sda\n' $size $size > copy.bmap
changed() { "$PROGRAM" changed "$uri" --base copy.raw --base-format raw --map copy.bmap --no-boot --bytes || [ $? = 3 ]; }
changed | head -1
printf X | dd of=copy.raw bs=1 seek=70001 conv=notrunc status=none
changed | head -1"##;

/// A directory with the files that the recipes name.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; SIZE];
    let mut random = Random::of(19, 0);
    bytes[1 << 20..].iter_mut().for_each(|byte| *byte = random.below(251) as u8);
    let at = |name: &str| dir.path().join(name);
    fs::write(at("guest.raw"), &bytes).unwrap();
    fs::write(at("guest.raw.001"), &bytes[..1 << 20]).unwrap();
    fs::write(at("guest.raw.002"), &bytes[1 << 20..]).unwrap();
    fs::write(at("root.raw"), &bytes[..2 << 20]).unwrap();
    fs::write(at("home.raw"), &bytes[1 << 20..]).unwrap();
    shell(
        dir.path(),
        "xz -k --block-size=1MiB guest.raw && gzip -k guest.raw && tar cf images.tar guest.raw",
    );
    dir
}

fn shell(dir: &Path, script: &str) -> Output {
    let output = Command::new("bash")
        .args(["-euc", "-o", "pipefail", script])
        .current_dir(dir)
        .env("PROGRAM", program())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn uri(scheme: &str, socket: &Path, more: &str) -> String {
    format!("{scheme}+unix:///?socket={}{more}", socket.display())
}

#[test]
fn the_recipes_read_every_byte() {
    needs!("nbdkit", "nbdcopy", "xz", "gzip", "busybox", "sshd", "ssh-keygen");
    let dir = files();
    let _sshd = sshd(dir.path(), "storage", "");
    let web = Command::new("busybox")
        .args(["httpd", "-f", "-p", "127.0.0.1:8080", "-h"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn();
    let _web = Server(web.unwrap());
    let recipes: Vec<&str> =
        PAGE.lines().filter(|line| line.starts_with("nbdkit ") && line.contains(MAPPING)).collect();
    assert_eq!(recipes.len(), 9, "{recipes:#?}");
    fs::write(dir.path().join("compare"), COMPARE).unwrap();
    for recipe in recipes {
        let line = recipe.replace(MAPPING, "bash -euo pipefail ./compare");
        // The name of the host is known in here only.
        let line = line.replace("host=storage", "config=./ssh_config host=storage");
        let line = line.replace("/images/", &format!("{}/", dir.path().display()));
        // nbdkit passes the URI as a variable of the shell only.
        let line = line.replace("--run '", "--run 'export uri; ");
        let output = shell(dir.path(), &line);
        let said = String::from_utf8(output.stdout).unwrap();
        let differ: Vec<&str> = said.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        assert_eq!(differ, ["0 differ", "1 differ"], "{recipe}: {said}");
        // The disk of two partitions is another.
        if !recipe.contains("partitioning") {
            let rest = SIZE - 70_002;
            let same =
                format!("cmp -n 70001 guest.raw copy.raw && cmp -i 70002 -n {rest} guest.raw copy.raw");
            shell(dir.path(), &same);
        }
    }
}

#[test]
fn an_iscsi_target_is_read_through_qemu() {
    needs!("tgtd", "tgtadm", "qemu-nbd", "nbdcopy");
    if !tools::is_root("start an iSCSI target") {
        return;
    }
    let dir = files();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let control = dir.path().join("control");
    let mut target = Command::new("tgtd");
    target.args(["-f", "--iscsi", &format!("portal=127.0.0.1:{port}")]).env("TGT_IPC_SOCKET", &control);
    let _target = Server(target.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let name = "iqn.2026-11.example:guest";
    let image = dir.path().join("guest.raw");
    let admin = |words: &[&str]| {
        let mut command = Command::new("tgtadm");
        command.args(["--lld", "iscsi", "--tid", "1", "--op"]).args(words).env("TGT_IPC_SOCKET", &control);
        command.output().unwrap()
    };
    let begun = Instant::now();
    while !admin(&["new", "--mode", "target", "-T", name]).status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60), "tgtd does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    for words in [
        &["new", "--mode", "logicalunit", "--lun", "1", "-b", image.to_str().unwrap()][..],
        &["bind", "--mode", "target", "-I", "ALL"],
    ] {
        assert!(admin(words).status.success(), "{words:?}");
    }
    let lines: Vec<&str> = PAGE.lines().skip_while(|line| !line.contains(" iscsi://")).take(2).collect();
    let [serve, map] = lines[..] else { panic!("{lines:?}") };
    let serve = serve.replace("iscsi://storage/", &format!("iscsi://127.0.0.1:{port}/"));
    // Here it serves one client after the other.
    let serve = serve.replace("qemu-nbd ", "qemu-nbd --persistent ");
    let uri = map.strip_prefix("virt-bmap-rs ").and_then(|map| map.strip_suffix(" -o guest.bmap")).unwrap();
    let wait = "while [ ! -S s ]; do sleep 0.05; done";
    let script =
        format!("{serve}\ntrap \"kill $!\" EXIT\n{wait}\nexport uri={uri}\nbash -euo pipefail ./compare");
    fs::write(dir.path().join("compare"), COMPARE).unwrap();
    let said = String::from_utf8(shell(dir.path(), &script).stdout).unwrap();
    let differ: Vec<&str> = said.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(differ, ["0 differ", "1 differ"], "{said}");
}

#[test]
fn an_encrypted_connection_needs_its_keys() {
    needs!("nbdkit", "nbdcopy");
    let dir = files();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, key) in [("keys", "0123456789abcdef"), ("others", "fedcba9876543210")] {
        fs::write(dir.path().join(name), format!("me:{}\n", key.repeat(4))).unwrap();
    }
    let keys = format!("--tls-psk={}", at("keys"));
    let (_server, socket) = nbdkit(dir.path(), &["--tls=require", &keys, "file", "guest.raw"]);
    shell(
        dir.path(),
        r"printf '# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=3145728 format=raw name=guest.raw\n1 0 300000 v /dev/sda\n' > guest.bmap",
    );
    let changed = |uri: &str, more: &[&str]| {
        let output = Command::new(program())
            .args(["changed", uri, "--base", "guest.raw", "--map", "guest.bmap", "--no-boot", "--bytes"])
            .args(more)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let [out, said] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(!said.contains(&at("keys")) && !said.contains("me@"), "{said}");
        (output.status.code(), out, said)
    };
    let me = uri("nbds", &socket, "&tls-username=me");
    for (uri, more) in
        [(me.clone(), &["--tls-psk", &at("keys")][..]), (format!("{me}&tls-psk-file={}", at("keys")), &[])]
    {
        let (code, out, said) = changed(&uri, more);
        assert!(code == Some(0) && out.contains(": 0 differ"), "{uri}: {out}{said}");
    }
    for (uri, more) in
        [(me.clone(), &[][..]), (me, &["--tls-psk", &at("others")]), (uri("nbd", &socket, ""), &[])]
    {
        let (code, _, said) = changed(&uri, more);
        assert!(code == Some(1) && is_one_error(&said), "{uri} {more:?}: {said}");
    }
}

/// The list comes from qemu's own server, and the same list from `nbdinfo`.
#[test]
fn a_server_gives_its_list() {
    needs!("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo");
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        "qemu-img create -q -f qcow2 a.qcow2 8M && qemu-img bitmap --add -g 64k a.qcow2 b1
         qemu-io -f qcow2 -c 'write -q 1M 64k' -c 'write -q 3M 128k' a.qcow2
         printf '# virt-bmap-rs 0.1.0 map 1\n# disk 1 size=8388608 format=raw name=x\n1 0 100000 v /dev/sda\n1 100000 120000 f /dev/sda /a\n1 120000 310000 v /dev/sda\n1 310000 330000 f /dev/sda /b\n' > guest.bmap",
    );
    let socket = dir.path().join("s");
    let server = tools::command("qemu-nbd")
        .args(["-r", "-t", "-e", "4", "-f", "qcow2", "-B", "b1", "-k"])
        .arg(&socket)
        .arg("a.qcow2")
        .current_dir(dir.path())
        .spawn();
    let _server = Server(server.unwrap());
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let uri = uri("nbd", &socket, "");
    let lookup = |list: &str, more: &[&str]| {
        let output = Command::new(program())
            .args(["lookup", "guest.bmap", "--json", "--ranges", list])
            .args(more)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for context in ["base:allocation", "qemu:dirty-bitmap:b1"] {
        shell(dir.path(), &format!("nbdinfo --map={context} --json '{uri}' > list.json"));
        let answer = lookup(&uri, &["--context", context]);
        assert_eq!(answer, lookup("list.json", &[]), "{context}");
        assert!(answer.contains("\"/a\"") && answer.contains("\"/b\""), "{answer}");
    }
    let output = Command::new(program())
        .args(["lookup", "guest.bmap", "--ranges", &uri, "--context", "qemu:dirty-bitmap:none"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}

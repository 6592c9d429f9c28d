//! For bad input the program prints one clear sentence and fails. It does not hang or panic, leaves
//! nothing behind and changes no file.
//!
//! For every run the sandbox checks that no process and no temporary file is left.

use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use virt_bmap_testutil::fixture::{self, Fixture};
use virt_bmap_testutil::formats;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox::{self, Finished, Running, Sandbox, kill, sealed};
use virt_bmap_testutil::textmap::{TextMap, body};
use virt_bmap_testutil::tools::{self, needs};

/// The content of a map that exists before the run. A failed run must not change it.
const OLD: &[u8] = b"1 0 200 v /dev/old\n";

/// A sandbox whose working directory already has an `out.bmap`.
fn with_old_map() -> Sandbox {
    let sandbox = Sandbox::new();
    fs::write(sandbox.cwd().join("out.bmap"), OLD).unwrap();
    sandbox
}

/// Maps `image` with `options`. The run must fail, its message must name the image and contain
/// `words`, and the old map must be unchanged.
#[track_caller]
fn fails(image: &Path, options: &[&str], words: &[&str]) -> Finished {
    fails_in(with_old_map(), image, options, words)
}

#[track_caller]
fn fails_in(sandbox: Sandbox, image: &Path, options: &[&str], words: &[&str]) -> Finished {
    let args = [image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()];
    let run = sandbox.run(args.into_iter().chain(options.iter().map(std::ffi::OsStr::new)));
    run.assert_fails(words);
    let name = image.file_name().unwrap().to_str().unwrap();
    run.assert_says(&[name]);
    assert!(run.read("out.bmap") == OLD, "the old map is gone");
    assert_eq!(run.files(), ["out.bmap"]);
    run
}

/// The small guest in another format, in a new directory.
fn small_as(format: &str, options: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join(format!("guest.{format}"));
    formats::convert(&fixture::small().image, &image, format, options);
    (dir, image)
}

#[test]
fn no_such_file() {
    fails("/nowhere/guest.vmdk".as_ref(), &[], &["/nowhere/guest.vmdk", "no such file"]);
}

#[test]
fn a_directory() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), &[], &["directory"]);
}

#[test]
fn an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("empty.img");
    File::create(&image).unwrap();
    fails(&image, &[], &["empty"]);
}

#[test]
fn a_device_that_is_no_disk() {
    fails("/dev/null".as_ref(), &[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    tools::run("mkfifo", [&fifo]);
    fails(&fifo, &[], &[]);
}

#[test]
fn no_permission() {
    if !tools::is_root("become another user") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let image = dir.path().join("secret.img");
    fs::write(&image, [0; 4096]).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    let sandbox = Sandbox::new().run_as_nobody();
    let run = sandbox.run([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_fails(&["secret.img", "permission denied"]);
    assert_eq!(run.files(), [""; 0]);
}

#[test]
fn usage() {
    for args in [&[][..], &["--no-such-option"], &["--accel", "magic", "x"], &["--probe", "magic", "x"]] {
        let run = sandbox::run(args);
        run.assert_code(2).assert_says(&["--help"]);
        assert_eq!(run.files(), [""; 0]);
    }
    let run = sandbox::run(["--version"]);
    run.assert_code(0);
    assert!(String::from_utf8_lossy(&run.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_truncated_qcow2() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let (_dir, image) = small_as("qcow2", "");
    for length in [100, 5000] {
        File::options().write(true).open(&image).unwrap().set_len(length).unwrap();
        let seal = sealed([&image]);
        fails(&image, &["--format", "qcow2"], &[]);
        drop(seal);
    }
}

#[test]
fn a_corrupt_qcow2() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let (_dir, image) = small_as("qcow2", "");
    // The size of the level-1 table is at byte 36.
    File::options().write(true).open(&image).unwrap().write_all_at(&[0xff; 4], 36).unwrap();
    let seal = sealed([&image]);
    fails(&image, &[], &[]);
    drop(seal);
}

#[test]
fn a_truncated_vmdk() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let (_dir, image) = small_as("vmdk", "subformat=monolithicSparse");
    File::options().write(true).open(&image).unwrap().set_len(70000).unwrap();
    let seal = sealed([&image]);
    fails(&image, &[], &[]);
    drop(seal);
}

#[test]
fn a_corrupt_vmdk() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let (_dir, image) = small_as("vmdk", "subformat=monolithicSparse");
    // The header starts with magic, version and flags. The capacity, the grain size and other
    // fields follow.
    File::options().write(true).open(&image).unwrap().write_all_at(&[0xff; 64], 12).unwrap();
    let seal = sealed([&image]);
    fails(&image, &[], &[]);
    drop(seal);
}

#[test]
fn a_missing_extent() {
    needs!("guestfish", "sfdisk", "qemu-img");
    let (dir, image) = small_as("vmdk", "subformat=monolithicFlat");
    fs::remove_file(dir.path().join("guest-flat.vmdk")).unwrap();
    fails(&image, &[], &["guest-flat.vmdk"]);
}

#[test]
fn a_missing_backing_file() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-io");
    for format in ["qcow2", "vmdk"] {
        let dir = tempfile::tempdir().unwrap();
        let images = formats::chain(&fixture::small().image, dir.path(), format);
        fs::remove_file(&images[0]).unwrap();
        let base = format!("base/disk.{format}");
        fails(&images[2], &[], &[&base]);
    }
}

#[test]
fn a_reference_to_what_is_no_local_file_is_refused() {
    needs!("qemu-img");
    let dir = tempfile::tempdir().unwrap();
    for (i, reference) in [
        "nbd:unix:/nowhere:exportname=x",
        "http://127.0.0.1:9/x",
        "json:{\"driver\":\"null-co\",\"size\":1048576}",
    ]
    .iter()
    .enumerate()
    {
        let image = dir.path().join(format!("guest{i}.qcow2"));
        let mut create = tools::command("qemu-img");
        create
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", reference])
            .arg(&image)
            .arg("1M");
        tools::output(&mut create);
        // The message says what the reference is, and which option accepts it.
        fails(&image, &[], &["--format"]);
    }
}

#[test]
fn a_locked_image() {
    needs!("guestfish", "sfdisk", "qemu-img", "qemu-nbd");
    let (dir, image) = small_as("qcow2", "");
    let socket = dir.path().join("socket");
    struct Holder(Child);
    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
    let mut nbd = tools::command("qemu-nbd");
    nbd.args(["--persistent", "--format=qcow2", "--socket"]).arg(&socket).arg(&image);
    let holder = Holder(nbd.stdin(Stdio::null()).spawn().unwrap());
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    fails(&image, &[], &["--force-share"]);
    // `qemu-nbd` only holds the lock and nobody writes, so the map is complete.
    let run = sandbox::run([image.as_os_str(), "--force-share".as_ref(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_code(0).assert_says(&["warning"]);
    assert!(body(&run.read("out.bmap")) == body(&mapping::of(&[fixture::small()], &[]).text));
    drop(holder);
}

#[test]
fn a_blank_disk() {
    needs!("guestfish", "sfdisk");
    let mapping = mapping::of(&[fixture::blank()], &[]);
    assert_eq!(mapping.code, 0, "{}", mapping.stderr);
    assert_eq!(body(&mapping.text), b"1 0 800000 v /dev/sda\n");
    assert!(mapping.stderr.to_lowercase().contains("warning"), "{}", mapping.stderr);
    // Why there are no files is what everybody asks.
    assert!(mapping.stderr.contains("docs/getting-started.md"), "{}", mapping.stderr);
}

/// Maps a disk whose devices `bad` cannot be examined, and returns the map. Standard error and the
/// header of the map must name these devices, and the other filesystems must be mapped.
fn all_but(fixture: &Fixture, bad: &[&str]) -> TextMap {
    let mapping = mapping::of(&[fixture], &[]);
    assert_eq!(mapping.code, 3, "{}", mapping.stderr);
    assert!(mapping.stderr.contains("docs/formats.md#warnings"), "{}", mapping.stderr);
    let header = mapping.map.header.join("\n");
    for device in bad {
        assert!(mapping.stderr.contains(device), "{device} is not on standard error:\n{}", mapping.stderr);
        assert!(header.contains(device), "{device} is not in the header:\n{header}");
        for kind in ['d', 'f'] {
            assert!(mapping.map.paths(1, kind, device).is_empty());
        }
    }
    for filesystem in &fixture.filesystems {
        let files = mapping.map.paths(1, 'f', &filesystem.volume.device);
        assert!(!files.is_empty(), "{} was not mapped", filesystem.volume.device);
    }
    let partitions: Vec<_> = mapping.map.devices(1, 'p').into_values().collect();
    assert_eq!(
        partitions,
        fixture.partitions.iter().map(virt_bmap_testutil::layout::Volume::on_disk).collect::<Vec<_>>()
    );
    mapping.map
}

#[test]
fn a_damaged_filesystem_among_good_ones() {
    needs!("guestfish", "sfdisk", "mount");
    let damaged = fixture::damaged();
    let map = all_but(damaged, &["/dev/sda2"]);
    if !tools::is_root("mount a filesystem") {
        return;
    }
    for filesystem in &damaged.filesystems {
        let tree = virt_bmap_testutil::oracle_fiemap::tree(filesystem);
        let found = map.paths(1, 'f', &filesystem.volume.device);
        for (name, file) in tree.files.iter().filter(|(_, file)| !file.on_disk.is_empty()) {
            let ranges = found.get(name).map(|r| virt_bmap_testutil::ranges::round_out(r, filesystem.block));
            assert_eq!(ranges.as_ref(), Some(&file.on_disk), "{}", String::from_utf8_lossy(name));
        }
    }
}

#[test]
fn an_encrypted_volume_without_key() {
    needs!("guestfish", "sfdisk");
    all_but(fixture::luks(), &["/dev/sda2"]);
}

#[test]
fn out_in_a_missing_directory() {
    needs!("guestfish", "sfdisk");
    let run = sandbox::run([fixture::small().image.as_os_str(), "-o".as_ref(), "missing/out.bmap".as_ref()]);
    run.assert_fails(&["missing"]);
    // The program can find this out before it starts an appliance.
    assert!(run.elapsed.as_secs() < 5, "{:?}", run.elapsed);
    assert_eq!(run.files(), [""; 0]);
}

#[test]
fn out_is_a_directory() {
    needs!("guestfish", "sfdisk");
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.cwd().join("out.bmap")).unwrap();
    let run = sandbox.run([fixture::small().image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    run.assert_fails(&["out.bmap", "directory"]);
    assert_eq!(run.files(), ["out.bmap"]);
}

#[test]
fn out_in_a_full_directory() {
    needs!("guestfish", "sfdisk", "unshare", "mount");
    if !tools::is_root("mount a tmpfs") {
        return;
    }
    // The map of the small guest has some kilobytes. The tmpfs has room for one page.
    let script = "mkdir full && mount -t tmpfs -o size=4k tmpfs full && printf old > full/out.bmap && \"$@\"; code=$?; \
        test \"$(ls -A full)\" = out.bmap && test \"$(cat full/out.bmap)\" = old || exit 99; exit $code";
    let sandbox = Sandbox::new().wrapper(["unshare", "--mount", "sh", "-c", script, "sh"]);
    let run = sandbox.run([fixture::small().image.as_os_str(), "-o".as_ref(), "full/out.bmap".as_ref()]);
    run.assert_fails(&["full/out.bmap", "no space left"]);
}

#[test]
fn out_is_the_image() {
    needs!("guestfish", "sfdisk");
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("guest.img");
    formats::copy(&fixture::plain().image, &image);
    let seal = sealed([&image]);
    let run = sandbox::run([image.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    run.assert_fails(&["guest.img"]);
    drop(seal);
}

#[test]
fn libguestfs_without_an_appliance() {
    needs!("guestfish", "sfdisk");
    let sandbox = with_old_map().env("LIBGUESTFS_PATH", "/nowhere");
    let args = [fixture::small().image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()];
    let run = sandbox.run(args);
    run.assert_fails(&["appliance", "/nowhere"]);
    assert!(run.read("out.bmap") == OLD);
}

/// Runs the program with a new `/boot`, which the shell commands `prepare` fill. The real `/boot`
/// is at `/mnt`.
fn with_boot(sandbox: Sandbox, prepare: &str) -> Sandbox {
    let script = format!(
        "k=$(ls /boot/vmlinuz-* | tail -n 1) && mount --bind /boot /mnt && mount -t tmpfs tmpfs /boot && {{ {prepare}; }} && exec \"$@\""
    );
    sandbox.wrapper(["unshare", "--mount", "sh", "-c", &script, "sh"])
}

#[test]
fn no_kernel() {
    needs!("guestfish", "sfdisk", "unshare", "mount");
    if !tools::is_root("hide /boot") {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let sandbox = with_boot(Sandbox::new(), "mount -t tmpfs tmpfs /lib/modules")
        .env("LIBGUESTFS_CACHEDIR", cache.path());
    let args = [fixture::small().image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()];
    sandbox.run(args).assert_fails(&["kernel", "/boot"]);
}

#[test]
fn kernels_that_only_root_may_read() {
    needs!("guestfish", "sfdisk", "unshare", "mount", "setpriv");
    if !tools::is_root("hide /boot") {
        return;
    }
    // Newer packages of kernels have a second copy beside the modules.
    let prepare = "cp /mnt/${k##*/} /boot/ && chmod 600 /boot/vmlinuz-* && v=/lib/modules/${k#/boot/vmlinuz-}/vmlinuz \
        && { [ ! -e $v ] || mount --bind /boot/${k##*/} $v; }";
    let cache = tempfile::tempdir().unwrap();
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let sandbox = with_boot(Sandbox::new(), prepare).run_as_nobody().env("LIBGUESTFS_CACHEDIR", cache.path());
    // The supermin that libguestfs 1.60 runs cannot remove its own temporary files as an ordinary
    // user: directories in an archive of libguestfs lack permissions.
    let sandbox = sandbox.env("TMPDIR", cache.path());
    let image = sandbox.cwd().join("guest.img");
    formats::copy(&fixture::plain().image, &image);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    // The message also says how to solve the problem.
    sandbox.run(["guest.img", "-o", "out.bmap"]).assert_fails(&["/boot/vmlinuz-", "chmod"]);
}

/// Starts a run in `sandbox` and waits until `moment` returns. Then it kills, with `SIGKILL`, the helper process
/// whose command line contains `name`. The run must fail with a message that contains `words`.
fn killed(sandbox: Sandbox, image: &Path, name: &str, moment: impl FnOnce(&mut Running), words: &[&str]) {
    let mut running = sandbox.start([image.as_os_str(), "-o".as_ref(), "out.bmap".as_ref()]);
    let helper = running.helper(name);
    moment(&mut running);
    kill(helper, Signal::KILL);
    let killed = Instant::now();
    let run = running.finish();
    assert!(killed.elapsed().as_secs() < 60, "took {:?} to notice", killed.elapsed());
    run.assert_fails(words);
    assert!(run.read("out.bmap") == OLD);
    assert_eq!(run.files(), ["out.bmap"]);
}

#[test]
fn qemu_killed_as_it_boots() {
    needs!("guestfish", "sfdisk");
    let boots = |running: &mut Running| running.wait(Duration::from_millis(1000));
    // Our own appliance would be followed by libguestfs's.
    let sandbox = with_old_map().env("VIRT_BMAP_APPLIANCE", "stock");
    killed(sandbox, &fixture::guest().image, "-device virtio-scsi", boots, &["appliance"]);
}

#[test]
fn qemu_killed_as_it_works() {
    needs!("guestfish", "sfdisk");
    let works = |running: &mut Running| running.wait_until_said("/dev/vg0/home");
    killed(with_old_map(), &fixture::guest().image, "-device virtio-scsi", works, &["appliance"]);
}

#[test]
fn qemu_nbd_killed_as_it_serves() {
    needs!("guestfish", "sfdisk", "qemu-img");
    // Only qemu-nbd can read compressed images.
    let (_dir, image) = small_as("vmdk", "subformat=streamOptimized");
    let seal = sealed([&image]);
    let serves = |running: &mut Running| running.wait_until_said("examining");
    killed(with_old_map(), &image, "qemu-nbd", serves, &["guest.vmdk"]);
    drop(seal);
}

#[test]
fn no_progress_for_too_long() {
    needs!("guestfish", "sfdisk");
    // A stopped qemu does not answer.
    let mut running = with_old_map().start([
        fixture::guest().image.as_os_str(),
        "-o".as_ref(),
        "out.bmap".as_ref(),
        "--timeout".as_ref(),
        "15".as_ref(),
    ]);
    let helper = running.helper("-device virtio-scsi");
    kill(helper, Signal::STOP);
    let run = running.finish();
    run.assert_fails(&["15"]);
    assert!(run.read("out.bmap") == OLD);
}

#[test]
fn a_filesystem_that_hangs_the_appliance_is_left_out() {
    needs!("guestfish", "sfdisk");
    let damaged = fixture::damaged();
    let image = damaged.image.as_os_str();
    let mut running = with_old_map().start([
        image,
        "-o".as_ref(),
        "out.bmap".as_ref(),
        "--timeout".as_ref(),
        "45".as_ref(),
    ]);
    let helper = running.helper("-device virtio-scsi");
    running.wait_until_said("reading /dev/sda1");
    kill(helper, Signal::STOP);
    let run = running.finish();
    run.assert_code(3);
    // The appliance may have come to the next filesystem before it was stopped.
    let said = |device: &str| {
        run.stderr.contains(&format!("\nvirt-bmap-rs: /dev/{device}: left out; nothing happened"))
    };
    let left_out: Vec<_> = ["sda1", "sda2", "sda4"].into_iter().filter(|device| said(device)).collect();
    let [left_out] = left_out[..] else { panic!("left out: {left_out:?}\n{}", run.stderr) };
    let map = TextMap::parse(&run.read("out.bmap"));
    for device in ["sda1", "sda4"] {
        let files = map.paths(1, 'f', &format!("/dev/{device}"));
        assert_eq!(files.is_empty(), device == left_out, "{device}");
    }
}

#[test]
fn a_map_that_is_none_is_not_converted() {
    for bad in ["1 0 200 v", "1 200 100 v /dev/sda\n", "x\n", "1 0 fffffffffffffffff v /dev/sda\n"] {
        let sandbox = with_old_map();
        fs::write(sandbox.cwd().join("in.bmap"), bad).unwrap();
        let run = sandbox.run(["convert", "in.bmap", "out.bmap"]);
        run.assert_fails(&["in.bmap", "line"]);
        assert!(run.read("out.bmap") == OLD);
    }
    with_old_map()
        .run(["convert", "missing.bmap", "out.bmap"])
        .assert_fails(&["missing.bmap", "no such file"]);
}

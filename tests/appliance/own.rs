//! Our own appliance: when it is built, when it is not used, and that the map is the same in any
//! case. All other tests use it, too. The commands are those of docs/appliance.md.

use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use virt_bmap_testutil::own_appliance::{
    STOCK, arguments, assert_mapped, guest, private, text, with_appliance,
};
use virt_bmap_testutil::places::program;
use virt_bmap_testutil::sandbox::{Finished, NOBODY, Sandbox, kill};
use virt_bmap_testutil::tools::{self, needs};

/// Maps the guest with an appliance that boots: no other run would use the state that it saves.
fn map(sandbox: Sandbox) -> Finished {
    sandbox.env("VIRT_BMAP_APPLIANCE", "boot").run(arguments())
}

/// The appliances in a cache.
fn built(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut built: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    built.sort();
    built
}

#[test]
fn it_is_built_once_kept_and_removed() {
    needs!("mkfs.ext4", "guestfish");
    let (sandbox, cache) = private();
    let run = sandbox.run(["appliance", "status"]);
    run.assert_code(3);
    assert!(text(&run).contains("the next run builds it"));
    let run = map(run.sandbox);
    assert_mapped(&run, true);
    let [appliance] = &built(&cache)[..] else { panic!("{:?}", built(&cache)) };
    let made = fs::metadata(appliance.join("root")).unwrap().mtime_nsec();
    let run = run.sandbox.run(["appliance", "status"]);
    run.assert_code(0);
    let status = text(&run);
    assert!(status.contains(appliance.to_str().unwrap()) && status.contains("last launch: "), "{status}");
    // What is damaged is built again: a file that was cut off, and one that was written to.
    fs::File::options().write(true).open(appliance.join("kernel")).unwrap().set_len(4096).unwrap();
    let run = map(run.sandbox);
    assert_mapped(&run, true);
    let again = fs::metadata(appliance.join("root")).unwrap().mtime_nsec();
    assert_ne!(made, again);
    // Another run uses it as it is.
    let run = map(run.sandbox);
    assert_mapped(&run, true);
    assert_eq!(fs::metadata(appliance.join("root")).unwrap().mtime_nsec(), again);
    let run = run.sandbox.run(["appliance", "remove"]);
    run.assert_code(0);
    assert!(built(&cache).is_empty());
}

/// On a host without supermin, by a user who cannot read the kernels. Other fixed appliances work
/// as well.
#[test]
fn an_exported_one_needs_no_supermin() {
    needs!("mkfs.ext4", "guestfish", "setpriv", "unshare");
    if !tools::is_root("hide supermin and become another user") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let appliance = place.path().join("appliance");
    let build = ["appliance", "build", "--output", appliance.to_str().unwrap()];
    let run = Sandbox::new().run(build);
    run.assert_code(0);
    let readme = fs::read_to_string(appliance.join("README.fixed")).unwrap();
    let key = readme.lines().find(|line| line.starts_with("key: ")).unwrap();
    assert!(text(&run).contains(key), "{readme}");
    // It does not replace anything.
    run.sandbox.run(build).assert_fails(&["appliance", "exists"]);

    let hide = format!(
        "mount --bind /bin/false {} && mount -t tmpfs -o mode=000 none /boot && exec \"$@\"",
        tools::find("supermin").unwrap().display()
    );
    for kind in ["of this build", "of another build", "libguestfs's"] {
        let path = appliance.join("virt-bmap.json");
        match kind {
            "of this build" => {}
            "of another build" => {
                let description = fs::read_to_string(&path).unwrap();
                let changed = description.replacen("\"agent\": \"", "\"agent\": \"0", 1);
                assert_ne!(description, changed);
                fs::write(&path, changed).unwrap();
            }
            _ => {
                // What supermin has built for libguestfs, as libguestfs-make-fixed-appliance(1)
                // takes it.
                fs::remove_file(&path).unwrap();
                for file in ["kernel", "initrd", "root"] {
                    let built = Path::new("/var/tmp/.guestfs-0/appliance.d").join(file);
                    let to = appliance.join(file);
                    tools::output(tools::command("cp").arg("--sparse=always").args([&built, &to]));
                }
            }
        }
        let sandbox = Sandbox::new().env("LIBGUESTFS_PATH", &appliance);
        let sandbox = sandbox.wrapper(["unshare", "-m", "sh", "-c", &hide, "sh"]).run_as_nobody();
        fs::copy(&guest().image, sandbox.cwd().join("guest.raw")).unwrap();
        let run = sandbox.run(["guest.raw", "-o", "guest.bmap"]);
        assert_mapped(&run, true);
    }
}

#[test]
fn two_runs_that_build_at_once_build_one() {
    needs!("mkfs.ext4", "guestfish");
    let cache = tempfile::tempdir().unwrap();
    let sandbox = || Sandbox::new().env("XDG_CACHE_HOME", cache.path());
    let start = || sandbox().env("VIRT_BMAP_APPLIANCE", "boot").start(arguments());
    let runs = [start(), start()];
    for run in runs {
        assert_mapped(&run.finish(), true);
    }
    let names = fs::read_dir(cache.path().join("virt-bmap-rs")).unwrap();
    let names: Vec<String> = names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("building-")).count(), 0, "{names:?}");
    assert_eq!(built(&cache.path().join("virt-bmap-rs")).len(), 1, "{names:?}");
}

#[test]
fn a_run_that_is_ended_while_it_builds_leaves_nothing_in_the_way() {
    needs!("mkfs.ext4", "guestfish");
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("cache/virt-bmap-rs");
    let unfinished = || {
        let entries = fs::read_dir(&cache).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("building-")).count()
    };
    // One that is told to end removes what it has made.
    let sandbox = || Sandbox::new().env("XDG_CACHE_HOME", place.path().join("cache"));
    let mut running = sandbox().start(arguments());
    running.wait_until("an appliance is being built", |_| unfinished() > 0);
    running.signal(Signal::TERM);
    running.finish().assert_code(128 + 15);
    assert_eq!(unfinished(), 0);
    // It has not failed.
    let names = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.filter(|name| name.to_string_lossy().contains("appliance-")).collect();
    assert!(names.is_empty(), "{names:?}");
    // One that is killed cannot.
    for name in ["tmp", "run"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    let mut killed = tools::command(program())
        .args(arguments())
        .current_dir(place.path())
        .env("XDG_CACHE_HOME", place.path().join("cache"))
        .env("TMPDIR", place.path().join("tmp"))
        .env("XDG_RUNTIME_DIR", place.path().join("run"))
        .spawn()
        .unwrap();
    while unfinished() == 0 {
        assert!(killed.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(unfinished() > 0);
    assert_mapped(&map(sandbox()), true);
    assert_eq!((unfinished(), built(&cache).len()), (0, 1));
}

/// It is built in a directory of this run, then.
#[test]
fn without_a_place_for_the_cache_it_is_built_for_one_run() {
    needs!("mkfs.ext4", "guestfish");
    if !tools::is_root("make files of other users and mount filesystems") {
        return;
    }
    // Nothing says where the cache is.
    let sandbox = Sandbox::new().wrapper(["env", "-u", "HOME", "-u", "XDG_CACHE_HOME"]);
    assert_mapped(&map(sandbox), true);

    // Another user has planted a directory, with an appliance or a link in it.
    let (sandbox, cache) = private();
    fs::create_dir_all(&cache).unwrap();
    chown(&cache, Some(NOBODY.parse().unwrap()), None).unwrap();
    let run = map(sandbox);
    assert_mapped(&run, true);
    assert!(built(&cache).is_empty());

    // Only reading is allowed. A tmpfs would let root write, whatever its permissions.
    let sandbox = Sandbox::new();
    let home = sandbox.cwd().join("home");
    fs::create_dir(&home).unwrap();
    let mount = format!("mount -t tmpfs -o ro none {} && exec \"$@\"", home.display());
    let sandbox = sandbox.env("XDG_CACHE_HOME", home.join("cache"));
    let run = map(sandbox.wrapper(["unshare", "-m", "sh", "-c", &mount, "sh"]));
    assert_mapped(&run, true);
}

#[test]
fn a_planted_appliance_is_not_started() {
    needs!("mkfs.ext4", "guestfish");
    if !tools::is_root("make files of another user") {
        return;
    }
    let (sandbox, cache, appliance) = with_appliance();
    let kernel = appliance.join("kernel");
    // The owner of one file is another user; then it is a link.
    chown(&kernel, Some(NOBODY.parse().unwrap()), None).unwrap();
    let run = map(sandbox);
    assert_mapped(&run, true);
    assert_eq!(fs::metadata(&kernel).unwrap().uid().to_string(), NOBODY);
    let elsewhere = cache.join("elsewhere");
    fs::rename(&kernel, &elsewhere).unwrap();
    symlink(&elsewhere, &kernel).unwrap();
    let run = map(run.sandbox);
    assert_mapped(&run, true);
    assert!(fs::symlink_metadata(&kernel).unwrap().is_symlink());
}

#[test]
fn a_full_cache_costs_time_only() {
    needs!("mkfs.ext4", "guestfish");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let sandbox = Sandbox::new();
    let cache = sandbox.cwd().join("cache");
    fs::create_dir(&cache).unwrap();
    let mount = format!("mount -t tmpfs -o size=64m,mode=700 none {} && exec \"$@\"", cache.display());
    let sandbox = sandbox.env("XDG_CACHE_HOME", &cache);
    let run = map(sandbox.wrapper(["unshare", "-m", "sh", "-c", &mount, "sh"]));
    assert_mapped(&run, false);
    run.assert_says(&["supermin failed"]);
}

#[test]
fn an_upgraded_package_brings_another_one() {
    needs!("mkfs.ext4", "guestfish");
    let status = Path::new("/var/lib/dpkg/status");
    if !status.exists() {
        tools::skip("this host has no dpkg");
        return;
    }
    if !tools::is_root("mount a file over another") {
        return;
    }
    let (sandbox, cache, first) = with_appliance();
    let copy = sandbox.cwd().join("status");
    fs::copy(status, &copy).unwrap();
    let mount = format!("mount --bind {} {} && exec \"$@\"", copy.display(), status.display());
    let build = |sandbox: Sandbox| {
        let run = sandbox.wrapper(["unshare", "-m", "sh", "-c", &mount, "sh"]).run(["appliance", "build"]);
        run.assert_code(0);
        run.sandbox
    };
    // A run of another version may use the one before.
    let sandbox = build(sandbox);
    let after = built(&cache);
    assert!(after.len() == 2 && after.contains(&first), "{first:?} {after:?}");
    for entry in fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.path()) {
        if entry.to_string_lossy().starts_with(&*first.to_string_lossy()) {
            tools::output(tools::command("touch").args(["-d", "2 days ago"]).arg(entry));
        }
    }
    fs::write(&copy, [fs::read(status).unwrap(), vec![b'\n']].concat()).unwrap();
    let _sandbox = build(sandbox);
    let last = built(&cache);
    assert!(last.len() == 2 && !last.contains(&first), "{after:?} {last:?}");
}

/// The kernel may have ended qemu for want of memory, which says nothing about the appliance.
#[test]
fn one_that_died_once_is_tried_again() {
    needs!("mkfs.ext4", "guestfish");
    let (sandbox, _) = private();
    let mut running = sandbox.start(arguments());
    let qemu = running.helper("-device virtio-scsi");
    kill(qemu, Signal::KILL);
    let run = running.finish();
    assert_mapped(&run, false);
    assert_mapped(&map(run.sandbox), true);
}

/// An appliance that does not come up is tried twice. If it hangs, that costs a minute.
#[test]
fn one_that_does_not_come_up_is_given_up() {
    needs!("mkfs.ext4", "guestfish", "cpio", "busybox");
    let (sandbox, _, appliance) = with_appliance();
    let initrd = appliance.join("initrd");
    // The kernel finds no init program in it, and panics.
    fs::write(&initrd, [0; 4096]).unwrap();
    describe_again(&appliance, "initrd");
    let mut run = map(sandbox);
    assert_mapped(&run, false);
    run.assert_says(&["our own did not start (", "panic"]);

    let files = run.sandbox.cwd().join("initrd");
    for directory in ["bin", "dev"] {
        fs::create_dir_all(files.join(directory)).unwrap();
    }
    fs::copy(tools::find("busybox").unwrap(), files.join("bin/busybox")).unwrap();
    let init = files.join("init");
    fs::write(&init, "#!/bin/busybox sh\nwhile :; do /bin/busybox sleep 1; done\n").unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let pack = "cd \"$1\" && find . | cpio -o -H newc --quiet > \"$2\"";
    tools::output(tools::command("sh").args(["-c", pack, "sh"]).args([&files, &initrd]));
    describe_again(&appliance, "initrd");
    run = map(run.sandbox);
    assert_mapped(&run, false);
    run.assert_says(&["did not start within 60 s"]);
    assert!(run.elapsed > Duration::from_secs(60), "{:?}", run.elapsed);
    // A launch is announced before it is tried, a failure after it.
    let is_tried = |said: &str| match said.find("starting the appliance") {
        Some(launch) => launch < said.find(STOCK).unwrap(),
        None => false,
    };
    assert!(is_tried(&run.stderr), "{}", run.stderr);
    // It is not tried a third time.
    let mut running = run.sandbox.start(arguments());
    running.wait_until_said("did not start within 60 s");
    assert!(!is_tried(&running.stderr()), "{}", running.stderr());
    running.signal(Signal::TERM);
    run = running.finish();
    run.assert_code(128 + 15);
    let run = run.sandbox.run(["appliance", "status"]);
    run.assert_code(3);
    assert!(text(&run).contains("did not start within 60 s"));
}

/// Notes the size and time of a file that the test has changed, so that it does not seem damaged.
fn describe_again(appliance: &Path, file: &str) {
    let path = appliance.join("virt-bmap.json");
    let mut description: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let metadata = fs::metadata(appliance.join(file)).unwrap();
    let files = description["files"].as_array_mut().unwrap();
    let entry = files.iter_mut().find(|entry| entry[0] == file).unwrap();
    entry[1] = metadata.len().into();
    entry[2] = (metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()).into();
    fs::write(&path, description.to_string()).unwrap();
}

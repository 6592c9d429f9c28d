//! Saved states of our own appliance: when one is saved, used, given up and removed, and that the
//! map is the same in any case. All other tests use them, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use virt_bmap_testutil::own_appliance::{arguments, assert_mapped, text, with_appliance};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::tools::{self, needs};

const SAVING: &str = "saving the state of the appliance";
const BOOTS: &str = "the appliance boots in each run";

/// The files in a cache whose names have this in them.
fn files(cache: &Path, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().contains(part)).collect()
}

fn map(sandbox: Sandbox, is_saved: bool) -> Finished {
    let run = sandbox.run(arguments());
    assert_mapped(&run, true);
    assert_eq!(run.stderr.contains(SAVING), is_saved, "{}", run.stderr);
    run
}

#[test]
fn later_runs_go_on_from_it() {
    needs!("mkfs.ext4", "guestfish");
    let (sandbox, cache, _) = with_appliance();
    let run = map(sandbox, true);
    let first = run.elapsed;
    assert_eq!((files(&cache, ".state-").len(), files(&cache, ".saving-").len()), (1, 0));
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&files(&cache, ".state-")[0]).unwrap());
    assert_eq!(mode & 0o7777, 0o600, "memory of the appliance is nobody else's");
    let run = map(run.sandbox, false);
    assert!(run.elapsed * 2 < first, "{:?} after {first:?}", run.elapsed);
    // Another number of disks is another virtual machine.
    let image = arguments()[0];
    let run = run.sandbox.run([image, image, "-o", "two.bmap"]);
    run.assert_code(0).assert_says(&[SAVING]);
    assert_eq!(files(&cache, ".state-").len(), 2);
    let run = run.sandbox.run(["appliance", "status"]);
    run.assert_code(0);
    assert!(text(&run).contains("saved states: 2, "), "{}", text(&run));
    // These boot.
    for options in [&["--appliance", "boot"][..], &["--verbose"], &["--appliance", "boot", "--smp", "1"]] {
        let sandbox = Sandbox::new().env("XDG_CACHE_HOME", cache.parent().unwrap());
        let run = sandbox.run(arguments().iter().chain(options));
        assert_mapped(&run, true);
        assert!(!run.stderr.contains(SAVING), "{}", run.stderr);
    }
    let run = run.sandbox.run(["appliance", "remove"]);
    run.assert_code(0);
    assert_eq!(files(&cache, ".state-"), Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_one_is_given_up() {
    needs!("mkfs.ext4", "guestfish");
    let (sandbox, cache, _) = with_appliance();
    let run = map(sandbox, true);
    let [state] = &files(&cache, ".state-")[..] else { panic!("{:?}", files(&cache, "")) };
    let whole = fs::metadata(state).unwrap().len();
    fs::File::options().write(true).open(state).unwrap().set_len(whole / 2).unwrap();
    let run = map(run.sandbox, false);
    run.assert_says(&[BOOTS]);
    assert!(!state.exists());
    // It is neither saved again nor mentioned.
    let run = map(run.sandbox, false);
    assert!(!run.stderr.contains(BOOTS), "{}", run.stderr);
    // But here it is.
    let run = run.sandbox.run(["appliance", "build"]);
    run.assert_code(0);
    let run = map(run.sandbox, true);
    map(run.sandbox, false);
}

#[test]
fn a_run_that_is_killed_while_it_saves_leaves_nothing_that_stays() {
    needs!("mkfs.ext4", "guestfish");
    let (_place, cache, appliance) = with_appliance();
    let sandbox = || Sandbox::new().env("XDG_CACHE_HOME", cache.parent().unwrap());
    let mut running = sandbox().start(arguments());
    running.wait_until_said(SAVING);
    running.kill();
    // As if it had been killed a moment later.
    let unfinished = format!("{}.saving-a", appliance.display());
    fs::write(&unfinished, "half").unwrap();
    let run = map(sandbox(), true);
    assert!(!Path::new(&unfinished).exists());
    map(run.sandbox, false);
}

#[test]
fn the_disks_and_the_clock_are_those_of_the_run() {
    needs!("mkfs.ext4", "guestfish");
    let (sandbox, cache, appliance) = with_appliance();
    let run = sandbox.run(arguments().into_iter().chain(["--smp", "1"]));
    assert_mapped(&run, true);
    let [state] = &files(&cache, ".state-")[..] else { panic!("{:?}", files(&cache, "")) };
    // guestfish goes on from it, with disks of its own. If the clock stood still, it would be behind
    // by seconds.
    std::thread::sleep(Duration::from_secs(2));
    let place = tempfile::tempdir().unwrap();
    let disk = |name: &str, size: u64| {
        let path = place.path().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        path.display().to_string()
    };
    let script = format!(
        "set-smp 1\nconfig -incoming \"exec:exec cat {}\"\nadd-drive {} format:raw\n\
         add-drive {} format:raw label:control\nrun\n\
         debug sh \"date +%s; cat /sys/block/sda/size; blockdev --getsize64 /dev/disk/guestfs/control\"\n",
        state.display(),
        disk("guest", 8 << 20),
        disk("control", 3 << 20)
    );
    fs::write(place.path().join("script"), script).unwrap();
    let mut guestfish = tools::command("guestfish");
    guestfish.arg("-f").arg(place.path().join("script")).env("LIBGUESTFS_PATH", &appliance);
    guestfish.env("LIBGUESTFS_BACKEND", "direct").env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let began = now();
    let said = String::from_utf8(tools::output(&mut guestfish).stdout).unwrap();
    let numbers: Vec<u64> = said.lines().map(|line| line.trim().parse().unwrap()).collect();
    let [clock, sectors, control] = numbers[..] else { panic!("{said}") };
    // It has whole seconds.
    assert!((began - 1..=now()).contains(&clock), "{clock} after {began}");
    assert_eq!((sectors * 512, control), (8 << 20, 3 << 20));
}

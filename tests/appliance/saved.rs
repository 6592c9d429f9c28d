//! Saved states of our own appliance: when one is saved, used, given up and removed, and that the
//! map is the same in any case. All other tests use them, too.

use super::own::{arguments, assert_mapped, text, with_appliance};
use std::fs;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::tools::needs;

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

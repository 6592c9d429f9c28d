//! Which qemu runs the appliance, whatever libguestfs says of it.
//!
//! A library that is loaded first stands for newer versions of libguestfs: `guestfs_get_hv` fails,
//! or answers with a name as version 1.60 does.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use virt_bmap_testutil::cache;
use virt_bmap_testutil::own_appliance::{arguments, assert_mapped, guest};
use virt_bmap_testutil::sandbox::{Finished, Sandbox};
use virt_bmap_testutil::tools::{self, needs};

/// `guestfs_get_hv` as in `lib/handle.c` of libguestfs 1.60, or one that always fails. A call
/// before launch leaves the message of an error. Programs that have no libguestfs get this library,
/// too: the symbols are weak.
const GET_HV: &str = r#"
#include <stdlib.h>
#include <string.h>
struct guestfs_h;
extern __attribute__((weak)) char *guestfs_get_backend(struct guestfs_h *);
extern __attribute__((weak)) char **guestfs_list_devices(struct guestfs_h *);
char *guestfs_get_hv(struct guestfs_h *g)
{
    const char *hv = getenv("LIBGUESTFS_HV");
    char *backend = guestfs_get_backend(g);
    int knows = !getenv("GET_HV_FAILS") && strcmp(backend, "direct") == 0;
    free(backend);
    if (hv || knows)
        return strdup(hv ? hv : "qemu-system-x86_64");
    guestfs_list_devices(g);
    return NULL;
}
"#;

/// A sandbox with that library, built there.
fn with_library() -> Sandbox {
    let sandbox = Sandbox::new();
    let place = sandbox.cwd();
    fs::write(place.join("get-hv.c"), GET_HV).unwrap();
    let build = ["-shared", "-fPIC", "-o", "get-hv.so", "get-hv.c"];
    tools::output(tools::command("cc").args(build).current_dir(&place));
    sandbox.env("LD_PRELOAD", place.join("get-hv.so"))
}

/// Writes a program at `path` that is qemu, but instead of running an appliance it notes its name
/// in a file beside it and fails.
fn qemu_that_notes(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *virtio-scsi*) echo \"$0\" >>\"$0.note\"; exit 1 ;; esac\nexec {} \"$@\"\n",
        tools::find("qemu-system-x86_64").unwrap().display()
    );
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn assert_was_run(run: &Finished, qemu: &Path) {
    run.assert_fails(&["did not start"]);
    let note = fs::read_to_string(qemu.with_extension("note")).unwrap_or_default();
    assert!(note.lines().count() > 0, "{} has run no appliance:\n{}", qemu.display(), run.stderr);
}

/// The notes whether KVM works with this program, in the cache that the tests share.
fn notes_of_kvm(qemu: &Path) -> Vec<PathBuf> {
    let metadata = fs::metadata(qemu).unwrap();
    let of_this = format!("-{}-{}-", metadata.ino(), metadata.mtime());
    let entries = fs::read_dir(cache::root().join("xdg-cache/virt-bmap-rs")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().is_some_and(|it| it.contains("kvm-") && it.contains(&of_this)))
        .collect()
}

#[test]
fn it_is_found_where_libguestfs_does_not_know() {
    needs!("cc", "mkfs.ext4", "guestfish", "qemu-system-x86_64");
    let sandbox = with_library().env("GET_HV_FAILS", "1");
    let qemu = sandbox.cwd().join("bin/qemu-system-x86_64");
    qemu_that_notes(&qemu);
    let search = format!("{}:{}", qemu.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let run = sandbox.env("PATH", search).run(arguments());
    assert_was_run(&run, &qemu);
    // The result of the test of KVM is kept for the program that was found.
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        let notes = notes_of_kvm(&qemu);
        assert_eq!(notes.len(), 1, "{notes:?}");
        fs::remove_file(&notes[0]).unwrap();
    }
}

#[test]
fn it_may_have_another_name() {
    needs!("cc", "mkfs.ext4", "guestfish", "qemu-system-x86_64");
    let place = tempfile::tempdir().unwrap();
    let qemu = place.path().join("qemu-kvm");
    qemu_that_notes(&qemu);
    let run = Sandbox::new().env("LIBGUESTFS_HV", &qemu).run(arguments());
    assert_was_run(&run, &qemu);
    // One that is named and not there is not replaced by another.
    let sandbox = with_library().env("LIBGUESTFS_HV", "/nowhere/qemu-kvm");
    sandbox.run(arguments()).assert_fails(&["/nowhere/qemu-kvm", "LIBGUESTFS_HV"]);
}

/// As on RHEL: a program in `/usr/libexec`, and none in `PATH`.
#[test]
fn it_may_be_outside_of_path() {
    needs!("cc", "mkfs.ext4", "guestfish", "qemu-system-x86_64", "unshare", "mount");
    if !tools::is_root("hide qemu") {
        return;
    }
    let qemu = tools::find("qemu-system-x86_64").unwrap();
    let hidden = |kvm: &str| {
        let sandbox = with_library();
        fs::write(sandbox.cwd().join("no-program"), "").unwrap();
        let script = format!(
            "mkdir -p /usr/libexec && mount -t tmpfs -o mode=755 none /usr/libexec && {kvm} && \
             mount --bind no-program {} && exec \"$@\"",
            qemu.display()
        );
        sandbox.wrapper(["unshare", "-m", "sh", "-c", &script, "sh"])
    };
    hidden("true").run(arguments()).assert_fails(&["qemu-system-x86_64", "LIBGUESTFS_HV"]);
    let kvm = format!("cp {} /usr/libexec/qemu-kvm", qemu.display());
    let run = hidden(&kvm).run([arguments().as_slice(), &["--accel", "tcg"]].concat());
    assert_mapped(&run, true);
}

/// Which qemu libvirt runs is its affair: that it is not known is no error. This libvirt has none.
#[test]
fn libvirts_need_not_be_known() {
    needs!("cc", "mkfs.ext4", "guestfish");
    guest();
    let sandbox = with_library().env("LIBGUESTFS_BACKEND", "libvirt:test:///default");
    let run = sandbox.run(arguments());
    run.assert_fails(&["did not start"]);
    assert!(!run.stderr.contains("get_hv") && !run.stderr.contains("no qemu was found"), "{}", run.stderr);
}

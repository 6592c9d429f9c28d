//! Which qemu runs the appliance.
//!
//! Up to version 1.58, libguestfs has the path of a qemu from its own build. From 1.59.4 on it asks
//! its backend (`guestfs_impl_get_hv` in `lib/handle.c`): the direct one answers with a name that
//! is to be found in `PATH` (`get_default_hv_direct` in `lib/launch-direct.c`), the one for libvirt
//! knows nothing before it has launched an appliance. RHEL has no qemu in `PATH`.

use super::handle::{CallError, Handle};
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The qemu of RHEL and its relatives.
const RHEL: &str = "/usr/libexec/qemu-kvm";

/// The qemu that runs the appliance, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qemu {
    /// What libguestfs calls it: a path or a name.
    name: String,
    /// Where it is; `None`: it was not found.
    path: Option<PathBuf>,
    /// libguestfs starts it itself, not through libvirt.
    is_direct: bool,
}

impl Qemu {
    /// The qemu that an appliance of `handle` would run.
    ///
    /// # Errors
    /// libguestfs does not know its backend.
    pub(super) fn find(handle: &Handle) -> Result<Self, CallError> {
        let is_direct = handle.call(guestfs::Handle::get_backend)? == "direct";
        let name = handle.call(guestfs::Handle::get_hv).unwrap_or_else(|_| usual_name());
        let path = locate(&name, &env::var_os("PATH").unwrap_or_default(), Path::new(RHEL));
        Ok(Self { name, path, is_direct })
    }

    /// Whether libguestfs starts it itself, not through libvirt.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Where it is, if it was found.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Why there is no appliance: libguestfs would start this qemu, and it was not found.
    pub(super) fn missing(&self) -> Option<&str> {
        (self.is_direct && self.path.is_none()).then_some(&*self.name)
    }

    /// What libguestfs has to be told to run, since it would not find it, or might find another.
    pub(super) fn to_set(&self) -> Option<&str> {
        self.path.as_ref()?.to_str().filter(|path| self.is_direct && *path != self.name)
    }
}

/// What qemu is called on this machine.
fn usual_name() -> String {
    let architecture = match env::consts::ARCH {
        "powerpc64" => "ppc64",
        "x86" => "i386",
        other => other,
    };
    format!("qemu-system-{architecture}")
}

/// The program with this name or path. A name is looked for in `search`, a list like `PATH`. If the
/// name is the usual one, `otherwise` will do.
fn locate(name: &str, search: &OsStr, otherwise: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    let in_path =
        env::split_paths(search).map(|directory| directory.join(name)).find(|path| is_program(path));
    in_path.or_else(|| {
        Some(otherwise).filter(|path| name == usual_name() && is_program(path)).map(Path::to_owned)
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn program(path: &Path, mode: u32) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_owned()
    }

    #[test]
    fn a_name_is_looked_for_and_a_path_is_taken_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let (first, second) = (place.path().join("first"), place.path().join("second"));
        let search = env::join_paths([&first, &second]).unwrap();
        let elsewhere = place.path().join("libexec/qemu-kvm");
        let usual = usual_name();
        let find = |name: &str| locate(name, &search, &elsewhere);

        assert_eq!(find(&usual), None);
        program(&elsewhere, 0o755);
        assert_eq!(find(&usual).unwrap(), elsewhere);
        // A directory, and a file that is no program.
        fs::create_dir_all(first.join(&usual)).unwrap();
        let inert = program(&second.join(&usual), 0o644);
        assert_eq!(find(&usual).unwrap(), elsewhere);
        let in_path = program(&inert, 0o755);
        assert_eq!(find(&usual).unwrap(), in_path);

        // What the user named is not replaced.
        assert_eq!(find("qemu-of-mine"), None);
        let mine = program(&first.join("qemu-of-mine"), 0o755);
        assert_eq!(find("qemu-of-mine").unwrap(), mine);
        assert_eq!(find(mine.to_str().unwrap()).unwrap(), mine);
        assert_eq!(find("/nowhere/qemu-system-x86_64"), None);
    }

    #[test]
    fn libguestfs_is_told_what_it_would_not_find() {
        let qemu = |name: &str, path: Option<&str>, is_direct| Qemu {
            name: name.into(),
            path: path.map(PathBuf::from),
            is_direct,
        };
        let named = qemu("/usr/bin/qemu-kvm", Some("/usr/bin/qemu-kvm"), true);
        assert_eq!((named.to_set(), named.missing()), (None, None));
        let found = qemu("qemu-system-x86_64", Some(RHEL), true);
        assert_eq!((found.to_set(), found.missing()), (Some(RHEL), None));
        let missing = qemu("qemu-system-x86_64", None, true);
        assert_eq!((missing.to_set(), missing.missing()), (None, Some("qemu-system-x86_64")));
        // libvirt has its own.
        for path in [Some(RHEL), None] {
            let libvirts = qemu("qemu-system-x86_64", path, false);
            assert_eq!((libvirts.to_set(), libvirts.missing()), (None, None));
        }
    }
}

//! Python with a package, which is installed if necessary.

use super::{places, tools};
use std::path::Path;
use std::process::{Command, Stdio};

/// A Python that can import `module`: that of the system, or a virtual environment into which
/// `package` is installed.
pub fn python(module: &str, package: &str) -> Option<Command> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !tools::installed(&["python3"]) {
        return None;
    }
    let imports = |python: &Path| {
        let status =
            Command::new(python).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let system = tools::find("python3")?;
    if imports(&system) {
        return Some(Command::new(system));
    }
    let environment = places::target_tmpdir().join("python");
    let python = environment.join("bin/python");
    if !python.exists() {
        let _ = Command::new(&system).arg("-m").arg("venv").arg(&environment).output();
    }
    if !imports(&python) {
        let _ = Command::new(&python).args(["-m", "pip", "install", "--quiet", package]).output();
    }
    if imports(&python) {
        return Some(Command::new(python));
    }
    // The package may also be in PYTHONPATH.
    tools::skip(&format!("the Python package {package} is not installed, and pip cannot install it"));
    None
}

//! Converts a raw image to other formats with `qemu-img`.

use super::tools;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Converts the raw image `raw` to `to`, in `format` and with `options` (`subformat=…`).
pub fn convert(raw: &Path, to: &Path, format: &str, options: &str) {
    let mut args: Vec<OsString> = ["convert", "-f", "raw", "-O", format].map(OsString::from).into();
    if !options.is_empty() {
        args.extend(["-o".into(), options.into()]);
    }
    args.extend([raw.into(), to.into()]);
    tools::run("qemu-img", args);
}

/// Copies a raw image and keeps its holes.
pub fn copy(raw: &Path, to: &Path) {
    tools::run("cp", [OsStr::new("--sparse=always"), raw.as_os_str(), to.as_os_str()]);
}

/// Makes a chain of three images below `dir`, each in a different directory. An image names its
/// parent by a relative path. `base` has the content of the raw image in the first two thirds, and
/// wrong bytes in the rest. `middle` corrects one half of the rest, and `top` the other half.
/// Returns all images, the top one last.
///
/// Each image is complete before the next one is made, since a VMDK records its parent's content
/// id.
pub fn chain(raw: &Path, dir: &Path, format: &str) -> Vec<PathBuf> {
    let content = fs::read(raw).unwrap();
    let size = content.len() as u64;
    let third = size / 3 / 65536 * 65536;
    let half = (size - 2 * third) / 2 / 65536 * 65536;
    let images = ["base", "middle", "top"].map(|name| dir.join(name).join(format!("disk.{format}")));
    for image in &images {
        fs::create_dir(image.parent().unwrap()).unwrap();
    }
    convert(raw, &images[0], format, "");
    io(&images[0], format, &format!("write -P 0xa5 {} {}", 2 * third, size - 2 * third));
    for (i, parent, from, to) in
        [(1, "base", 2 * third, 2 * third + half), (2, "middle", 2 * third + half, size)]
    {
        let backing = format!("../{parent}/disk.{format}");
        let mut create = tools::command("qemu-img");
        create.args(["create", "-q", "-f", format, "-F", format, "-b", &backing]).arg(&images[i]);
        tools::output(create.current_dir(images[i].parent().unwrap()));
        let part = tempfile::NamedTempFile::new().unwrap();
        fs::write(part.path(), &content[from as usize..to as usize]).unwrap();
        io(&images[i], format, &format!("write -s {} {from} {}", part.path().display(), to - from));
    }
    images.into()
}

/// Runs a `qemu-io` command on an image.
fn io(image: &Path, format: &str, command: &str) {
    tools::output(tools::command("qemu-io").args(["-f", format, "-c", command]).arg(image));
}

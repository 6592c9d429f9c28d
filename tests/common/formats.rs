//! Turns a raw image into the other formats, with `qemu-img`.

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

/// Copies a raw image, holes and all.
pub fn copy(raw: &Path, to: &Path) {
    tools::run("cp", [OsStr::new("--sparse=always"), raw.as_os_str(), to.as_os_str()]);
}

/// Makes a chain of three images below `dir`, each in a directory of its own and naming its parent by a
/// relative path: `base` holds the raw image's first two thirds as they are and wrong bytes in the
/// rest, the middle one corrects half of that, the top the other half. Returns all, the top last.
pub fn chain(raw: &Path, dir: &Path, format: &str) -> Vec<PathBuf> {
    let names = ["base", "middle", "top"].map(|n| (n, dir.join(n).join(format!("disk.{format}"))));
    let size = fs::metadata(raw).unwrap().len();
    let third = size / 3 / 65536 * 65536;
    let half = (size - 2 * third) / 2 / 65536 * 65536;
    let mut parent: Option<&str> = None;
    for (name, image) in &names {
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        match parent {
            None => convert(raw, image, format, ""),
            Some(parent) => {
                let backing = format!("../{parent}/disk.{format}");
                let mut create = tools::command("qemu-img");
                create.args(["create", "-q", "-f", format, "-F", format, "-b", &backing]).arg(image);
                tools::output(create.current_dir(image.parent().unwrap()));
            }
        }
        parent = Some(name);
    }
    let images: Vec<PathBuf> = names.into_iter().map(|(_, image)| image).collect();
    let content = fs::read(raw).unwrap();
    io(&images[0], format, &[format!("write -P 0xa5 {} {}", 2 * third, size - 2 * third)]);
    for (image, from, to) in [(&images[1], 2 * third, 2 * third + half), (&images[2], 2 * third + half, size)]
    {
        let part = tempfile::NamedTempFile::new().unwrap();
        fs::write(part.path(), &content[from as usize..to as usize]).unwrap();
        io(image, format, &[format!("write -s {} {from} {}", part.path().display(), to - from)]);
    }
    images
}

/// Runs `qemu-io` commands on an image.
fn io(image: &Path, format: &str, commands: &[String]) {
    let mut qemu_io = tools::command("qemu-io");
    qemu_io.args(["-f", format]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    tools::output(qemu_io.arg(image));
}

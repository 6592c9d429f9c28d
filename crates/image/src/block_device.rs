//! Describes an image to qemu completely, so that qemu guesses nothing.
//!
//! A file name on qemu's command line may be read as a protocol (`nbd:…`, `json:…`), and an image
//! without a stated driver is probed. A description by `--image-opts` (see qemu-img(1)) has neither
//! problem: every value has a key, only commas have to be doubled, and a name need not be UTF-8, as
//! it must in a `json:` description.

use super::link::Link;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A block device in the syntax of `--image-opts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Description(Vec<u8>);

impl Description {
    /// One image file on its own, for programs that do not open the images below it.
    pub(super) fn of_file(link: &Link, force_share: bool) -> Self {
        let mut description = Self::default();
        description.link("", link);
        description.end(force_share)
    }

    /// An image and explicitly all images below it: qemu opens these files and no others, whatever
    /// the images contain by then. `chain` is from the top down.
    pub(super) fn of_chain(chain: &[Link], force_share: bool) -> Self {
        let mut description = Self::default();
        let mut prefix = String::new();
        for link in chain {
            description.link(&prefix, link);
            prefix.push_str("backing.");
        }
        description.end(force_share)
    }

    fn end(mut self, force_share: bool) -> Self {
        self.add("", "read-only", OsStr::new("on"));
        if force_share {
            self.add("", "force-share", OsStr::new("on"));
        }
        self
    }

    fn link(&mut self, prefix: &str, link: &Link) {
        if let Some(format) = link.format {
            self.add(prefix, "driver", format.driver().as_ref());
        }
        self.file(prefix, "file", &link.path, link.is_device);
        if let Some(data_file) = &link.data_file {
            self.file(prefix, "data-file", data_file, false);
        }
    }

    fn file(&mut self, prefix: &str, child: &str, path: &Path, is_device: bool) {
        let driver = if is_device { "host_device" } else { "file" };
        self.add(prefix, &format!("{child}.driver"), driver.as_ref());
        self.add(prefix, &format!("{child}.filename"), path.as_os_str());
    }

    fn add(&mut self, prefix: &str, key: &str, value: &OsStr) {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(prefix.as_bytes());
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        for &byte in value.as_bytes() {
            self.0.push(byte);
            if byte == b',' {
                self.0.push(byte);
            }
        }
    }

    /// The description as one argument.
    pub(super) fn to_argument(&self) -> OsString {
        OsString::from_vec(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageFormat;

    fn link(path: &[u8], format: Option<ImageFormat>) -> Link {
        Link { format, ..Link::new(Path::new(OsStr::from_bytes(path)).to_owned()) }
    }

    #[test]
    fn commas_are_doubled_and_other_bytes_stay() {
        let link = link(b"/a,b/\xffnbd:c", None);
        assert_eq!(
            Description::of_file(&link, true).0,
            b"file.driver=file,file.filename=/a,,b/\xffnbd:c,read-only=on,force-share=on"
        );
    }

    #[test]
    fn a_chain_is_stated_from_the_top_down() {
        let mut top = link(b"/t", Some(ImageFormat::Qcow2));
        top.data_file = Some("/d".into());
        let mut base = link(b"/dev/b", Some(ImageFormat::Raw));
        base.is_device = true;
        assert_eq!(
            Description::of_chain(&[top, base], false).0,
            b"driver=qcow2,file.driver=file,file.filename=/t,data-file.driver=file,data-file.filename=/d,\
              backing.driver=raw,backing.file.driver=host_device,backing.file.filename=/dev/b,read-only=on"
        );
    }
}

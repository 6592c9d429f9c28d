//! Describes an image to qemu completely, so that qemu guesses nothing.
//!
//! A file name on qemu's command line may be read as a protocol (`nbd:…`, `json:…`), and an image
//! without a stated driver is probed. A description by `--image-opts` (see qemu-img(1)) has neither
//! problem: every value has a key, only commas have to be doubled, and a name need not be UTF-8, as
//! it must in a `json:` description.

use super::access::{Access, ImageKey};
use super::link::{Link, Node};
use super::nbd_uri::{NbdUri, Server};
use super::tls::Credentials;
use super::{ImageFormat, OpenError};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;

/// A block device in the syntax of `--image-opts`, and the keys that it needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    options: Vec<u8>,
    credentials: Option<Credentials>,
    /// The passphrase of the encrypted images among them.
    key: Option<ImageKey>,
}

impl Description {
    /// One image file on its own, for programs that do not open the images below it.
    ///
    /// # Errors
    /// The keys of its NBD server are missing or cannot be used.
    pub(super) fn of_file(link: &Link, access: &Access) -> Result<Self, OpenError> {
        Self::of_chain(std::slice::from_ref(link), access)
    }

    /// An image and explicitly all images below it: qemu opens these files and no others, whatever
    /// the images contain by then. `chain` is from the top down.
    ///
    /// # Errors
    /// The keys of an NBD server are missing or cannot be used.
    pub(super) fn of_chain(chain: &[Link], access: &Access) -> Result<Self, OpenError> {
        let mut description = Self::default();
        let mut prefix = String::new();
        for link in chain {
            description.link(&prefix, link)?;
            prefix.push_str("backing.");
        }
        if chain.iter().any(|link| link.is_encrypted) {
            description.key.clone_from(&access.key);
        }
        Ok(description.end(access.force_share))
    }

    fn end(mut self, force_share: bool) -> Self {
        self.add("", "read-only", OsStr::new("on"));
        if force_share {
            self.add("", "force-share", OsStr::new("on"));
        }
        self
    }

    fn link(&mut self, prefix: &str, link: &Link) -> Result<(), OpenError> {
        if let Some(format) = link.format {
            self.add(prefix, "driver", format.driver().as_ref());
        }
        match &link.node {
            Node::Device => self.file(prefix, "file", "host_device", &link.path),
            Node::File | Node::Other => self.file(prefix, "file", "file", &link.path),
            Node::Part { archive, offset, size } => {
                self.add(prefix, "file.driver", "raw".as_ref());
                self.add(prefix, "file.offset", offset.to_string().as_ref());
                self.add(prefix, "file.size", size.to_string().as_ref());
                self.file(prefix, "file.file", "file", archive);
            }
            Node::Unpacked(path) => self.file(prefix, "file", "file", path),
            Node::Nbd(uri) => self.nbd(prefix, uri)?,
        }
        if link.is_encrypted {
            let option =
                if link.format == Some(ImageFormat::Luks) { "key-secret" } else { "encrypt.key-secret" };
            self.add(prefix, option, ImageKey::ID.as_ref());
        }
        if let Some(data_file) = &link.data_file {
            self.file(prefix, "data-file", "file", data_file);
        }
        Ok(())
    }

    fn file(&mut self, prefix: &str, child: &str, driver: &str, path: &Path) {
        self.add(prefix, &format!("{child}.driver"), driver.as_ref());
        self.add(prefix, &format!("{child}.filename"), path.as_os_str());
    }

    fn nbd(&mut self, prefix: &str, uri: &NbdUri) -> Result<(), OpenError> {
        let mut add = |key: &str, value: &OsStr| self.add(prefix, &format!("file.{key}"), value);
        add("driver", "nbd".as_ref());
        match &uri.server {
            Server::Tcp { host, port } => {
                add("server.type", "inet".as_ref());
                add("server.host", host.as_ref());
                add("server.port", port.to_string().as_ref());
            }
            Server::Unix(path) => {
                add("server.type", "unix".as_ref());
                add("server.path", path.as_os_str());
            }
        }
        add("export", uri.export.as_ref());
        if let Some(tls) = &uri.tls {
            add("tls-creds", Credentials::ID.as_ref());
            if let Some(hostname) = &tls.hostname {
                add("tls-hostname", hostname.as_ref());
            }
            self.credentials = Some(Credentials::of(uri, tls)?);
        }
        Ok(())
    }

    fn add(&mut self, prefix: &str, key: &str, value: &OsStr) {
        if !self.options.is_empty() {
            self.options.push(b',');
        }
        self.options.extend_from_slice(prefix.as_bytes());
        self.options.extend_from_slice(key.as_bytes());
        push_value(&mut self.options, value);
    }

    /// Adds the arguments that state it. `path` is the image, for messages.
    ///
    /// # Errors
    /// The system's error of handing over the passphrase.
    pub(super) fn state(&self, command: &mut Command, path: &Path) -> Result<(), OpenError> {
        if let Some(keys) = &self.credentials {
            command.arg("--object").arg(keys.to_argument());
        }
        if let Some(key) = &self.key {
            key.give(command, path)?;
        }
        command.arg("--image-opts").arg(OsString::from_vec(self.options.clone()));
        Ok(())
    }

    /// The description, as qemu repeats it in messages.
    pub(super) fn as_text(&self) -> String {
        String::from_utf8_lossy(&self.options).into_owned()
    }
}

/// Appends `=VALUE`, with commas doubled.
pub(super) fn push_value(options: &mut Vec<u8>, value: &OsStr) {
    options.push(b'=');
    for &byte in value.as_bytes() {
        options.push(byte);
        if byte == b',' {
            options.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageFormat;

    fn link(path: &[u8], format: Option<ImageFormat>) -> Link {
        Link { format, ..Link::new(Path::new(OsStr::from_bytes(path)).to_owned(), Node::File) }
    }

    #[test]
    fn commas_are_doubled_and_other_bytes_stay() {
        let link = link(b"/a,b/\xffnbd:c", None);
        assert_eq!(
            Description::of_file(&link, &Access { force_share: true, ..Access::default() }).unwrap().options,
            b"file.driver=file,file.filename=/a,,b/\xffnbd:c,read-only=on,force-share=on"
        );
    }

    #[test]
    fn a_part_of_an_archive_is_stated_with_its_place() {
        let node = Node::Part { archive: "/a,b".into(), offset: 512, size: 7 };
        let link = Link { format: Some(ImageFormat::Vmdk), ..Link::new("/a,b/d".into(), node) };
        assert_eq!(
            Description::of_file(&link, &Access::default()).unwrap().as_text(),
            "driver=vmdk,file.driver=raw,file.offset=512,file.size=7,file.file.driver=file,\
             file.file.filename=/a,,b,read-only=on"
        );
    }

    #[test]
    fn a_chain_is_stated_from_the_top_down() {
        let mut top = link(b"/t", Some(ImageFormat::Qcow2));
        top.data_file = Some("/d".into());
        let mut base = link(b"/dev/b", Some(ImageFormat::Raw));
        base.node = Node::Device;
        assert_eq!(
            Description::of_chain(&[top, base], &Access::default()).unwrap().options,
            b"driver=qcow2,file.driver=file,file.filename=/t,data-file.driver=file,data-file.filename=/d,\
              backing.driver=raw,backing.file.driver=host_device,backing.file.filename=/dev/b,read-only=on"
        );
    }

    #[test]
    fn an_export_is_stated_part_by_part() {
        for (uri, described) in [
            (
                "nbd://[::1]/a,b",
                "file.server.type=inet,file.server.host=::1,file.server.port=10809,file.export=a,,b",
            ),
            ("nbd+unix:///?socket=/s", "file.server.type=unix,file.server.path=/s,file.export="),
        ] {
            let node = Node::Nbd(Box::new(NbdUri::parse(uri.as_ref()).unwrap()));
            let link = Link { format: Some(ImageFormat::Raw), ..Link::new(uri.into(), node) };
            let description = Description::of_file(&link, &Access::default()).unwrap();
            assert_eq!(description.as_text(), format!("driver=raw,file.driver=nbd,{described},read-only=on"));
            let mut command = Command::new("qemu-img");
            description.state(&mut command, "/i".as_ref()).unwrap();
            assert_eq!(command.get_args().count(), 2);
        }
    }
}

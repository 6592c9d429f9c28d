//! The domains of a libvirt host as guests, as listed by `virsh`.

use super::{Guest, GuestId};
use crate::mapper::GuestDisk;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;
use virt_bmap_child as child;
use virt_bmap_image::{ImageFormat, Location, NbdUri, Server};

/// Time limit for an answer of `virsh`, which may come from another host.
const TIME: Duration = Duration::from_secs(60);

/// Why a host or a domain cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtError {
    /// `virsh` could not be run.
    #[error("cannot run virsh; install it (Debian package: libvirt-clients)")]
    Virsh(#[source] io::Error),
    /// `virsh` failed.
    #[error("virsh {command}: {message}")]
    Failed {
        /// Its arguments.
        command: String,
        /// Its error message.
        message: String,
    },
    /// A domain is running, so it may write to its disks.
    #[error("{name}: the domain is running; shut it down, or use --force-share to map it while it runs")]
    Running {
        /// The domain's name.
        name: String,
    },
    /// A domain has no disks, other than removable media.
    #[error("{name}: the domain has no disks")]
    NoDisk {
        /// The domain's name.
        name: String,
    },
    /// A disk is not an image or block device on this machine.
    #[error("{name}: cannot map disk {target}: {reason}")]
    Disk {
        /// The domain's name.
        name: String,
        /// The disk's name in the domain: `vda`, `sdb`.
        target: String,
        /// The reason.
        reason: String,
    },
    /// The XML description of a domain cannot be parsed.
    #[error("cannot parse the XML description of a domain: {0}")]
    Xml(String),
}

/// A libvirt host.
#[derive(Clone, Debug)]
pub struct Host {
    /// The URI, as for `virsh -c`; `None` for the default.
    pub uri: Option<String>,
    /// Include running domains.
    pub force_share: bool,
}

impl Host {
    /// All usable domains, ordered by ID, and the reasons why others were left out.
    ///
    /// # Errors
    /// If the host does not answer.
    pub fn guests(&self) -> Result<(Vec<Guest>, Vec<LibvirtError>), LibvirtError> {
        let (mut guests, mut left_out) = (Vec::new(), Vec::new());
        for uuid in self.virsh(&["list", "--all", "--uuid"])?.split_whitespace() {
            match self.guest(uuid) {
                Ok(guest) => guests.push(guest),
                Err(error @ LibvirtError::Virsh(_)) => return Err(error),
                Err(error) => left_out.push(error),
            }
        }
        guests.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((guests, left_out))
    }

    /// One domain, by name, UUID or libvirt's ID.
    ///
    /// # Errors
    /// If it does not exist, is running, or has a disk that cannot be mapped.
    pub fn guest(&self, domain: &str) -> Result<Guest, LibvirtError> {
        let described = self.described(domain)?;
        let domain = format!("--domain={domain}");
        let name = described.name;
        if !self.force_share && self.virsh(&["domstate", &domain])?.trim() != "shut off" {
            return Err(LibvirtError::Running { name });
        }
        let disks = described.disks.iter().filter(|disk| disk.holds_data());
        let disks = disks.map(|disk| self.disk(&name, disk)).collect::<Result<Vec<_>, _>>()?;
        if disks.is_empty() {
            return Err(LibvirtError::NoDisk { name });
        }
        Ok(Guest { id: GuestId::of_name(name.as_bytes()), disks })
    }

    /// The description of a domain, as it is now.
    pub(crate) fn described(&self, domain: &str) -> Result<Domain, LibvirtError> {
        Domain::parse(&self.virsh(&["dumpxml", &format!("--domain={domain}")])?)
    }

    fn disk(&self, name: &str, disk: &DiskXml) -> Result<GuestDisk, LibvirtError> {
        let target = disk.target.clone();
        let cannot = |reason| LibvirtError::Disk { name: name.to_owned(), target: target.clone(), reason };
        let location = match (disk.kind.as_str(), disk.source("file"), disk.source("dev")) {
            ("file", Some(path), _) | ("block", _, Some(path)) => Location::File(path.into()),
            ("network", ..) => disk.export().map_err(&cannot)?,
            ("volume", ..) => {
                let named = |option, attribute| {
                    let value = disk
                        .source(attribute)
                        .ok_or_else(|| cannot("its <source> names no pool or volume".into()))?;
                    Ok(format!("--{option}={value}"))
                };
                let answer = self.virsh(&["vol-path", &named("pool", "pool")?, &named("vol", "volume")?])?;
                Location::File(answer.trim_end_matches('\n').into())
            }
            (kind, ..) => {
                return Err(cannot(format!(
                    "its type is {kind:?}, not a file, block device, volume or NBD export"
                )));
            }
        };
        let format = disk.format.as_deref().map(str::parse::<ImageFormat>).transpose();
        Ok(GuestDisk::new(location, format.map_err(|error| cannot(error.to_string()))?))
    }

    /// The answer to a command that changes nothing.
    pub(crate) fn virsh(&self, words: &[&str]) -> Result<String, LibvirtError> {
        let mut command = self.command();
        command.arg("--readonly").args(words);
        Self::answer(command, words)
    }

    /// The answer to a command that changes something. Each of `files` is an option of it, and the
    /// content of the file that the option names.
    pub(crate) fn act(&self, words: &[&str], files: &[(&str, &[u8])]) -> Result<String, LibvirtError> {
        let mut command = self.command();
        command.args(words);
        for (option, content) in files {
            let file = in_memory(content).map_err(LibvirtError::Virsh)?;
            let path = child::inherit(&mut command, file);
            command.args([option, &*path]);
        }
        Self::answer(command, words)
    }

    fn command(&self) -> Command {
        let mut command = child::command("virsh".as_ref());
        if let Some(uri) = &self.uri {
            command.arg("--connect").arg(uri);
        }
        command
    }

    fn answer(command: Command, words: &[&str]) -> Result<String, LibvirtError> {
        let output = child::run(command, TIME).map_err(LibvirtError::Virsh)?;
        let failed = |message| LibvirtError::Failed { command: words.join(" "), message };
        if !output.status.success() {
            return Err(failed(child::message(&output.stderr)));
        }
        String::from_utf8(output.stdout).map_err(|_| failed("the output is not UTF-8".to_owned()))
    }
}

/// A file without a name.
fn in_memory(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("virsh", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    Ok(file.into())
}

/// A text for an attribute in XML.
pub(crate) fn escaped(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

/// The attribute of the first element at this path.
pub(crate) fn attribute(xml: &str, at: &[&str], attribute: &str) -> Option<String> {
    let mut reader = Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let mut path: Vec<String> = Vec::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(element) => {
                path.push(element.local_name().as_ref().to_owned());
                if path.iter().eq(at) {
                    return attributes(&element).ok()?.remove(attribute);
                }
            }
            Event::End(_) => drop(path.pop()),
            Event::Eof => return None,
            _ => {}
        }
    }
}

fn attributes(element: &BytesStart<'_>) -> Result<BTreeMap<String, String>, quick_xml::Error> {
    let mut attributes = BTreeMap::new();
    for attribute in element.attributes() {
        let attribute = attribute?;
        let key = attribute.key.local_name().as_ref().to_owned();
        attributes.insert(key, attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned());
    }
    Ok(attributes)
}

/// The parts of a domain's description that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Domain {
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// Whether its qemu has I/O threads.
    pub(crate) has_threads: bool,
    pub(crate) disks: Vec<DiskXml>,
}

/// A `<disk>`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskXml {
    /// Its `type`: the kind of its source.
    pub(crate) kind: String,
    /// Its `device`: `disk`, `lun`, `cdrom`, `floppy`.
    pub(crate) device: String,
    pub(crate) format: Option<String>,
    pub(crate) target: String,
    /// Whether the guest cannot write to it.
    pub(crate) is_read_only: bool,
    pub(crate) source: BTreeMap<String, String>,
    /// The attributes of the `<host>` of its source.
    pub(crate) host: BTreeMap<String, String>,
}

impl DiskXml {
    /// Whether it is a disk, not a drive for removable media.
    pub(crate) fn holds_data(&self) -> bool {
        ["", "disk", "lun"].contains(&self.device.as_str())
    }

    /// An attribute of its source.
    pub(crate) fn source(&self, attribute: &str) -> Option<&str> {
        self.source.get(attribute).map(String::as_str)
    }

    /// The export of an NBD server that is its source.
    fn export(&self) -> Result<Location, String> {
        let protocol = self.source("protocol").unwrap_or("none");
        if protocol != "nbd" {
            return Err(format!(
                "it is on a server that speaks {protocol}; let nbdkit or qemu-nbd serve it, and give the URI"
            ));
        }
        let is_encrypted = self.source("tls") == Some("yes");
        let host = |attribute: &str| self.host.get(attribute).cloned();
        let server = match (host("transport").as_deref(), host("socket"), host("name")) {
            (Some("unix"), Some(path), _) => Server::Unix(path.into()),
            (None | Some("tcp"), _, Some(host_name)) => {
                let port = host("port").map(|port| port.parse()).transpose();
                let port = port.map_err(|_| "its port is not a number below 65536".to_owned())?;
                Server::Tcp { host: host_name, port: port.unwrap_or(NbdUri::DEFAULT_PORT) }
            }
            _ => return Err("its <host> names neither a host nor a Unix socket".to_owned()),
        };
        let export = self.source("name").unwrap_or_default();
        let uri = NbdUri::new(server, export, is_encrypted).map_err(|error| error.to_string())?;
        Ok(Location::Nbd(Box::new(uri)))
    }
}

impl Domain {
    fn parse(xml: &str) -> Result<Self, LibvirtError> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let mut domain = Self::default();
        let mut path: Vec<String> = Vec::new();
        let wrong =
            |error: &dyn std::fmt::Display| LibvirtError::Xml(child::message(error.to_string().as_bytes()));
        loop {
            match reader.read_event().map_err(|error| wrong(&error))? {
                Event::Start(element) => {
                    path.push(element.local_name().as_ref().to_owned());
                    let at: Vec<&str> = path.iter().map(String::as_str).collect();
                    domain.element(&at, &element).map_err(|error| wrong(&error))?;
                }
                Event::End(_) => {
                    path.pop();
                }
                Event::Text(text) if path.iter().eq(["domain", "name"]) => {
                    domain.name.push_str(&text);
                }
                Event::Text(text) if path.iter().eq(["domain", "uuid"]) => domain.uuid.push_str(&text),
                Event::Text(text) if path.iter().eq(["domain", "iothreads"]) => {
                    domain.has_threads = text.trim() != "0";
                }
                Event::GeneralRef(reference) if path.iter().eq(["domain", "name"]) => {
                    let text = format!("&{};", &*reference);
                    domain.name.push_str(&quick_xml::escape::unescape(&text).map_err(|error| wrong(&error))?);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if domain.name.is_empty() {
            Err(LibvirtError::Xml("the domain has no name".to_owned()))
        } else {
            Ok(domain)
        }
    }

    /// Handles an element. Elements deeper in a disk, in its `<backingStore>` or `<mirror>`,
    /// describe other images and are ignored.
    fn element(&mut self, at: &[&str], element: &BytesStart<'_>) -> Result<(), quick_xml::Error> {
        let mut attributes = attributes(element)?;
        let mut take = |key: &str| attributes.remove(key);
        match at {
            ["domain", "devices", "disk"] => self.disks.push(DiskXml {
                kind: take("type").unwrap_or_default(),
                device: take("device").unwrap_or_default(),
                ..DiskXml::default()
            }),
            ["domain", "devices", "disk", inner] => {
                let Some(disk) = self.disks.last_mut() else { return Ok(()) };
                match *inner {
                    "driver" => disk.format = take("type"),
                    "target" => disk.target = take("dev").unwrap_or_default(),
                    "source" => disk.source = attributes,
                    "readonly" => disk.is_read_only = true,
                    _ => {}
                }
            }
            ["domain", "devices", "disk", "source", "host"] => {
                if let Some(disk) = self.disks.last_mut() {
                    disk.host = attributes;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_parsed() {
        let domain = Domain::parse(
            "<domain type='kvm'><name>web &amp; db</name><uuid>7-a</uuid><iothreads>1</iothreads><metadata><name>other</name></metadata><devices>
               <disk type='file' device='disk'>
                 <driver name='qemu' type='qcow2'/>
                 <source file='/images/top.qcow2'/>
                 <backingStore type='file'><format type='raw'/><source file='/images/base.raw'/></backingStore>
                 <target dev='vda' bus='virtio'/>
               </disk>
               <disk type='block' device='lun'><source dev='/dev/vg/x'/><target dev='sda'/></disk>
               <disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sdb'/></disk>
             </devices></domain>",
        )
        .unwrap();
        assert_eq!((&*domain.name, &*domain.uuid, domain.has_threads), ("web & db", "7-a", true));
        let disks: Vec<_> = domain.disks.iter().filter(|disk| disk.holds_data()).collect();
        assert_eq!(disks.len(), 2);
        assert_eq!(disks[0].source("file"), Some("/images/top.qcow2"));
        assert_eq!((disks[0].format.as_deref(), &*disks[0].target), (Some("qcow2"), "vda"));
        assert_eq!((disks[1].source("dev"), disks[1].format.as_deref()), (Some("/dev/vg/x"), None));
    }

    #[test]
    fn an_export_of_a_server_is_a_source() {
        let disk = |source: &str| {
            let xml = format!(
                "<domain><name>a</name><devices><disk type='network'>{source}<target dev='vda'/></disk></devices></domain>"
            );
            Domain::parse(&xml).unwrap().disks.remove(0).export().map(|location| location.to_string())
        };
        for (source, uri) in [
            ("<source protocol='nbd' name='x y'><host name='h' port='1'/></source>", "nbd://h:1/x%20y"),
            ("<source protocol='nbd'><host name='::1'/></source>", "nbd://[::1]/"),
            ("<source protocol='nbd' name='x' tls='yes'><host name='h'/></source>", "nbds://h/x"),
            (
                "<source protocol='nbd'><host transport='unix' socket='/s'/></source>",
                "nbd+unix:///?socket=/s",
            ),
        ] {
            assert_eq!(disk(source).as_deref(), Ok(uri), "{source}");
        }
        for source in ["<source protocol='rbd' name='x'/>", "<source protocol='nbd'/>", ""] {
            assert!(disk(source).is_err(), "{source}");
        }
    }

    #[test]
    fn an_invalid_description_is_refused() {
        for xml in ["", "<domain/>", "<domain><name>", "<domain><name>a</domain>", "nonsense"] {
            assert!(matches!(Domain::parse(xml), Err(LibvirtError::Xml(_))), "{xml}");
        }
    }
}

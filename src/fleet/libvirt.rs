//! The domains of a libvirt host as guests, as `virsh` tells of them.

use super::{Guest, GuestId};
use crate::mapper::GuestDisk;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use virt_bmap_child as child;
use virt_bmap_image::ImageFormat;

/// How long `virsh` may take to answer, be it from another host.
const TIME: Duration = Duration::from_secs(60);

/// Why a host's domains are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtError {
    /// `virsh` could not be run.
    #[error("virsh cannot be run (Debian: libvirt-clients)")]
    Virsh(#[source] io::Error),
    /// `virsh` has failed.
    #[error("virsh {command}: {said}")]
    Failed {
        /// What it was asked.
        command: String,
        /// What it says.
        said: String,
    },
    /// A domain is running, and so writes to its disks.
    #[error("{name} is running; shut it down, or map it as it is now with --force-share")]
    Running {
        /// The domain's name.
        name: String,
    },
    /// A domain has no disk that holds data of its own.
    #[error("{name} has no disks")]
    NoDisk {
        /// The domain's name.
        name: String,
    },
    /// A disk is no image or block device of this machine.
    #[error("the disk {target} of {name} cannot be mapped: {why}")]
    Disk {
        /// The domain's name.
        name: String,
        /// What the domain calls the disk: `vda`, `sdb`.
        target: String,
        /// Why.
        why: String,
    },
    /// A description of a domain cannot be understood.
    #[error("the description of a domain cannot be understood: {0}")]
    Xml(String),
}

/// A libvirt host.
#[derive(Clone, Debug)]
pub struct Host {
    /// As `virsh -c` has it; `None`: the default.
    pub uri: Option<String>,
    /// Take running domains as well.
    pub force_share: bool,
}

impl Host {
    /// All domains, ordered by id, and why those are left out that are.
    ///
    /// # Errors
    /// When the host does not answer.
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

    /// One domain, by name, UUID or number.
    ///
    /// # Errors
    /// When there is none of that name, when it is running, when a disk of it is nothing that could be mapped.
    pub fn guest(&self, domain: &str) -> Result<Guest, LibvirtError> {
        let domain = format!("--domain={domain}");
        let described = Domain::parse(&self.virsh(&["dumpxml", &domain])?)?;
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

    fn disk(&self, name: &str, disk: &DiskXml) -> Result<GuestDisk, LibvirtError> {
        let target = disk.target.clone();
        let cannot = |why| LibvirtError::Disk { name: name.to_owned(), target: target.clone(), why };
        let path = match (disk.kind.as_str(), disk.source("file"), disk.source("dev")) {
            ("file", Some(path), _) | ("block", _, Some(path)) => path.to_owned(),
            ("volume", ..) => {
                let named = |option, attribute| {
                    let value =
                        disk.source(attribute).ok_or_else(|| cannot("its volume has no name".into()))?;
                    Ok(format!("--{option}={value}"))
                };
                let answer = self.virsh(&["vol-path", &named("pool", "pool")?, &named("vol", "volume")?])?;
                answer.trim_end_matches('\n').to_owned()
            }
            (kind, ..) => return Err(cannot(format!("it is of type {kind:?}, no file or block device"))),
        };
        let format = disk.format.as_deref().map(str::parse::<ImageFormat>).transpose();
        Ok(GuestDisk {
            path: PathBuf::from(path),
            format: format.map_err(|error| cannot(error.to_string()))?,
        })
    }

    fn virsh(&self, words: &[&str]) -> Result<String, LibvirtError> {
        let mut command = child::command("virsh".as_ref());
        if let Some(uri) = &self.uri {
            command.arg("--connect").arg(uri);
        }
        command.arg("--readonly").args(words);
        let output = child::run(command, TIME).map_err(LibvirtError::Virsh)?;
        let failed = |said| LibvirtError::Failed { command: words.join(" "), said };
        if !output.status.success() {
            return Err(failed(child::message(&output.stderr)));
        }
        String::from_utf8(output.stdout).map_err(|_| failed("its answer is no UTF-8".to_owned()))
    }
}

/// What a domain's description says of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Domain {
    name: String,
    disks: Vec<DiskXml>,
}

/// A `<disk>`.
#[derive(Debug, Default, PartialEq, Eq)]
struct DiskXml {
    /// Its `type`: what its source is.
    kind: String,
    /// Its `device`: `disk`, `lun`, `cdrom`, `floppy`.
    device: String,
    format: Option<String>,
    target: String,
    source: BTreeMap<String, String>,
}

impl DiskXml {
    /// Whether it is a disk, and no drive for media.
    fn holds_data(&self) -> bool {
        ["", "disk", "lun"].contains(&self.device.as_str())
    }

    fn source(&self, attribute: &str) -> Option<&str> {
        self.source.get(attribute).map(String::as_str)
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
                Event::GeneralRef(reference) if path.iter().eq(["domain", "name"]) => {
                    let text = format!("&{};", &*reference);
                    domain.name.push_str(&quick_xml::escape::unescape(&text).map_err(|error| wrong(&error))?);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if domain.name.is_empty() { Err(LibvirtError::Xml("it has no name".to_owned())) } else { Ok(domain) }
    }

    /// Takes in an element. Those deeper in a disk, in its `<backingStore>` or `<mirror>`, are of other images.
    fn element(&mut self, at: &[&str], element: &BytesStart<'_>) -> Result<(), quick_xml::Error> {
        let mut attributes = BTreeMap::new();
        for attribute in element.attributes() {
            let attribute = attribute?;
            let key = attribute.key.local_name().as_ref().to_owned();
            attributes.insert(key, attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned());
        }
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
                    _ => {}
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
    fn a_description_is_understood() {
        let domain = Domain::parse(
            "<domain type='kvm'><name>web &amp; db</name><metadata><name>other</name></metadata><devices>
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
        assert_eq!(domain.name, "web & db");
        let disks: Vec<_> = domain.disks.iter().filter(|disk| disk.holds_data()).collect();
        assert_eq!(disks.len(), 2);
        assert_eq!(disks[0].source("file"), Some("/images/top.qcow2"));
        assert_eq!((disks[0].format.as_deref(), &*disks[0].target), (Some("qcow2"), "vda"));
        assert_eq!((disks[1].source("dev"), disks[1].format.as_deref()), (Some("/dev/vg/x"), None));
    }

    #[test]
    fn what_is_no_description_is_refused() {
        for xml in ["", "<domain/>", "<domain><name>", "<domain><name>a</domain>", "nonsense"] {
            assert!(matches!(Domain::parse(xml), Err(LibvirtError::Xml(_))), "{xml}");
        }
    }
}

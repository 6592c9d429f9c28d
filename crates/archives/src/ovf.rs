//! The description of an appliance: which of its files are disks, and in which order.
//!
//! DMTF's DSP0243, "Open Virtualization Format Specification" 1.1.1: `References` in 7.1,
//! `DiskSection` in 9.1. Namespaces are not looked at: the local names are unambiguous there.

use crate::ova::OvaError;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::collections::BTreeMap;

/// Most elements that are looked at.
const MOST_ELEMENTS: usize = 100_000;

/// Most attributes of an element.
const MOST_ATTRIBUTES: usize = 64;

/// Most files and most disks.
const MOST: usize = 1024;

/// What a description says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// The names of the files that are disks, in order. A disk without a file is empty, and left
    /// out.
    pub(crate) disks: Vec<String>,
    /// How many virtual machines there are.
    pub(crate) systems: usize,
}

/// A file of the appliance.
struct FileElement {
    href: String,
    is_whole: bool,
    compression: Option<String>,
}

/// Reads a description.
///
/// # Errors
/// It is no XML, or describes disks that cannot be read in place.
pub(crate) fn read(text: &[u8]) -> Result<Envelope, OvaError> {
    let bad = |error: &dyn std::fmt::Display| OvaError::BadXml { reason: error.to_string() };
    let mut reader = Reader::from_reader(text);
    let mut files = BTreeMap::new();
    let mut refs: Vec<String> = Vec::new();
    let mut systems = 0;
    for _ in 0..MOST_ELEMENTS {
        let element = match reader.read_event().map_err(|error| bad(&error))? {
            Event::Start(element) | Event::Empty(element) => element,
            Event::Eof => return envelope(&files, &refs, systems),
            // Nothing that we need has entities of its own.
            Event::DocType(_) => return Err(bad(&"it has a document type")),
            _ => continue,
        };
        match element.local_name().as_ref() {
            "VirtualSystem" => systems += 1,
            "File" => {
                let mut attributes = attributes(&element)?;
                let (Some(id), Some(href)) = (attributes.remove("id"), attributes.remove("href")) else {
                    return Err(bad(&"a File has no id or no href"));
                };
                let file = FileElement {
                    href,
                    is_whole: !attributes.contains_key("chunkSize"),
                    compression: attributes.remove("compression"),
                };
                if files.len() == MOST || files.insert(id, file).is_some() {
                    return Err(bad(&"it has too many files, or two with the same id"));
                }
            }
            "Disk" => {
                let mut attributes = attributes(&element)?;
                if attributes.contains_key("parentRef") {
                    return Err(OvaError::Parent);
                }
                if refs.len() == MOST {
                    return Err(bad(&"it has too many disks"));
                }
                refs.extend(attributes.remove("fileRef"));
            }
            _ => {}
        }
    }
    Err(bad(&"it has too many elements"))
}

fn envelope(
    files: &BTreeMap<String, FileElement>,
    refs: &[String],
    systems: usize,
) -> Result<Envelope, OvaError> {
    let mut disks = Vec::new();
    for id in refs {
        let file = files.get(id);
        let file = file.ok_or_else(|| OvaError::BadXml {
            reason: format!("a disk names the file {id:?}, which it has not"),
        })?;
        let name = file.href.clone();
        match file.compression.as_deref() {
            None | Some("" | "identity") => {}
            Some(kind) => return Err(OvaError::Compressed { name, kind: kind.to_owned() }),
        }
        if !file.is_whole {
            return Err(OvaError::Chunks { name });
        }
        if disks.contains(&name) {
            return Err(OvaError::Twice { name });
        }
        disks.push(name);
    }
    Ok(Envelope { disks, systems })
}

/// The attributes of an element, by their local names.
fn attributes(element: &BytesStart<'_>) -> Result<BTreeMap<String, String>, OvaError> {
    let mut all = BTreeMap::new();
    let bad = |error: &dyn std::fmt::Display| OvaError::BadXml { reason: error.to_string() };
    // To look for attributes that come twice takes time by the square of their number.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| bad(&error))?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| bad(&error))?;
        let name = attribute.key.local_name().as_ref().to_owned();
        if all.len() == MOST_ATTRIBUTES || all.insert(name, value.into_owned()).is_some() {
            return Err(bad(&"an element has too many attributes, or one twice"));
        }
    }
    Ok(all)
}

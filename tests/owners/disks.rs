//! What a map says about a disk of many.

use virt_bmap_map::{Cause, Map, Subject};

/// The name of a disk in the appliance.
pub(crate) fn device(disk: u16) -> String {
    format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1))
}

/// The causes of the warnings about a disk and what is on it.
pub(crate) fn causes(map: &Map, disk: u16) -> Vec<&Cause> {
    let device = device(disk).into_bytes();
    let is_here = |subject: &Subject| match subject {
        Subject::Device(name) | Subject::Path { device: name, .. } => *name == device,
        Subject::Image(_) | Subject::Guest => false,
    };
    let warnings = map.header().warnings.iter().filter(|warning| is_here(&warning.subject));
    warnings.map(|warning| &warning.cause).collect()
}

//! Puts the metadata objects of one device into the map.

use super::facts::Facts;
use super::parts::Parts;
use super::{ATTRIBUTES, Blocks, METADATA, add};
use crate::probe::Legs;
use crate::probe::channel::{Inline, MetadataInputs};
use crate::probe::context::Context;
use crate::probe::found::{FoundError, ObjectNumber};
use crate::probe::layout::Layout;
use crate::recorder::Recording;
use virt_bmap_map::{Kind, Marks, PieceFlags, Role};
use virt_bmap_ranges::{DeviceOffset, Range};

/// Puts objects of one device into the map.
pub(super) struct Put<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) device: &'a str,
}

impl Put<'_> {
    /// The objects of a device without a layout: what was read is known all the same.
    pub(super) fn without_layout(&self, inputs: &MetadataInputs) -> Result<(), FoundError> {
        let mut owned = inputs.owned.clone();
        for (&object, attributes) in &inputs.attributes {
            let number = self.attributes_object(object, Marks::empty(), attributes.recording.is_empty())?;
            self.recording(number, &attributes.recording)?;
            owned.extend(attributes.recording.iter());
        }
        self.places(Kind::Metadata, METADATA.as_bytes(), &inputs.untagged.difference(&owned))
    }

    /// An object of these ranges of the disks, if there are any.
    pub(super) fn places(&self, kind: Kind, name: &[u8], places: &Recording) -> Result<(), FoundError> {
        if places.is_empty() {
            return Ok(());
        }
        let number = self
            .context
            .channel
            .with(|found, _| found.metadata_object(kind, self.device, name, Marks::empty()))?;
        self.recording(Some(number), places)
    }

    pub(super) fn recording(
        &self,
        number: Option<ObjectNumber>,
        recording: &Recording,
    ) -> Result<(), FoundError> {
        let Some(number) = number else { return Ok(()) };
        self.context.channel.with(|found, _| {
            recording
                .iter()
                .try_for_each(|(disk, range)| found.range(number, disk, range, None, Role::default()))
        })
    }

    /// An object of these blocks. A metadata object needs blocks; free space is an object even if
    /// nothing is free.
    pub(super) fn blocks(
        &self,
        kind: Kind,
        name: &[u8],
        blocks: &Blocks,
        marks: Marks,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        if kind == Kind::Metadata && blocks.is_empty() {
            return Ok(());
        }
        let number =
            self.context.channel.with(|found, _| found.metadata_object(kind, self.device, name, marks))?;
        blocks.iter().try_for_each(|range| self.range(number, range, PieceFlags::empty(), layout))?;
        // Parity of free space may protect something else as well.
        if kind == Kind::Free || self.context.legs == Legs::One {
            return Ok(());
        }
        self.context.channel.with(|found, _| {
            blocks.iter().flat_map(|range| layout.parity(range)).try_for_each(|part| {
                let role = Role { copy: part.copy, flags: PieceFlags::PARITY };
                found.range(number, part.disk, part.disk_range(), None, role)
            })
        })
    }

    pub(super) fn range(
        &self,
        number: ObjectNumber,
        range: Range<DeviceOffset>,
        flags: PieceFlags,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        self.context.channel.with(|found, _| {
            // A damaged filesystem may be larger than its device.
            for part in layout.part(range).unwrap_or_default() {
                let role = Role { copy: part.copy, flags };
                found.range(number, part.disk, part.disk_range(), None, role)?;
            }
            Ok(())
        })
    }

    /// Adds pieces with the role `inline` to objects whose data is inline.
    pub(super) fn inline(
        &self,
        facts: &Facts,
        inputs: &MetadataInputs,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        for inline in &inputs.inline {
            let (object, at, length) = match *inline {
                // No data is in the boot sector: 0 means that the filesystem does not say where it
                // is.
                Inline::Block { at: 0, .. } | Inline::Record { at: 0, .. } => continue,
                Inline::Block { object, at } => {
                    let unit = facts.unit.unwrap_or(4096);
                    (object, at / unit * unit, unit)
                }
                Inline::Record { object, at } => {
                    let Some(record) = facts.records else { continue };
                    (object, at, record)
                }
            };
            if let Some(range) = Range::at(DeviceOffset(at), length) {
                self.range(object, range, PieceFlags::INLINE, layout)?;
            }
        }
        Ok(())
    }

    /// The blocks of extended attributes: those that were read for them, and their extents, which
    /// are verified if they were read for them or before.
    pub(super) fn attributes(
        &self,
        inputs: &MetadataInputs,
        parts: &Parts,
        layout: &Layout,
    ) -> Result<(), FoundError> {
        // Files may share blocks of attributes, which are read only for the first of them.
        let mut seen = parts.read.clone();
        for attributes in inputs.attributes.values() {
            add(&mut seen, &layout.to_device_partly(&attributes.recording));
        }
        for (&object, attributes) in &inputs.attributes {
            let mut blocks = layout.to_device_partly(&attributes.recording).difference(&parts.known);
            let mut marks = Marks::empty();
            for extent in &attributes.extents {
                let Some(range) = Range::at(DeviceOffset(extent.physical), extent.length) else { continue };
                marks |= if seen.contains(range) { Marks::empty() } else { Marks::UNVERIFIED };
                blocks.insert(range);
            }
            if let Some(number) = self.attributes_object(object, marks, blocks.is_empty())? {
                blocks.iter().try_for_each(|range| self.range(number, range, PieceFlags::empty(), layout))?;
            }
        }
        Ok(())
    }

    pub(super) fn attributes_object(
        &self,
        object: ObjectNumber,
        marks: Marks,
        is_empty: bool,
    ) -> Result<Option<ObjectNumber>, FoundError> {
        self.context.channel.with(|found, _| {
            let Some(path) = found.path_of(object).filter(|_| !is_empty) else { return Ok(None) };
            let path = [path, ATTRIBUTES.as_bytes()].concat();
            match found.metadata_object(Kind::Metadata, self.device, &path, marks) {
                // The path of the object itself was just short enough.
                Err(FoundError::Build(_)) => Ok(None),
                result => result.map(Some),
            }
        })
    }
}

//! Writes a text map.

use std::io::{self, Write};
use thiserror::Error;

use super::header;
use crate::escape::{needs_escape, push_escaped};
use crate::model::{Dialect, Map, ObjectId};
use crate::object::ObjectName;
use crate::sweep::Interval;
use virt_bmap_ranges::Printable;

/// Why a map could not be written as text.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The output failed.
    #[error("the map could not be written")]
    Io(#[from] io::Error),
    /// The original's format cannot express this name.
    #[error(
        "the original's map format cannot hold the name `{name}`, which has a {what}: write the map in the escaped dialect"
    )]
    Unwritable {
        /// The name, printable.
        name: String,
        /// The reason.
        what: &'static str,
    },
    /// A free comment that has several lines, or that would be read as something else.
    #[error("the comment `{}` would not be read back as one", Printable(.comment))]
    Comment {
        /// The comment.
        comment: Vec<u8>,
    },
    /// The generator's name does not fit the first line.
    #[error("`{}` is not a program and a version, as the first line of a map has them", Printable(.generator.as_bytes()))]
    Generator {
        /// The generator.
        generator: String,
    },
}

/// Bytes that are collected before a write.
const BLOCK: usize = 64 * 1024;

/// Writes `map` in its dialect. Needs no buffered output: it writes blocks.
///
/// The original's dialect has no images and warnings: of the header, only the free comments are
/// written. Neither dialect has file offsets and attributes.
///
/// # Errors
/// See [`WriteError`]. The output is then incomplete.
pub fn write(map: &Map, output: impl Write) -> Result<(), WriteError> {
    let mut writer = Writer { map, output, block: Vec::with_capacity(2 * BLOCK), prefix: Vec::new() };
    match map.dialect() {
        Dialect::Escaped => header::push(&mut writer.block, map.header())?,
        Dialect::Original => header::push_original(&mut writer.block, map.header())?,
    }
    map.try_for_each_interval(|interval| writer.interval(interval))?;
    writer.output.write_all(&writer.block)?;
    writer.output.flush()?;
    Ok(())
}

struct Writer<'a, W> {
    map: &'a Map,
    output: W,
    block: Vec<u8>,
    /// `DISK START END ` of the present interval.
    prefix: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn interval(&mut self, Interval { disk, range, objects }: Interval<'_>) -> Result<(), WriteError> {
        self.prefix.clear();
        write!(self.prefix, "{disk} {:x} {:x} ", range.start, range.end)?;
        objects.iter().try_for_each(|&object| self.line(object))
    }

    fn line(&mut self, object: ObjectId) -> Result<(), WriteError> {
        let Self { map, output, block, prefix } = self;
        let name = map.objects.name(object.0);
        block.extend_from_slice(prefix);
        match map.dialect() {
            Dialect::Escaped => push_name(block, name),
            Dialect::Original => {
                check_original(name)?;
                block.extend([name.kind.letter(), b' ']);
                block.extend_from_slice(name.device);
                if !name.path.is_empty() {
                    block.push(b' ');
                    block.extend_from_slice(name.path);
                }
            }
        }
        block.push(b'\n');
        if block.len() >= BLOCK {
            output.write_all(block)?;
            block.clear();
        }
        Ok(())
    }
}

/// Appends `TYPE DEVICE PATH`, escaped, as it stands in a line of the map.
pub fn push_name(block: &mut Vec<u8>, name: ObjectName<'_>) {
    block.extend([name.kind.letter(), b' ']);
    push_escaped(block, name.device, |byte| byte == b' ' || needs_escape(byte));
    if !name.path.is_empty() {
        block.push(b' ');
        push_escaped(block, name.path, needs_escape);
    }
}

/// Whether the name can be written without escapes.
fn check_original(name: ObjectName<'_>) -> Result<(), WriteError> {
    let what = if name.path.contains(&b'\n') || name.device.contains(&b'\n') {
        "line feed"
    } else if name.device.contains(&b' ') && name.kind.has_path() != Some(false) {
        "space in its device"
    } else {
        return Ok(());
    };
    Err(WriteError::Unwritable { name: name.to_string(), what })
}

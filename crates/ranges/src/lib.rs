#![doc = include_str!("../README.md")]

mod error;
mod indexed;
mod printable;
mod range;
mod units;

pub use error::error_chain;
pub use indexed::IndexedRanges;
pub use printable::{Printable, PrintableText};
pub use range::{
    ContainerOffset, ContainerRange, DeviceOffset, DiskNumber, DiskOffset, DiskRange, FileOffset, Offset,
    Range, RangeSet,
};
pub use units::{BadNumber, Human, Percent, parse_bytes, parse_digits};

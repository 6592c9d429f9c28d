#![doc = include_str!("../README.md")]

mod error;
mod printable;
mod range;
mod spans;
mod units;

pub use error::error_chain;
pub use printable::{Printable, PrintableText};
pub use range::{DeviceOffset, DiskNumber, DiskOffset, DiskRange, FileOffset, Offset, Range, RangeSet};
pub use spans::Spans;
pub use units::{BadNumber, Human, parse_bytes, parse_digits};

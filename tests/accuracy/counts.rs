//! Bytes that are counted for the columns *recall* and *precision*.

use crate::arbiter::{Ranges, subtract, total};
use std::iter::Sum;
use std::ops::AddAssign;

/// Numbers of bytes of one or several objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// Those that an oracle finds.
    pub(crate) known: u64,
    /// Those of them that the map names.
    pub(crate) found: u64,
    /// Those that the map names.
    pub(crate) named: u64,
    /// Those of them that are the object's.
    pub(crate) right: u64,
}

impl Bytes {
    /// Compares the ranges that a map gives to an object with those of an oracle that lists whole
    /// blocks.
    pub(crate) fn compare(oracle: &Ranges, mapped: &Ranges) -> Self {
        let (known, named) = (total(oracle), total(mapped));
        Self {
            known,
            found: known - total(&subtract(oracle, mapped)),
            named,
            right: named - total(&subtract(mapped, oracle)),
        }
    }

    /// Whether the map names everything that the oracle finds, and nothing else.
    pub(crate) fn is_perfect(self) -> bool {
        self.found == self.known && self.right == self.named
    }

    /// How much of what the oracle finds the map names.
    pub(crate) fn recall(self) -> String {
        percent(self.found, self.known)
    }

    /// How much of what the map names is right.
    pub(crate) fn precision(self) -> String {
        percent(self.right, self.named)
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.known += other.known;
        self.found += other.found;
        self.named += other.named;
        self.right += other.right;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, bytes| {
            sum += bytes;
            sum
        })
    }
}

/// A share. Rounded down, so that 100 % means all of it.
fn percent(part: u64, all: u64) -> String {
    match part {
        _ if all == 0 => String::new(),
        _ if part == all => "100 %".into(),
        _ => {
            let thousandths = part * 100_000 / all;
            format!("{}.{:03} %", thousandths / 1000, thousandths % 1000)
        }
    }
}

/// A number of bytes with a comma before each three digits.
pub(crate) fn grouped(bytes: u64) -> String {
    let digits = bytes.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

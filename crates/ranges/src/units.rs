//! Sizes as people type and read them.

use std::fmt;
use thiserror::Error;

/// A text is not a number of bytes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadNumber {
    /// The text is not a number.
    #[error(
        "`{found}` is no number (decimal or 0x hexadecimal, with K, M, G, T, P or E after it for powers of 1024)"
    )]
    NoNumber {
        /// What stands there, printable.
        found: String,
    },
    /// The number is too large.
    #[error("`{found}` does not fit in 64 bits")]
    TooLarge {
        /// What stands there, printable.
        found: String,
    },
}

/// The units above a byte, each 1024 times the one before it.
const PREFIXES: &[u8] = b"KMGTPE";

/// Reads a number of bytes: decimal or `0x` and hexadecimal, and after it nothing, or one of `K`,
/// `M`, `G`, `T`, `P`, `E` for powers of 1024. After a letter `iB` may follow. The case of letters
/// does not matter.
///
/// # Errors
/// [`BadNumber`].
///
/// ```
/// use virt_bmap_ranges::parse_bytes;
///
/// assert_eq!(parse_bytes(b"0x200")?, 512);
/// assert_eq!(parse_bytes(b"3M")?, 3 << 20);
/// assert_eq!(parse_bytes(b"1GiB")?, 1 << 30);
/// assert!(parse_bytes(b"-1").is_err());
/// # Ok::<(), virt_bmap_ranges::BadNumber>(())
/// ```
pub fn parse_bytes(text: &[u8]) -> Result<u64, BadNumber> {
    let found = || crate::Printable(text).to_string();
    let none = || BadNumber::NoNumber { found: found() };
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', digits @ ..] => (digits, 16),
        digits => (digits, 10),
    };
    let length = digits.iter().take_while(|&&digit| char::from(digit).is_digit(radix)).count();
    let (digits, unit) = digits.split_at(length);
    let shift = match unit {
        [] => 0,
        [letter] | [letter, b'i' | b'I', b'b' | b'B'] => {
            let place = PREFIXES.iter().position(|prefix| *prefix == letter.to_ascii_uppercase());
            10 * (place.ok_or_else(none)? as u32 + 1)
        }
        _ => return Err(none()),
    };
    let number = parse_digits(digits, radix)
        .ok_or_else(|| if digits.is_empty() { none() } else { BadNumber::TooLarge { found: found() } })?;
    number.checked_mul(1 << shift).ok_or_else(|| BadNumber::TooLarge { found: found() })
}

/// The number that these digits write in base `radix` (2 to 36); `None` if there is none, or one
/// that does not fit in 64 bits.
#[inline]
pub fn parse_digits(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &digit| {
        let digit = char::from(digit).to_digit(radix)?;
        number.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

/// Hundredths of a percent for people, without the sign.
///
/// ```
/// use virt_bmap_ranges::Percent;
///
/// assert_eq!(Percent(9907).to_string(), "99.07");
/// assert_eq!(format!("{:>6}", Percent(5)), "  0.05");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Percent(pub u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:02}", self.0 / 100, self.0 % 100))
    }
}

/// A number of bytes for people: three digits and a unit of 1024.
///
/// ```
/// use virt_bmap_ranges::Human;
///
/// assert_eq!(Human(0).to_string(), "0 B");
/// assert_eq!(Human(1536).to_string(), "1.5 KiB");
/// assert_eq!(Human(715 << 20).to_string(), "715 MiB");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} B", self.0);
        let mut unit = 1u64;
        for prefix in PREFIXES {
            if self.0 / 1024 < unit {
                break;
            }
            unit *= 1024;
            let prefix = char::from(*prefix);
            // In tenths, rounded; 128 bits hold ten times 2^64.
            let tenths = (u128::from(self.0) * 10 + u128::from(unit) / 2) / u128::from(unit);
            text = if tenths < 100 && tenths % 10 != 0 {
                format!("{}.{} {prefix}iB", tenths / 10, tenths % 10)
            } else {
                let whole = (u128::from(self.0) + u128::from(unit) / 2) / u128::from(unit);
                format!("{whole} {prefix}iB")
            };
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_units_are_parsed() {
        for (text, number) in [
            ("0", 0),
            ("4096", 4096),
            ("0xff", 255),
            ("0XFF", 255),
            ("1k", 1024),
            ("0x10K", 16384),
            ("2T", 2 << 40),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text.as_bytes()), Ok(number), "{text}");
        }
    }

    #[test]
    fn invalid_numbers_are_refused() {
        for text in ["", "K", "0x", "-1", "+1", "1 K", "1KB", "1.5G", "1s", "\u{661}", "0x-1", "1\u{1b}"] {
            let error = parse_bytes(text.as_bytes()).unwrap_err();
            assert!(matches!(error, BadNumber::NoNumber { .. }), "{text}: {error}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        for text in ["18446744073709551616", "16E", "0x1ffffffffffffffff", "17179869184G"] {
            let error = parse_bytes(text.as_bytes()).unwrap_err();
            assert!(matches!(error, BadNumber::TooLarge { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_displayed_in_units() {
        for (bytes, text) in [
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1025, "1 KiB"),
            (10 << 10, "10 KiB"),
            (10_700, "10 KiB"),
            (1_048_575, "1024 KiB"),
            (6_442_450_944, "6 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Human(1536)), "  1.5 KiB");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64, shift in 0u32..64) {
            let number = number >> shift;
            prop_assert_eq!(parse_bytes(number.to_string().as_bytes()), Ok(number));
            prop_assert_eq!(parse_bytes(format!("{number:#x}").as_bytes()), Ok(number));
        }
    }
}

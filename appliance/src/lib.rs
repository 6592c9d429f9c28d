//! What the probe agent and the program on the host say to each other.
//!
//! The agent runs inside the libguestfs appliance and has one way out: a small disk, the *control
//! disk*, whose reads and writes reach the host program as NBD requests. The agent writes
//! [frames](frame) to its first byte; a write is acknowledged only when the host has taken the frame
//! in, so what the agent reads of the guest's disks after the write is attributed to what the frame
//! said, without clocks. The frames' payloads, put one after the other, are a stream of
//! [records](record).
//!
//! In the other direction the agent reads the control disk at [`VERDICT_OFFSET`]: there the host
//! answers whether the objects of the last batch were recorded as expected, or which of a batch are to be read at all.
//!
//! All integers are little-endian. Nothing that arrives from the appliance is trusted: it has mounted
//! the file systems of a guest that may be hostile.

pub mod frame;
pub mod inodes;
pub mod listings;
pub mod pairs;
pub mod record;
pub mod sample;

use sample::Sample;
use std::fmt;

/// Version of frames and records. The agent travels inside the host program, so both ends are of one
/// build; the number is there to turn a mistake into a message.
pub const VERSION: u16 = 7;

/// Size of the control disk in bytes.
pub const CONTROL_SIZE: u64 = 1 << 20;

/// Where on the control disk the agent reads the host's [`Verdict`].
pub const VERDICT_OFFSET: u64 = 512 << 10;

/// Bytes of a verdict: one read that no layer splits.
pub const VERDICT_SIZE: usize = 4096;

/// How the host tells one file's reads from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOrder {
    /// Each file is read under a tag of its own.
    Tags,
    /// Files whose place the kernel promises are read in series: the host knows how far each goes, so one
    /// message does for all. A message takes as long as a read. For file systems whose device has a known
    /// place on the disks.
    Series,
    /// As in a series, but of each file only both ends of its extents, or of a sample of them: the rest is
    /// taken on the kernel's word when these lie where it said.
    Ends(Sample),
}

/// The word for it in the agent's command line.
impl fmt::Display for ReadOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tags => f.write_str("tags"),
            Self::Series => f.write_str("series"),
            Self::Ends(sample) => write!(f, "ends:{}", sample.every),
        }
    }
}

impl std::str::FromStr for ReadOrder {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match (word, word.strip_prefix("ends:")) {
            ("tags", _) => Ok(Self::Tags),
            ("series", _) => Ok(Self::Series),
            (_, Some(every)) => {
                let every = every.parse().map_err(|_| "a sample that is no number")?;
                Ok(Self::Ends(Sample { every }))
            }
            _ => Err("the order is none of tags, series and ends"),
        }
    }
}

/// The host's answer to a batch: which objects to read, or to read once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Numbers of the objects, at most [`Verdict::CAPACITY`].
    pub again: Vec<u32>,
}

impl Verdict {
    /// How many objects fit in one verdict. A batch is never larger.
    pub const CAPACITY: usize = (VERDICT_SIZE - 4) / 4;

    /// The bytes that the agent reads.
    pub fn encode(&self) -> Vec<u8> {
        let again = &self.again[..self.again.len().min(Self::CAPACITY)];
        let mut bytes = Vec::with_capacity(VERDICT_SIZE);
        bytes.extend((again.len() as u32).to_le_bytes());
        for id in again {
            bytes.extend(id.to_le_bytes());
        }
        bytes.resize(VERDICT_SIZE, 0);
        bytes
    }

    /// Reads a verdict back; what is cut short counts as the end.
    pub fn decode(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|w| u32::from_le_bytes(*w));
        let count = words.next().unwrap_or(0) as usize;
        Self { again: words.take(count.min(Self::CAPACITY)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_journey() {
        let every = std::num::NonZeroU32::MAX;
        for order in [ReadOrder::Tags, ReadOrder::Series, ReadOrder::Ends(Sample { every })] {
            assert_eq!(order.to_string().parse(), Ok(order));
        }
        assert!("ends:0".parse::<ReadOrder>().is_err() && "end".parse::<ReadOrder>().is_err());
    }

    #[test]
    fn a_verdict_survives_the_journey() {
        let verdict = Verdict { again: vec![3, 7, u32::MAX] };
        let bytes = verdict.encode();
        assert_eq!(bytes.len(), VERDICT_SIZE);
        assert_eq!(Verdict::decode(&bytes), verdict);
        assert_eq!(Verdict::decode(&[]), Verdict::default());
        assert_eq!(Verdict::decode(&[255; 64]).again.len(), 15);
    }
}

//! Pseudo-random numbers that are the same in every run.

/// The generator SplitMix64 (Steele, Lea and Flood, 2014), which gives the same numbers everywhere.
pub struct Random(u64);

impl Random {
    /// The generator for one part of a test, such as a partition, under a seed.
    pub fn of(seed: u64, part: usize) -> Self {
        Self(seed << 32 | part as u64)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// The seeds that the arguments of a test choose: numbers, or `--all`. By default the first seed.
pub fn seeds(args: &[String], all: std::ops::Range<u64>) -> Vec<u64> {
    let named: Vec<u64> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    match () {
        () if args.iter().any(|arg| arg == "--all") => all.collect(),
        () if named.is_empty() => vec![all.start],
        () => named,
    }
}

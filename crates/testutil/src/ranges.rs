//! Sets of bytes as plain sorted lists. They do not use the program's own code for ranges, since
//! that is under test.

/// A half-open range of bytes.
pub type Range = std::ops::Range<u64>;

/// Sorts ranges, drops empty ones, and joins those that overlap or touch.
pub fn normalise(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut sorted: Vec<Range> = ranges.into_iter().filter(|r| r.start < r.end).collect();
    sorted.sort_by_key(|r| (r.start, r.end));
    let mut joined: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Rounds every range outwards to whole blocks.
pub fn round_out(ranges: &[Range], block: u64) -> Vec<Range> {
    normalise(ranges.iter().map(|r| r.start / block * block..r.end.div_ceil(block) * block))
}

/// The bytes that are in `from` but not in `minus`. Both lists must be normalised.
pub fn difference(from: &[Range], minus: &[Range]) -> Vec<Range> {
    let mut rest = Vec::new();
    let mut minus = minus.iter().peekable();
    for range in from {
        let mut start = range.start;
        while minus.next_if(|m| m.end <= start).is_some() {}
        let mut ahead = minus.clone();
        while let Some(hole) = ahead.next_if(|m| m.start < range.end) {
            if hole.start > start {
                rest.push(start..hole.start);
            }
            start = start.max(hole.end);
        }
        if start < range.end {
            rest.push(start..range.end);
        }
    }
    rest
}

/// The bytes that are in both lists. Both must be normalised.
pub fn intersection(a: &[Range], b: &[Range]) -> Vec<Range> {
    difference(a, &difference(a, b))
}

/// The number of bytes.
pub fn bytes(ranges: &[Range]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).sum()
}

//! Lists of pairs of numbers, in files that the host uploads for the agent: sixteen bytes each.

/// The bytes of a list.
pub fn encode(pairs: &[(u64, u64)]) -> Vec<u8> {
    pairs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()]).flatten().collect()
}

/// Reads a list back; what is cut short counts as the end.
pub fn decode(bytes: &[u8]) -> Vec<(u64, u64)> {
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().map(|[a, b]| (u64::from_le_bytes(*a), u64::from_le_bytes(*b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_survive_the_journey() {
        let pairs = [(0, 1), (u64::MAX, 1 << 40)];
        assert_eq!(decode(&encode(&pairs)), pairs);
        assert_eq!(decode(&encode(&pairs)[..31]), pairs[..1]);
    }
}

//! Operations that `trace --operations` reports, beside those that a [script](crate::script)
//! expects.

use crate::script::{Expected, Round};
use serde_json::Value;
use std::fmt::Write as _;

/// The operations in a file of JSON Lines.
pub fn operations(lines: &[u8]) -> Vec<Value> {
    let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The operations on one device.
pub fn on_device(operations: &[Value], device: &str) -> Vec<Value> {
    operations.iter().filter(|operation| operation["device"] == device).cloned().collect()
}

/// An expected operation as a line.
fn line(expected: &Expected) -> String {
    let Expected { op, kind, path, .. } = expected;
    match expected.from.first() {
        Some(from) => format!("{op} {kind} {from} -> {path}"),
        None => format!("{op} {kind} {path}"),
    }
}

/// A reported operation as the line of the expected one if it is equal. Where a file has several
/// other names, any of them may be reported; and an exchange has no direction.
fn reported(operation: &Value, expected: Option<&Expected>) -> String {
    let word = |name: &str| operation[name].as_str().unwrap_or_default().to_owned();
    let (op, kind, mut path, mut from) = (word("op"), word("type"), word("path"), word("from_path"));
    if let Some(expected) = expected {
        if op == "exchange" && Some(&path) == expected.from.first() {
            std::mem::swap(&mut path, &mut from);
        }
        if op == "link" && expected.from.contains(&from) {
            from.clone_from(expected.from.first().unwrap());
        }
    }
    if from.is_empty() { format!("{op} {kind} {path}") } else { format!("{op} {kind} {from} -> {path}") }
}

/// What is wrong with the bytes and sizes of a reported operation.
fn wrong_details(operation: &Value, expected: &Expected) -> Option<String> {
    if let Some(size) = expected.size
        && operation["size"] != size
    {
        return Some(format!("size {size} expected: {operation}"));
    }
    let (offset, length) = expected.written?;
    let mut at = offset;
    let mut ranges: Vec<(u64, u64)> = operation["written"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|range| Some((range[0].as_u64()?, range[1].as_u64()?)))
        .collect();
    ranges.sort_unstable();
    for (start, length) in ranges {
        if start <= at {
            at = at.max(start + length);
        }
    }
    (at < offset + length).then(|| format!("bytes {offset}+{length} expected: {operation}"))
}

/// Compares what was reported of one device with the script. Operations of one round may have any
/// order. Returns what differs, for people.
pub fn differences(operations: &[Value], rounds: &[Round]) -> String {
    let mut rounds = rounds.to_vec();
    let mut rest = operations;
    for round in rounds.iter_mut().filter(|round| round.steps.len() > 1) {
        let (these, later) = rest.split_at(round.expected.len().min(rest.len()));
        let place = |expected: &Expected| {
            let is_it = |operation| reported(operation, Some(expected)) == line(expected);
            these.iter().position(is_it).unwrap_or(these.len())
        };
        round.expected.sort_by_cached_key(place);
        rest = later;
    }
    let expected: Vec<(usize, &Expected)> = rounds
        .iter()
        .enumerate()
        .flat_map(|(number, round)| round.expected.iter().map(move |e| (number, e)))
        .collect();
    let mut found = String::new();
    for (expected, operation) in aligned(&expected, operations) {
        match (expected, operation) {
            (Some((number, expected)), Some(operation)) => {
                if let Some(wrong) = wrong_details(operation, expected) {
                    writeln!(found, "  round {number}: {wrong}").unwrap();
                }
            }
            (Some((number, expected)), None) => {
                let steps: Vec<String> = rounds[number].steps.iter().map(Value::to_string).collect();
                writeln!(found, "  round {number}: missing {}, {}", line(expected), steps.join(" ")).unwrap();
            }
            (None, Some(operation)) => writeln!(found, "  unexpected {operation}").unwrap(),
            (None, None) => {}
        }
    }
    found
}

type Pair<'a> = (Option<(usize, &'a Expected)>, Option<&'a Value>);

/// Pairs of what was expected and reported, in the order of both: the longest common subsequence,
/// and what is in one of them only.
fn aligned<'a>(expected: &[(usize, &'a Expected)], operations: &'a [Value]) -> Vec<Pair<'a>> {
    let is_same = |i: usize, j: usize| reported(&operations[j], Some(expected[i].1)) == line(expected[i].1);
    let mut longest = vec![vec![0; operations.len() + 1]; expected.len() + 1];
    for i in (0..expected.len()).rev() {
        for j in (0..operations.len()).rev() {
            longest[i][j] = match is_same(i, j) {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    while i < expected.len() || j < operations.len() {
        if i < expected.len() && j < operations.len() && is_same(i, j) {
            pairs.push((Some(expected[i]), Some(&operations[j])));
            (i, j) = (i + 1, j + 1);
        } else if j == operations.len() || i < expected.len() && longest[i + 1][j] >= longest[i][j + 1] {
            pairs.push((Some(expected[i]), None));
            i += 1;
        } else {
            pairs.push((None, Some(&operations[j])));
            j += 1;
        }
    }
    pairs
}

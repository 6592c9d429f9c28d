//! Lists of a guest's operations on files, for replay beside its requests.
//!
//! The list is JSON Lines, as `virt-bmap-rs trace --operations` writes it: an object for each
//! operation with `op`, `type`, `device`, `path`, perhaps `from_path`, and `from_ns` and `to_ns`,
//! the span in nanoseconds since the trace began. Other fields are ignored.

use super::trace::{Lines, TraceError};
use serde::{Deserialize, Serialize};
use std::io::BufRead;
use virt_bmap_ranges::Printable;

/// Most operations that a page names.
pub const MAX_OPERATIONS: usize = 100_000;

/// An operation of the guest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlayedOperation {
    /// When its span begins, in seconds since the trace began.
    pub from: f64,
    /// When its span ends.
    pub to: f64,
    /// What it is: `rename f /dev/sda1 /old -> /new`.
    pub text: String,
}

/// The operations of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlayedOperations {
    /// In the order of their spans.
    pub operations: Vec<PlayedOperation>,
    /// Whether the list had more than [`MAX_OPERATIONS`]; then these are the first.
    pub is_cut: bool,
}

/// A line of the list.
#[derive(Deserialize)]
struct Line {
    op: String,
    #[serde(rename = "type")]
    kind: String,
    device: String,
    path: String,
    from_path: Option<String>,
    from_ns: Option<u64>,
    to_ns: Option<u64>,
}

/// Reads a list.
///
/// # Errors
/// [`TraceError`]; one without times is refused, too.
pub fn read(list: impl BufRead) -> Result<PlayedOperations, TraceError> {
    let mut read = PlayedOperations::default();
    let mut lines = Lines::new(list);
    while let Some((line, text)) = lines.next()? {
        if text.trim_ascii().is_empty() {
            continue;
        }
        if read.operations.len() == MAX_OPERATIONS {
            read.is_cut = true;
            break;
        }
        let operation: Line =
            serde_json::from_slice(text).map_err(|source| TraceError::Operation { line, source })?;
        let (Some(from), Some(to)) = (operation.from_ns, operation.to_ns) else {
            return Err(TraceError::Value { line, what: "an operation without times" });
        };
        read.operations.push(PlayedOperation {
            from: from as f64 / 1e9,
            to: to as f64 / 1e9,
            text: operation.text(),
        });
    }
    read.operations.sort_by(|a, b| a.from.total_cmp(&b.from));
    Ok(read)
}

impl Line {
    fn text(&self) -> String {
        let shown = |text: &str| Printable(text.as_bytes()).to_string();
        let from = self.from_path.as_ref().map(|from| format!("{} -> ", shown(from))).unwrap_or_default();
        let [op, kind, device, path] = [&self.op, &self.kind, &self.device, &self.path].map(|it| shown(it));
        format!("{op} {kind} {device} {from}{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_in_the_order_of_their_spans() {
        let list = r#"{"op":"rename","type":"f","device":"/dev/sda","path":"/b","from_path":"/a\u001b","from_ns":2000000000,"to_ns":2500000000,"inode":12}

{"op":"mkdir","type":"d","device":"/dev/sda","path":"/d","from_ns":500000000,"to_ns":500000000}
"#;
        let read = read(list.as_bytes()).unwrap();
        let told: Vec<_> = read.operations.iter().map(|it| (it.from, it.to, it.text.as_str())).collect();
        assert_eq!(told, [(0.5, 0.5, "mkdir d /dev/sda /d"), (2.0, 2.5, r"rename f /dev/sda /a\033 -> /b")]);
        assert!(!read.is_cut);
    }

    #[test]
    fn lists_without_times_and_other_lines_are_refused() {
        for (list, word) in [
            (
                r#"{"op":"mkdir","type":"d","device":"/dev/sda","path":"/d","from_ns":null,"to_ns":null}"#,
                "times",
            ),
            ("# 1 s\nmkdir d /dev/sda /d\n", "line 1"),
            ("{\"op\":\"mkdir\"}", "type"),
        ] {
            let error = virt_bmap_ranges::error_chain(&read(list.as_bytes()).unwrap_err());
            assert!(error.contains(word), "{list}: {error}");
        }
    }
}

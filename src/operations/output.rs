//! Output of operations.

use super::Operation;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use virt_bmap_map::escape::escape;
use virt_bmap_map::tabular::{Cell, Value, device, json_object, letter, path};
use virt_bmap_map::text::push_name;
use virt_bmap_map::{Attributes, ObjectName};

/// The time span in which operations happened, counted from the start of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The time of the previous map.
    pub from: Duration,
    /// The time of the present map.
    pub to: Duration,
}

/// Output format of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationsFormat {
    /// A line for each: `create f /dev/sda1 /home/x`, names escaped as in a text map; for a rename
    /// or link both names with ` -> ` between them. A comment line with the times precedes the
    /// operations of a span.
    Text,
    /// One JSON object per line for each.
    Jsonl,
}

impl OperationsFormat {
    /// The format that the suffix of a file selects.
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "jsonl") { Self::Jsonl } else { Self::Text }
    }

    /// Writes the operations of a span.
    ///
    /// # Errors
    /// The output's.
    pub fn write(self, out: &mut dyn Write, span: Span, operations: &[Operation<'_>]) -> io::Result<()> {
        if operations.is_empty() {
            return Ok(());
        }
        match self {
            Self::Text => {
                writeln!(out, "# {} to {}", Seconds(span.from), Seconds(span.to))?;
                let mut line = Vec::new();
                for operation in operations {
                    line.clear();
                    text(&mut line, operation);
                    line.push(b'\n');
                    out.write_all(&line)?;
                }
            }
            Self::Jsonl => {
                for operation in operations {
                    json(out, span, operation)?;
                }
            }
        }
        out.flush()
    }
}

struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} s", self.0.as_secs_f64())
    }
}

fn text(line: &mut Vec<u8>, operation: &Operation<'_>) {
    line.extend_from_slice(operation.action.word().as_bytes());
    line.push(b' ');
    let Some(from) = operation.from else { return push_name(line, operation.name) };
    push_name(line, ObjectName { path: b"", ..from });
    line.push(b' ');
    push_path(line, from.path);
    line.extend_from_slice(ARROW);
    push_path(line, operation.name.path);
}

/// Separator of two names.
const ARROW: &[u8] = b" -> ";

/// Appends a path in which the separator of two names is escaped.
fn push_path(line: &mut Vec<u8>, path: &[u8]) {
    let escaped = escape(path);
    let mut rest = &escaped[..];
    while let Some(at) = rest.windows(ARROW.len()).position(|part| part == ARROW) {
        line.extend_from_slice(&rest[..at]);
        line.extend_from_slice(b"\\040");
        rest = &rest[at + 1..];
    }
    line.extend_from_slice(rest);
}

fn json(out: &mut dyn Write, span: Span, operation: &Operation<'_>) -> io::Result<()> {
    let nanoseconds = |time: Duration| Value::Number(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let name = Some(operation.name);
    let known = operation.after.or(operation.before).unwrap_or_default();
    let size = |attributes: Option<Attributes>| Value::from(attributes.and_then(|known| known.size));
    let time = |time: Option<i64>| Value::from(time.and_then(|time| u64::try_from(time).ok()));
    let mut cells: Vec<Cell<'_>> = vec![
        ("op", Value::Word(operation.action.word())),
        ("type", letter(name)),
        ("device", device(name)),
        ("path", path(name)),
    ];
    cells.extend(operation.from.map(|from| ("from_path", path(Some(from)))));
    cells.extend([
        ("inode", known.inode.into()),
        ("old_size", size(operation.before)),
        ("size", size(operation.after)),
        ("mode", known.mode.map(u64::from).into()),
        ("modified", time(known.modified)),
        ("changed", time(known.changed)),
        ("written", operation.written.into()),
        ("from_ns", nanoseconds(span.from)),
        ("to_ns", nanoseconds(span.to)),
    ]);
    json_object(out, &cells)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Action;
    use virt_bmap_map::Kind;

    fn written(format: OperationsFormat, operations: &[Operation<'_>]) -> String {
        let span = Span { from: Duration::ZERO, to: Duration::from_millis(2500) };
        let mut out = Vec::new();
        format.write(&mut out, span, operations).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn operations_are_written_as_documented() {
        let name = |path| ObjectName::path(Kind::File, b"/dev/sda1", path);
        let known =
            Attributes { inode: Some(12), size: Some(5), mode: Some(0o100_644), ..Attributes::default() };
        let create = Operation {
            action: Action::Create,
            name: name(b"/a\n\xc3\xa9"),
            from: None,
            before: None,
            after: Some(known),
            written: 4096,
        };
        let rename = Operation {
            action: Action::Rename,
            from: Some(name(b"/a -> b")),
            before: Some(known),
            written: 0,
            ..create
        };
        assert_eq!(
            written(OperationsFormat::Text, &[create, rename]),
            "# 0.000 s to 2.500 s\ncreate f /dev/sda1 /a\\012é\nrename f /dev/sda1 /a\\040-> b -> /a\\012é\n"
        );
        let lines = written(OperationsFormat::Jsonl, &[create, rename]);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["path"], "/a\né");
        assert_eq!((&lines[0]["op"], &lines[0]["old_size"]), (&"create".into(), &serde_json::Value::Null));
        assert_eq!((&lines[1]["from_path"], &lines[1]["old_size"]), (&"/a -> b".into(), &5.into()));
        assert_eq!((&lines[1]["from_ns"], &lines[1]["to_ns"]), (&0.into(), &2_500_000_000u64.into()));
        assert_eq!(written(OperationsFormat::Text, &[]), "");
    }

    #[test]
    fn the_suffix_selects_the_format() {
        assert_eq!(
            [OperationsFormat::of("a.jsonl".as_ref()), OperationsFormat::of("a.log".as_ref())],
            [OperationsFormat::Jsonl, OperationsFormat::Text]
        );
    }
}

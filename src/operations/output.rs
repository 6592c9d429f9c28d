//! Output of operations.

use super::Operation;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use virt_bmap_map::escape::escape;
use virt_bmap_map::tabular::{Cell, Value, csv_row, device, json_fields, letter, path};
use virt_bmap_map::text::push_name;
use virt_bmap_map::{Attributes, ObjectName};

/// When operations happened, counted from the start of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The time of the first write.
    pub from: Duration,
    /// The time of the flush, or of the last write.
    pub to: Duration,
    /// Whether the guest has flushed its writes.
    pub is_flushed: bool,
    /// How many states of the disks were looked at as one.
    pub states: u64,
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
    /// One row for each.
    Csv,
}

/// The columns of [`OperationsFormat::Csv`].
const COLUMNS: [&str; 15] = [
    "from_ns",
    "to_ns",
    "flushed",
    "states",
    "op",
    "type",
    "device",
    "path",
    "from_path",
    "inode",
    "old_size",
    "size",
    "mode",
    "modified",
    "changed",
];

/// The last column: JSON has each part instead.
const WRITTEN: &str = "written_bytes";

impl OperationsFormat {
    /// The format that the suffix of a file selects.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => Self::Jsonl,
            Some("csv") => Self::Csv,
            _ => Self::Text,
        }
    }

    /// Writes what comes before all operations.
    ///
    /// # Errors
    /// The output's.
    pub fn begin(self, out: &mut dyn Write) -> io::Result<()> {
        if self == Self::Csv {
            writeln!(out, "{},{WRITTEN}", COLUMNS.join(","))?;
        }
        out.flush()
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
                write!(out, "# {} to {}", Seconds(span.from), Seconds(span.to))?;
                if !span.is_flushed {
                    write!(out, ", not flushed")?;
                }
                if span.states > 1 {
                    write!(out, ", {} states together", span.states)?;
                }
                writeln!(out)?;
                for operation in operations {
                    let mut line = text_line(operation);
                    line.push(b'\n');
                    out.write_all(&line)?;
                }
            }
            Self::Jsonl => {
                for operation in operations {
                    json(out, span, operation)?;
                }
            }
            Self::Csv => {
                let mut csv = csv::Writer::from_writer(&mut *out);
                for operation in operations {
                    let written = operation.written_bytes().into();
                    let mut cells = cells(span, operation);
                    cells.push((WRITTEN, written));
                    csv_row(&mut csv, &cells)?;
                }
                csv.flush()?;
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

/// An operation as [`OperationsFormat::Text`] has it, without the end of the line.
pub(super) fn text_line(operation: &Operation<'_>) -> Vec<u8> {
    let mut line = operation.action.word().as_bytes().to_vec();
    line.push(b' ');
    match operation.from {
        None => push_name(&mut line, operation.name),
        Some(from) => {
            push_name(&mut line, ObjectName { path: b"", ..from });
            line.push(b' ');
            push_path(&mut line, from.path);
            line.extend_from_slice(ARROW);
            push_path(&mut line, operation.name.path);
        }
    }
    line
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

/// The values of the columns, in their order.
fn cells<'a>(span: Span, operation: &'a Operation<'a>) -> Vec<Cell<'a>> {
    let nanoseconds = |time: Duration| Value::Number(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let name = Some(operation.name);
    let known = operation.after.or(operation.before).unwrap_or_default();
    let size = |attributes: Option<Attributes>| Value::from(attributes.and_then(|known| known.size));
    let time = |time: Option<i64>| Value::from(time.and_then(|time| u64::try_from(time).ok()));
    let values = [
        nanoseconds(span.from),
        nanoseconds(span.to),
        u64::from(span.is_flushed).into(),
        span.states.into(),
        Value::Word(operation.action.word()),
        letter(name),
        device(name),
        path(name),
        path(operation.from),
        known.inode.into(),
        size(operation.before),
        size(operation.after),
        known.mode.map(u64::from).into(),
        time(known.modified),
        time(known.changed),
    ];
    COLUMNS.into_iter().zip(values).collect()
}

fn json(out: &mut dyn Write, span: Span, operation: &Operation<'_>) -> io::Result<()> {
    let mut cells = cells(span, operation);
    cells.retain(|(column, _)| *column != "flushed" && (*column != "from_path" || operation.from.is_some()));
    out.write_all(b"{")?;
    json_fields(out, &cells)?;
    write!(out, ", \"flushed\": {}, \"written\": [", span.is_flushed)?;
    for (number, part) in operation.written.iter().enumerate() {
        let comma = if number > 0 { ", " } else { "" };
        match part.offset {
            Some(offset) => write!(out, "{comma}[{}, {}]", offset.0, part.length)?,
            None => write!(out, "{comma}[null, {}]", part.length)?,
        }
    }
    out.write_all(b"]}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{Action, WrittenPart};
    use virt_bmap_map::Kind;
    use virt_bmap_ranges::FileOffset;

    fn written(format: OperationsFormat, operations: &[Operation<'_>]) -> String {
        let (from, to) = (Duration::ZERO, Duration::from_millis(2500));
        let span = Span { from, to, is_flushed: true, states: 1 };
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
            written: vec![
                WrittenPart { offset: Some(FileOffset(8192)), length: 4096 },
                WrittenPart { offset: None, length: 512 },
            ],
            is_earlier: false,
        };
        let rename = Operation {
            action: Action::Rename,
            from: Some(name(b"/a -> b")),
            before: Some(known),
            written: Vec::new(),
            ..create.clone()
        };
        let both = [create, rename];
        assert_eq!(
            written(OperationsFormat::Text, &both),
            "# 0.000 s to 2.500 s\ncreate f /dev/sda1 /a\\012é\nrename f /dev/sda1 /a\\040-> b -> /a\\012é\n"
        );
        let lines = written(OperationsFormat::Jsonl, &both);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["path"], "/a\né");
        assert_eq!((&lines[0]["op"], &lines[0]["old_size"]), (&"create".into(), &serde_json::Value::Null));
        assert_eq!((&lines[1]["from_path"], &lines[1]["old_size"]), (&"/a -> b".into(), &5.into()));
        assert_eq!((&lines[1]["from_ns"], &lines[1]["to_ns"]), (&0.into(), &2_500_000_000u64.into()));
        assert_eq!(lines[0]["written"], serde_json::json!([[8192, 4096], [null, 512]]));
        assert_eq!((&lines[0]["flushed"], &lines[0]["states"]), (&true.into(), &1.into()));
        let rows = written(OperationsFormat::Csv, &both);
        let first = "0,2500000000,1,1,create,f,/dev/sda1,/a\\012\u{e9},,12,,5,33188,,,4608";
        assert_eq!(rows.lines().next(), Some(first));
        assert_eq!(written(OperationsFormat::Text, &[]), "");
        let span = Span { from: Duration::ZERO, to: Duration::ZERO, is_flushed: false, states: 3 };
        let mut out = Vec::new();
        OperationsFormat::Text.write(&mut out, span, &both[1..]).unwrap();
        assert!(out.starts_with(b"# 0.000 s to 0.000 s, not flushed, 3 states together\nrename "));
    }

    #[test]
    fn the_suffix_selects_the_format() {
        assert_eq!(
            ["a.jsonl", "a.log", "a.csv"].map(|name| OperationsFormat::of(name.as_ref())),
            [OperationsFormat::Jsonl, OperationsFormat::Text, OperationsFormat::Csv]
        );
    }
}

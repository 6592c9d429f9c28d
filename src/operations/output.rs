//! How operations are written down.

use super::Operation;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use virt_bmap_map::escape::escape;
use virt_bmap_map::tabular::{Cell, Value, device, json_object, letter, path};
use virt_bmap_map::text::push_name;
use virt_bmap_map::{Attributes, ObjectName};

/// The time in which operations happened, since the trace began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When what was known before was true.
    pub from: Duration,
    /// When what is known now was.
    pub to: Duration,
}

/// How operations are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line for each: `create f /dev/sda1 /home/x`, names escaped as in a text map; of a rename or link both names with
    /// ` -> ` between them. Before those of a span a comment says when that was.
    Text,
    /// A JSON object for each, one a line.
    Jsonl,
}

impl Form {
    /// The form that a file's name stands for.
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
    line.extend_from_slice(operation.what.word().as_bytes());
    line.push(b' ');
    let Some(from) = operation.from else { return push_name(line, operation.name) };
    push_name(line, ObjectName { path: b"", ..from });
    line.push(b' ');
    push_path(line, from.path);
    line.extend_from_slice(ARROW);
    push_path(line, operation.name.path);
}

/// Between two names.
const ARROW: &[u8] = b" -> ";

/// Appends a path in which nothing looks like what stands between two.
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
        ("op", Value::Word(operation.what.word())),
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
    use crate::operations::What;
    use virt_bmap_map::Kind;

    fn written(form: Form, operations: &[Operation<'_>]) -> String {
        let span = Span { from: Duration::ZERO, to: Duration::from_millis(2500) };
        let mut out = Vec::new();
        form.write(&mut out, span, operations).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn operations_are_written_as_documented() {
        let name = |path| ObjectName::path(Kind::File, b"/dev/sda1", path);
        let known =
            Attributes { inode: Some(12), size: Some(5), mode: Some(0o100_644), ..Attributes::default() };
        let create = Operation {
            what: What::Create,
            name: name(b"/a\n\xc3\xa9"),
            from: None,
            before: None,
            after: Some(known),
            written: 4096,
        };
        let rename = Operation {
            what: What::Rename,
            from: Some(name(b"/a -> b")),
            before: Some(known),
            written: 0,
            ..create
        };
        assert_eq!(
            written(Form::Text, &[create, rename]),
            "# 0.000 s to 2.500 s\ncreate f /dev/sda1 /a\\012é\nrename f /dev/sda1 /a\\040-> b -> /a\\012é\n"
        );
        let lines = written(Form::Jsonl, &[create, rename]);
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["path"], "/a\né");
        assert_eq!((&lines[0]["op"], &lines[0]["old_size"]), (&"create".into(), &serde_json::Value::Null));
        assert_eq!((&lines[1]["from_path"], &lines[1]["old_size"]), (&"/a -> b".into(), &5.into()));
        assert_eq!((&lines[1]["from_ns"], &lines[1]["to_ns"]), (&0.into(), &2_500_000_000u64.into()));
        assert_eq!(written(Form::Text, &[]), "");
    }

    #[test]
    fn a_file_s_name_tells_the_form() {
        assert_eq!([Form::of("a.jsonl".as_ref()), Form::of("a.log".as_ref())], [Form::Jsonl, Form::Text]);
    }
}

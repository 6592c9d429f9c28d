//! Output of the commands that query a map: as text, CSV or JSON.
//!
//! Names come from inside a guest and may hold any bytes: see [`virt_bmap_map::tabular`].

use anyhow::Result;
use std::io::{self, BufWriter, ErrorKind, Write};
use virt_bmap_map::hardlinks::File;
pub(super) use virt_bmap_map::tabular::{Cell, Value, device, letter, path};
use virt_bmap_map::tabular::{csv_rows, json_object};
use virt_bmap_map::{Kind, ObjectName};
use virt_bmap_ranges::{Human, Printable};

use super::Exit;

/// The output options that all queries share.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct AnswerFormat {
    /// Print CSV: a line with the column names, then one line for each row
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print sizes as numbers of bytes, and offsets in decimal
    #[arg(long)]
    bytes: bool,
    /// Print only the first N rows
    #[arg(long, value_name = "N")]
    top: Option<usize>,
}

impl AnswerFormat {
    /// Whether to print text.
    pub(super) fn is_text(self) -> bool {
        !self.csv && !self.json
    }

    /// Whether to print CSV.
    pub(super) fn is_csv(self) -> bool {
        self.csv
    }

    /// A number of bytes, as text.
    pub(super) fn size(self, bytes: u64) -> String {
        if self.bytes { bytes.to_string() } else { Human(bytes).to_string() }
    }

    /// An offset, as text.
    pub(super) fn offset(self, offset: u64) -> String {
        if self.bytes { offset.to_string() } else { format!("{offset:#x}") }
    }

    /// The rows to print, as limited by `--top`.
    pub(super) fn first<T>(self, all: &[T]) -> &[T] {
        &all[..self.top.unwrap_or(usize::MAX).min(all.len())]
    }

    /// Prints, as text, how many rows `--top` left out, if any.
    pub(super) fn print_more(self, out: &mut dyn Write, found: usize) -> io::Result<()> {
        match self.top {
            Some(top) if found > top => writeln!(out, "and {} more", found - top),
            _ => Ok(()),
        }
    }

    /// Lets `write` write the answer to standard output. A closed pipe (`… | head`) is not an
    /// error.
    pub(super) fn print(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        match write(&mut out).and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(anyhow::Error::from(error).context("cannot write the answer to standard output"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the rows as CSV or JSON, and in JSON the summary after them. All rows have the same
    /// columns.
    pub(super) fn rows<'a, const N: usize>(
        self,
        out: &mut dyn Write,
        rows: impl Iterator<Item = [Cell<'a>; N]>,
        summary: &[Cell<'_>],
        columns: [&'static str; N],
    ) -> io::Result<()> {
        self.rows_and(out, rows, |_| Ok(()), summary, columns)
    }

    /// The same. In JSON, `more` writes between the rows and the summary, from the last row on: a
    /// line feed, the end of the array, and another member up to where its array ends.
    pub(super) fn rows_and<'a, const N: usize>(
        self,
        out: &mut dyn Write,
        rows: impl Iterator<Item = [Cell<'a>; N]>,
        more: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        summary: &[Cell<'_>],
        columns: [&'static str; N],
    ) -> io::Result<()> {
        if self.csv {
            return csv_rows(out, rows, columns);
        }
        out.write_all(b"{\"version\": 1, \"rows\": [")?;
        for (number, row) in rows.enumerate() {
            out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
            json_object(out, &row)?;
        }
        more(out)?;
        out.write_all(b"\n], \"summary\": ")?;
        json_object(out, summary)?;
        out.write_all(b"}\n")
    }
}

/// An object's name, as text.
pub(super) fn object_name(name: ObjectName<'_>) -> String {
    match name.kind {
        Kind::Free => format!("free space of {}", Printable(name.device)),
        _ => name.to_string(),
    }
}

/// A file's first name and the number of its other names, as text.
pub(super) fn file_name(file: &File<'_>) -> String {
    name_and_more(&file.object.name().to_string(), file.names)
}

/// A name and the number of other names, as text.
pub(super) fn name_and_more(name: &str, names: u32) -> String {
    match names - 1 {
        0 => name.to_owned(),
        1 => format!("{name} (+1 name)"),
        more => format!("{name} (+{more} names)"),
    }
}

/// The exit status of a command that only prints.
pub(super) fn done(printed: Result<()>) -> Result<Exit> {
    printed.map(|()| Exit::Success)
}

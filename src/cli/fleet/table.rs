//! The table of guests with their results: as text, CSV or JSON.

use crate::cli::Exit;
use crate::cli::answer::{AnswerFormat, Cell, Value};
use anyhow::Result;
use std::io::{self, Write};
use virt_bmap::fleet::{Guest, GuestId, Record, Status, Store};
use virt_bmap_ranges::Printable;

/// One guest.
pub(super) struct Row<'a> {
    id: &'a GuestId,
    record: Option<Record>,
    /// Why its map is no longer current.
    stale: Option<String>,
}

impl<'a> Row<'a> {
    /// The state according to the record.
    pub(super) fn of_record(store: &Store, guest: &'a Guest) -> Result<Self> {
        Ok(Self { id: &guest.id, record: store.record(&guest.id)?, stale: None })
    }

    /// The state according to the record and to the images as they are now.
    pub(super) fn of_now(store: &Store, guest: &'a Guest) -> Result<Self> {
        let record = store.record(&guest.id)?;
        let with_map = record.as_ref().filter(|record| record.status.has_map());
        let stale = with_map.and_then(|record| store.stale(guest, Some(record), &record.options, false));
        Ok(Self { id: &guest.id, record, stale: stale.map(|stale| stale.to_string()) })
    }

    fn status(&self) -> Option<Status> {
        self.record.as_ref().map(|record| record.status)
    }

    fn word(&self) -> &'static str {
        match (self.status(), &self.stale) {
            (None, _) => "pending",
            (Some(_), Some(_)) => "stale",
            (Some(status), None) => status.word(),
        }
    }

    fn is_complete(&self) -> bool {
        self.status() == Some(Status::Complete) && self.stale.is_none()
    }

    /// Why the guest is not complete, in a few words.
    fn why(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        let unexamined = || {
            let first = record.unexamined.first()?;
            let more = record.unexamined.len() - 1;
            Some(if more == 0 { first.to_string() } else { format!("{first} (and {more} more)") })
        };
        self.stale.clone().or_else(|| record.error.clone()).or_else(unexamined)
    }

    fn map_bytes(&self) -> Option<u64> {
        let record = self.record.as_ref().filter(|record| record.status.has_map())?;
        Some(record.maps.iter().map(|map| map.bytes).sum())
    }
}

const COLUMNS: [&str; 19] = [
    "id",
    "status",
    "exit_code",
    "tries",
    "started",
    "seconds",
    "peak_memory",
    "filesystems",
    "directories",
    "files",
    "used",
    "unexplained",
    "added",
    "removed",
    "changed",
    "unexamined",
    "warnings",
    "map_bytes",
    "why",
];

/// Prints the guests and the number of guests in each state. The exit status reports whether all
/// are complete.
pub(super) fn print(form: AnswerFormat, rows: &[Row<'_>]) -> Result<Exit> {
    let words = ["complete", "incomplete", "failed", "hung", "crashed", "stale", "pending"];
    let sums = words.map(|word| (word, rows.iter().filter(|row| row.word() == word).count() as u64));
    let shown = form.first(rows);
    form.print(|out| {
        if form.is_text() {
            return print_text(form, out, shown, &sums, rows.len());
        }
        // Cells borrow their text, so it is made first.
        let texts: Vec<_> = shown
            .iter()
            .map(|row| (row.record.as_ref().map(|record| format!("{:.1}", record.seconds)), row.why()))
            .collect();
        let cells = shown.iter().zip(&texts).map(|(row, (seconds, why))| {
            let record = row.record.as_ref();
            let counts = record.and_then(|record| record.counts);
            let balance = record.and_then(|record| record.balance);
            let changes = record.and_then(|record| record.changes);
            let code = record.and_then(|record| record.exit_code).and_then(|code| u64::try_from(code).ok());
            [
                ("id", Value::Name(row.id.as_str().as_bytes())),
                ("status", Value::Word(row.word())),
                ("exit_code", code.into()),
                ("tries", record.map(|record| u64::from(record.tries)).into()),
                ("started", record.map_or(Value::Nothing, |record| Value::Word(&record.started))),
                ("seconds", seconds.as_ref().map_or(Value::Nothing, |text| Value::Word(text))),
                ("peak_memory", record.and_then(|record| record.peak_memory).into()),
                ("filesystems", counts.map(|counts| counts.filesystems).into()),
                ("directories", counts.map(|counts| counts.directories).into()),
                ("files", counts.map(|counts| counts.files).into()),
                ("used", balance.map(|balance| balance.used).into()),
                ("unexplained", balance.map(|balance| balance.unexplained).into()),
                ("added", changes.map(|changes| changes.added).into()),
                ("removed", changes.map(|changes| changes.removed).into()),
                ("changed", changes.map(|changes| changes.changed).into()),
                ("unexamined", record.map(|record| record.unexamined.len() as u64).into()),
                ("warnings", record.map(|record| record.warnings.len() as u64).into()),
                ("map_bytes", row.map_bytes().into()),
                ("why", why.as_ref().map_or(Value::Nothing, |text| Value::Name(text.as_bytes()))),
            ]
        });
        let summary: Vec<Cell<'_>> = sums.iter().map(|(word, count)| (*word, (*count).into())).collect();
        form.rows(out, cells, &summary, COLUMNS)
    })?;
    Ok(if rows.iter().all(Row::is_complete) { Exit::Success } else { Exit::Incomplete })
}

fn print_text(
    form: AnswerFormat,
    out: &mut dyn Write,
    rows: &[Row<'_>],
    sums: &[(&str, u64)],
    all: usize,
) -> io::Result<()> {
    let width = rows.iter().map(|row| row.id.as_str().len()).max().unwrap_or(0).clamp(5, 40);
    writeln!(
        out,
        "{:width$}  {:10}  {:>9}  {:>9}  {:>10}  why",
        "guest", "status", "seconds", "files", "maps"
    )?;
    for row in rows {
        let record = row.record.as_ref();
        let seconds = record.map(|record| format!("{:.1}", record.seconds)).unwrap_or_default();
        let files = record.and_then(|record| record.counts).map(|counts| counts.files.to_string());
        let maps = row.map_bytes().map(|bytes| form.size(bytes)).unwrap_or_default();
        let why = row.why().unwrap_or_default();
        let line = format!(
            "{:width$}  {:10}  {seconds:>9}  {:>9}  {maps:>10}  {}",
            row.id,
            row.word(),
            files.unwrap_or_default(),
            Printable(why.as_bytes())
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    form.print_more(out, all)?;
    let sums = sums.iter().filter(|(_, count)| *count > 0);
    let sums: Vec<String> = sums.map(|(word, count)| format!("{count} {word}")).collect();
    writeln!(out, "{all} guests: {}", sums.join(", "))
}

//! The screen on the terminal.
//!
//! Names come from the guest, and so may the output of the command. All of them are escaped and cut
//! to the width of the screen, by the columns that a terminal gives to each character.

use super::TopStatus;
use super::pace::Rate;
use crate::cli::counted;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use std::time::Duration;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};
use virt_bmap_map::{Map, ObjectId};
use virt_bmap_ranges::{Human, Printable};
use virt_bmap_trace::{Amount, Op};
use virt_bmap_trace::{LiveView, ObjectOrder, ObjectUsage, RecentRequest};

/// Lines for the most recent requests, including the heading.
const RECENT: u16 = 7;

/// Lines for the latest operations, including the heading.
const OPERATIONS: u16 = 7;

/// Lines for the output of the command, including the heading.
const OUTPUT: u16 = 6;

/// Minimum number of lines for objects, including the heading; the sections below shrink first.
const OBJECTS: u16 = 6;

const KEYS: &str =
    "sort by: b bytes  w written  r requests  t time of the last request   space: pause   q: quit";

/// The content of the screen.
pub(super) struct Screen<'a> {
    pub(super) title: &'a [String],
    pub(super) elapsed: Duration,
    pub(super) look: &'a LiveView,
    pub(super) rate: Rate,
    pub(super) map: &'a Map,
    pub(super) status: &'a TopStatus,
    pub(super) order: ObjectOrder,
    pub(super) is_paused: bool,
}

impl Screen<'_> {
    /// Draws the screen, as far as there is room.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let head = self.head(area.width.into());
        let head_height = u16::try_from(head.len()).unwrap_or(u16::MAX);
        let mut room = area.height.saturating_sub(head_height + OBJECTS + 1);
        let mut takes = |lines: u16| {
            let lines = lines.min(room);
            // A heading without rows is useless.
            let lines = if lines < 2 { 0 } else { lines };
            room -= lines;
            lines
        };
        let output_height = if self.status.tail.is_some() { takes(OUTPUT) } else { 0 };
        let operations_height = if self.status.operations.is_some() { takes(OPERATIONS) } else { 0 };
        let recent_height = takes(RECENT);
        let rows = Layout::vertical([
            Constraint::Length(head_height),
            Constraint::Min(0),
            Constraint::Length(recent_height),
            Constraint::Length(operations_height),
            Constraint::Length(output_height),
            Constraint::Length(1),
        ]);
        let [top, objects, recent, operations, output, keys] = rows.areas(area);
        frame.render_widget(Paragraph::new(head), top);
        frame.render_widget(Paragraph::new(self.objects(objects)), objects);
        frame.render_widget(Paragraph::new(self.recent(recent)), recent);
        frame.render_widget(Paragraph::new(self.operations(operations)), operations);
        frame.render_widget(Paragraph::new(self.output(output)), output);
        frame.render_widget(Paragraph::new(Line::from(KEYS).style(Modifier::DIM)), keys);
    }

    fn head(&self, width: usize) -> Vec<Line<'static>> {
        let seconds = self.elapsed.as_secs();
        let clock = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let clock = if self.is_paused { format!("{clock} (paused)") } else { clock };
        let mut lines = Vec::new();
        for (number, title) in self.title.iter().enumerate() {
            let title = Printable(title.as_bytes()).to_string();
            lines.push(match number {
                0 => {
                    let title = fit(&title, width.saturating_sub(clock.len() + 1));
                    let gap = width.saturating_sub(title.width() + clock.len());
                    bold(format!("{title}{}{clock}", " ".repeat(gap)))
                }
                _ => Line::from(fit(&title, width)),
            });
        }
        let totals = &self.look.totals;
        let amount = |word: &str, amount: Amount, rate: Amount| {
            let Amount { requests, bytes } = amount;
            let bytes = Human(bytes);
            format!("{word} {bytes} in {requests} ({}/s in {})", Human(rate.bytes), rate.requests)
        };
        lines.push(Line::from(format!(
            "{}   {}   {}",
            amount("read", totals.read, self.rate.read),
            amount("wrote", totals.written, self.rate.written),
            counted(totals.flushes, "flush")
        )));
        let mut missing = Vec::new();
        if totals.failed > 0 {
            missing.push(format!("{} failed", totals.failed));
        }
        if self.status.dropped > 0 {
            missing.push(format!("{} missing from the log, which is too slow", self.status.dropped));
        }
        if let Some(error) = &self.status.log_error {
            missing.push(Printable(error.as_bytes()).to_string());
        }
        if !missing.is_empty() {
            lines.push(bold(missing.join("; ")));
        }
        lines.push(Line::default());
        lines
    }

    fn objects(&self, area: Rect) -> Vec<Line<'static>> {
        let heading = |text: &'static str, is_order: bool| {
            let reversed = if is_order { Modifier::REVERSED } else { Modifier::empty() };
            Span::styled(text, Style::from(Modifier::BOLD | reversed))
        };
        let head = Line::from(vec![
            heading("     BYTES", self.order == ObjectOrder::Bytes),
            heading("   WRITTEN", self.order == ObjectOrder::Written),
            heading("  REQUESTS", self.order == ObjectOrder::Requests),
            heading("      LAST", self.order == ObjectOrder::Latest),
            heading("  OBJECT", false),
            Span::raw(format!(" ({})", self.look.objects)),
        ]);
        let row = |(object, usage): &(ObjectId, ObjectUsage)| {
            let bytes = [usage.all().bytes, usage.written.bytes].map(Human);
            let ago = ago(self.elapsed.saturating_sub(usage.last));
            let numbers = format!("{:>10}{:>10}{:>10}{ago:>10}  ", bytes[0], bytes[1], usage.all().requests);
            self.with_name(numbers, Some(*object), area)
        };
        let rows = self.look.top.iter().map(row);
        [head].into_iter().chain(rows).take(area.height.into()).collect()
    }

    fn recent(&self, area: Rect) -> Vec<Line<'static>> {
        let row = |RecentRequest { event, object }: &RecentRequest| {
            let at = match event.op {
                Op::Flush => String::new(),
                _ => format!("{:#x} {}", event.range.start.0, Human(event.range.len())),
            };
            let disk = if self.map.header().images.len() > 1 {
                format!(" disk {}", event.disk)
            } else {
                String::new()
            };
            self.with_name(format!("{:>5}{disk} {at:<24}  ", event.op.word()), *object, area)
        };
        let rows = self.look.recent.iter().map(row);
        [bold("MOST RECENT".into())].into_iter().chain(rows).take(area.height.into()).collect()
    }

    fn operations(&self, area: Rect) -> Vec<Line<'static>> {
        let Some(latest) = &self.status.operations else { return Vec::new() };
        let lines = latest.lines(area.height.saturating_sub(1).into());
        let line = |line: &Vec<u8>| Line::from(fit(&Printable(line).to_string(), area.width.into()));
        [bold("LATEST OPERATIONS".into())].into_iter().chain(lines.iter().map(line)).collect()
    }

    fn output(&self, area: Rect) -> Vec<Line<'static>> {
        let Some(tail) = &self.status.tail else { return Vec::new() };
        let lines = tail.lines(area.height.saturating_sub(1).into());
        let lines = lines.iter().map(|line| Line::from(Printable(line).to_string()));
        [bold("OUTPUT OF THE COMMAND".into())].into_iter().chain(lines).collect()
    }

    /// A line that ends with the name of an object; a long name loses its beginning.
    fn with_name(&self, mut line: String, object: Option<ObjectId>, area: Rect) -> Line<'static> {
        if let Some(object) = object {
            let name = self.map.object(object).name().to_string();
            line += &fit(&name, usize::from(area.width).saturating_sub(line.width()));
        }
        Line::from(line)
    }
}

fn bold(text: String) -> Line<'static> {
    Line::from(text).style(Modifier::BOLD)
}

/// The time since an event, in up to six characters.
fn ago(time: Duration) -> String {
    match time.as_secs() {
        0 => "now".into(),
        seconds @ ..100 => format!("{seconds} s"),
        seconds @ ..6000 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// The end of a text that fits into `width` columns. The end is the most useful part of a path.
fn fit(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    if width == 0 {
        return String::new();
    }
    let mut room = width - 1;
    let mut start = text.len();
    for (place, character) in text.char_indices().rev() {
        let Some(rest) = room.checked_sub(character.width().unwrap_or(0)) else { break };
        (room, start) = (rest, place);
    }
    // A combining character whose base was cut off would combine with the ellipsis.
    let rest = text[start..].trim_start_matches(|character: char| character.width() == Some(0));
    format!("…{rest}")
}

#[cfg(test)]
mod tests;

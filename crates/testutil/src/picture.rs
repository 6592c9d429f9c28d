//! Pictures of the documentation that show a terminal. The tests draw them, and compare those in
//! `docs` with what the program shows now.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Width of a character in pixels.
const CELL: f64 = 8.0;
/// Height of a line in pixels.
const LINE: f64 = 18.0;
/// The colours of a terminal, as xterm has them: eight, and eight bright ones.
const COLOURS: [&str; 16] = [
    "#000000", "#cd5c5c", "#5fb05f", "#c8a030", "#6c8ee0", "#c070c0", "#40b0b0", "#d8d8d8", "#808080",
    "#ff7070", "#80e080", "#f0d060", "#90b0ff", "#e090e0", "#70e0e0", "#ffffff",
];
const FOREGROUND: &str = "#d8d8d8";
const BACKGROUND: &str = "#1c1e22";

/// How characters are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pen {
    colour: Option<u8>,
    is_bold: bool,
    is_dim: bool,
    is_reversed: bool,
}

impl Pen {
    /// Applies the numbers of a sequence `ESC [ … m` (ECMA-48, 8.3.117).
    fn apply(&mut self, numbers: &str) {
        let mut numbers = numbers.split(';').map(|number| number.parse().unwrap_or(0u8));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                2 => self.is_dim = true,
                7 => self.is_reversed = true,
                22 => (self.is_bold, self.is_dim) = (false, false),
                27 => self.is_reversed = false,
                30..=37 => self.colour = Some(number - 30),
                38 if numbers.next() == Some(5) => self.colour = numbers.next().filter(|it| *it < 16),
                39 => self.colour = None,
                90..=97 => self.colour = Some(number - 82),
                _ => {}
            }
        }
    }
}

/// The runs of a line that are drawn alike, and the pen at its end.
fn runs(line: &str, mut pen: Pen) -> (Vec<(Pen, String)>, Pen) {
    let mut runs: Vec<(Pen, String)> = Vec::new();
    let mut parts = line.split("\u{1b}[");
    let mut push = |pen: Pen, text: &str| {
        // Shift out and shift in switch to line graphics and back.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        match runs.last_mut() {
            Some((last, earlier)) if *last == pen => *earlier += &text,
            _ if text.is_empty() => {}
            _ => runs.push((pen, text)),
        }
    };
    push(pen, parts.next().unwrap_or_default());
    for part in parts {
        let (numbers, text) = part.split_once('m').unwrap_or((part, ""));
        pen.apply(numbers);
        push(pen, text);
    }
    (runs, pen)
}

/// A drawing (SVG) of a screen, as [`Screen::styled`](super::screen::Screen::styled) returns it.
/// Characters that are two columns wide are not supported.
pub fn svg(screen: &str) -> String {
    let screen = screen.trim_end_matches('\n');
    let columns = 100.max(
        screen
            .lines()
            .map(|line| runs(line, Pen::default()).0.iter().map(|(_, text)| text.chars().count()).sum())
            .max()
            .unwrap_or(0),
    );
    let (width, height) = (columns as f64 * CELL + 24.0, screen.lines().count() as f64 * LINE + 24.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    let mut pen = Pen::default();
    for (number, line) in screen.lines().enumerate() {
        let top = 12.0 + number as f64 * LINE;
        let mut column = 0;
        let (runs, end) = runs(line, pen);
        pen = end;
        for (pen, text) in runs {
            let (x, width) = (12.0 + column as f64 * CELL, text.chars().count() as f64 * CELL);
            column += text.chars().count();
            let mut colour = pen.colour.map_or(FOREGROUND, |number| COLOURS[usize::from(number)]);
            if pen.is_reversed {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{LINE}\" fill=\"{colour}\"/>"
                );
                colour = BACKGROUND;
            }
            if text.trim().is_empty() {
                continue;
            }
            let weight = if pen.is_bold { " font-weight=\"bold\"" } else { "" };
            let opacity = if pen.is_dim { " opacity=\"0.6\"" } else { "" };
            let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let y = top + 13.0;
            let _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{y}\" textLength=\"{width}\" fill=\"{colour}\"{weight}{opacity} \
                 xml:space=\"preserve\">{escaped}</text>"
            );
        }
    }
    svg + "</svg>\n"
}

/// The words of a drawing, without numbers, units and marks.
fn words(svg: &str) -> BTreeSet<String> {
    let texts = svg.split('>').filter_map(|part| part.split_once("</text")).map(|(text, _)| text);
    let words = texts.flat_map(|text| text.split(|c: char| !c.is_alphabetic() && c != '/'));
    words.filter(|word| word.chars().count() > 3).map(str::to_owned).collect()
}

/// Compares the picture in the documentation with a screen: it must show the same words. With
/// `VIRT_BMAP_BLESS=1` in the environment, the screen becomes the picture.
#[track_caller]
pub fn check(path: &Path, screen: &str) {
    let now = svg(screen);
    if std::env::var_os("VIRT_BMAP_BLESS").is_some() {
        fs::write(path, now).unwrap();
        return;
    }
    let shown = fs::read_to_string(path).unwrap_or_default();
    let path = path.display();
    assert_eq!(words(&shown), words(&now), "{path} shows something else; VIRT_BMAP_BLESS=1 draws it again");
    assert!(shown.starts_with("<svg ") && shown.ends_with("</svg>\n"), "{path}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_special_characters_are_drawn() {
        let drawing = svg("\u{1b}[1m<title>\u{1b}[0m plain\n\u{1b}[7m\u{1b}[31mreversed\u{1b}[0m");
        assert!(
            drawing.contains("font-weight=\"bold\" xml:space=\"preserve\">&lt;title&gt;</text>"),
            "{drawing}"
        );
        assert!(drawing.contains("fill=\"#cd5c5c\"/>"), "{drawing}");
        let words: Vec<_> = words(&drawing).into_iter().collect();
        assert_eq!(words, ["plain", "reversed", "title"]);
    }
}

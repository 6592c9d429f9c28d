//! `--top`: the trace while it goes on, as a screen on a terminal and as lines elsewhere.

mod lines;
mod pace;
mod screen;

use crate::cli::terminal::{Terminal, can_be_taken};
use lines::Lines;
use pace::Pace;
use rustix::process::{Signal, getpid, kill_process};
use screen::Screen;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap_map::Map;
use virt_bmap_trace::ObjectOrder;
use virt_bmap_trace::{Live, Tail};

/// How often the screen is drawn.
const FRAME: Duration = Duration::from_millis(250);

/// Most objects and requests that a screen may have room for.
const MOST: usize = 1000;

/// The trace while it goes on.
pub(super) struct Top {
    live: Arc<Live>,
    map: Arc<Map>,
    /// What stands above all else: the images, and where they are served.
    title: Vec<String>,
    began: Instant,
    pace: Pace,
    display: Display,
}

enum Display {
    Screen {
        terminal: Terminal,
        order: ObjectOrder,
        is_paused: bool,
        drawn: Option<Instant>,
    },
    Lines(Lines),
    /// Nobody looks any more.
    Gone,
}

/// What there is to say beside that which [`Live`] knows.
#[derive(Default)]
pub(super) struct Beside {
    /// Requests that are not in the log.
    pub(super) dropped: u64,
    /// Why the log has ended, if it has.
    pub(super) trouble: Option<String>,
    /// What the command prints, if that is kept.
    pub(super) tail: Option<Tail>,
}

impl Top {
    /// Begins to show `live`, whose objects are those of `map`.
    ///
    /// # Errors
    /// The terminal cannot be taken.
    pub(super) fn begin(live: Arc<Live>, map: Arc<Map>, title: Vec<String>) -> io::Result<Self> {
        let display = if can_be_taken() {
            let terminal = Terminal::take()?;
            Display::Screen { terminal, order: ObjectOrder::default(), is_paused: false, drawn: None }
        } else {
            Display::Lines(Lines::default())
        };
        let began = Instant::now();
        Ok(Self { live, map, title, began, pace: Pace::new(began), display })
    }

    /// Whether there is a screen, on which nobody else may write.
    pub(super) fn has_screen(&self) -> bool {
        matches!(self.display, Display::Screen { .. })
    }

    /// Deals with keys, and shows what there is if it is time to. Never waits. A terminal or a reader that is
    /// gone does not end the trace.
    pub(super) fn step(&mut self, beside: &Beside) {
        if self.try_step(beside).is_err() {
            self.display = Display::Gone;
        }
    }

    fn try_step(&mut self, beside: &Beside) -> io::Result<()> {
        let Self { live, map, title, began, pace, display } = self;
        let elapsed = began.elapsed();
        match display {
            Display::Gone => {}
            Display::Lines(lines) => {
                if lines.is_time(elapsed) {
                    let look = live.view(ObjectOrder::Bytes, 1, 0);
                    pace.add(Instant::now(), look.totals);
                    lines.print(&mut io::stdout().lock(), elapsed, &look, pace.rate(), map, beside)?;
                }
            }
            Display::Screen { terminal, order, is_paused, drawn } => {
                let mut has_changed = false;
                for key in terminal.keys()? {
                    has_changed |= press(key, order, is_paused);
                }
                let is_time = !*is_paused && drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME);
                if !is_time && !has_changed {
                    return Ok(());
                }
                *drawn = Some(Instant::now());
                let look = live.view(*order, MOST, MOST);
                pace.add(Instant::now(), look.totals);
                let (rate, order, is_paused) = (pace.rate(), *order, *is_paused);
                let screen = Screen { title, elapsed, look: &look, rate, map, beside, order, is_paused };
                terminal.draw(|frame| screen.draw(frame))?;
            }
        }
        Ok(())
    }
}

/// What Ctrl-C is on a terminal that makes no signal of it.
const CTRL_C: u8 = 3;

/// Deals with a key, and returns whether it changes what is shown.
fn press(key: u8, order: &mut ObjectOrder, is_paused: &mut bool) -> bool {
    match key {
        b'q' | CTRL_C => interrupt(),
        b'b' => *order = ObjectOrder::Bytes,
        b'w' => *order = ObjectOrder::Written,
        b'r' => *order = ObjectOrder::Requests,
        b't' => *order = ObjectOrder::Latest,
        b' ' => *is_paused = !*is_paused,
        _ => return false,
    }
    true
}

/// Does what Ctrl-C does on a terminal that is not taken.
fn interrupt() {
    let _ = kill_process(getpid(), Signal::INT);
}

//! `--top`: the running trace, as a screen on a terminal and as lines elsewhere.

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
use virt_bmap::operations::Latest;
use virt_bmap_map::Map;
use virt_bmap_trace::ObjectOrder;
use virt_bmap_trace::{Live, Tail};

/// Time between two frames of the screen.
const FRAME: Duration = Duration::from_millis(250);

/// Maximum number of objects and requests on a screen.
const MOST: usize = 1000;

/// The display of a running trace.
pub(super) struct Top {
    live: Arc<Live>,
    map: Arc<Map>,
    /// The first lines of the screen: the images, and the addresses where they are served.
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
    /// The terminal or the reader of standard output no longer exists.
    Closed,
}

/// What the display shows in addition to the counters of [`Live`].
#[derive(Default)]
pub(super) struct TopStatus {
    /// Number of requests missing from the log.
    pub(super) dropped: u64,
    /// The error that ended the log, if there was one.
    pub(super) log_error: Option<String>,
    /// The latest output of the command, if it is captured.
    pub(super) tail: Option<Tail>,
    /// The latest operations on files, if they are looked for.
    pub(super) operations: Option<Latest>,
}

impl Top {
    /// Begins to show `live`, whose objects are those of `map`.
    ///
    /// # Errors
    /// If the terminal cannot be switched to a screen.
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

    /// Whether a screen is shown, so that nothing else may write to the terminal.
    pub(super) fn has_screen(&self) -> bool {
        matches!(self.display, Display::Screen { .. })
    }

    /// Handles keys, and updates the display if it is time. Never waits. A closed terminal or
    /// output does not end the trace.
    pub(super) fn step(&mut self, status: &TopStatus) {
        if self.try_step(status).is_err() {
            self.display = Display::Closed;
        }
    }

    fn try_step(&mut self, status: &TopStatus) -> io::Result<()> {
        let Self { live, map, title, began, pace, display } = self;
        let elapsed = began.elapsed();
        match display {
            Display::Closed => {}
            Display::Lines(lines) => {
                if lines.is_time(elapsed) {
                    let look = live.view(ObjectOrder::Bytes, 1, 0);
                    pace.add(Instant::now(), look.totals);
                    lines.print(&mut io::stdout().lock(), elapsed, &look, pace.rate(), map, status)?;
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
                let screen = Screen { title, elapsed, look: &look, rate, map, status, order, is_paused };
                terminal.draw(|frame| screen.draw(frame))?;
            }
        }
        Ok(())
    }
}

/// Ctrl-C on a terminal in raw mode, which does not turn it into a signal.
const CTRL_C: u8 = 3;

/// Handles a key and returns whether the display changes.
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

/// Sends the signal that Ctrl-C sends outside raw mode.
fn interrupt() {
    let _ = kill_process(getpid(), Signal::INT);
}

//! Switches the terminal to a screen of this program, and restores it however the program ends: in
//! the normal way, by a panic of any thread, or by a signal (see [`signals`](super::signals)).

use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::prelude::CrosstermBackend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IsTerminal as _, Stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first byte that a key which is not a character sends.
const ESCAPE: u8 = 0x1b;

/// Whether this program uses the terminal as a screen now.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether standard output is a terminal that can show a screen and standard input a terminal that
/// sends keys.
pub(super) fn can_be_taken() -> bool {
    let can_draw = std::env::var_os("TERM").is_some_and(|kind| !kind.is_empty() && kind != "dumb");
    can_draw && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Restores the terminal if a screen is shown. Any thread may call this at any time.
pub(super) fn restore() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // The errors of a terminal that no longer exists are ignored.
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    }
}

/// The terminal while it shows a screen; restored when this is dropped.
pub(super) struct Terminal {
    screen: ratatui::Terminal<CrosstermBackend<Stdout>>,
}

impl Terminal {
    /// Switches the terminal of standard output to a screen.
    ///
    /// # Errors
    /// Those of the terminal.
    pub(super) fn take() -> io::Result<Self> {
        static PANICS: Once = Once::new();
        PANICS.call_once(|| {
            let default_hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                default_hook(panic);
            }));
        });
        IS_TAKEN.store(true, Ordering::SeqCst);
        let take = || {
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen)?;
            ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))
        };
        take().map(|screen| Self { screen }).inspect_err(|_| restore())
    }

    /// The characters that were typed since the last call. Never waits. Keys that are not
    /// characters are left out.
    ///
    /// crossterm's own reader (0.29) is not used: when a key arrives together with a change of the
    /// terminal's size, it returns that key only after the next one.
    ///
    /// # Errors
    /// Those of the terminal, or [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it was closed.
    pub(super) fn keys(&self) -> io::Result<Vec<u8>> {
        let stdin = io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        let mut keys = [0; 64];
        if !matches!(poll(&mut ready, Some(&Timespec::default())), Ok(1..)) {
            return Ok(Vec::new());
        }
        match rustix::io::read(&stdin, &mut keys)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if keys[0] == ESCAPE => Ok(Vec::new()),
            length => Ok(keys[..length].to_vec()),
        }
    }

    /// Draws a frame, unless the terminal was [restored](restore()).
    ///
    /// # Errors
    /// Those of the terminal.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        if IS_TAKEN.load(Ordering::SeqCst) {
            self.screen.draw(draw)?;
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

//! The terminal, taken for a screen of ours and given back however the program ends: by itself, by a panic
//! of any thread, or by a signal (see [`signals`](super::signals)).

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

/// What the keys that are no characters begin with.
const ESCAPE: u8 = 0x1b;

/// Whether the terminal is taken.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether there is a terminal on which one can draw, and somebody at it.
pub(super) fn can_be_taken() -> bool {
    let can_draw = std::env::var_os("TERM").is_some_and(|kind| !kind.is_empty() && kind != "dumb");
    can_draw && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Gives the terminal back, if it is taken. It may be called at any time, by any thread.
pub(super) fn give_back() {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        // Nothing can be done for a terminal that is gone.
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    }
}

/// The terminal, while it is taken.
pub(super) struct Terminal {
    screen: ratatui::Terminal<CrosstermBackend<Stdout>>,
}

impl Terminal {
    /// Takes the terminal of standard output.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn take() -> io::Result<Self> {
        static PANICS: Once = Once::new();
        PANICS.call_once(|| {
            let say = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                say(panic);
            }));
        });
        IS_TAKEN.store(true, Ordering::SeqCst);
        let take = || {
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen)?;
            ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))
        };
        take().map(|screen| Self { screen }).inspect_err(|_| give_back())
    }

    /// The characters that were typed since somebody asked last. Never waits. What other keys than those of
    /// characters send is left out.
    ///
    /// This is not left to crossterm, whose reader (0.29) forgets a key that comes together with a change of
    /// the terminal's size until the next key comes.
    ///
    /// # Errors
    /// What the system says, or that nobody types there any more.
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

    /// Draws, unless somebody has given the terminal back.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        if IS_TAKEN.load(Ordering::SeqCst) {
            self.screen.draw(draw)?;
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

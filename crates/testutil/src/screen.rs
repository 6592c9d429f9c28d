//! The program in a terminal, which tmux draws. tmux reports what is on the screen, and the state
//! in which the program leaves the terminal.

use super::sandbox::{Finished, Running, Sandbox};
use super::tools;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A program in a terminal. When the program has ended, its status and the state of the terminal
/// are printed there.
pub struct Screen {
    /// The run. Its program is a child of tmux: [`Running::program_in_terminal`].
    pub running: Running,
    socket: PathBuf,
    patience: Duration,
}

impl Screen {
    /// Starts the program in a terminal of so many columns and lines. Each [`wait`](Self::wait)
    /// takes at most `patience`.
    pub fn start(sandbox: Sandbox, [columns, lines]: [u16; 2], patience: Duration, args: &[&str]) -> Self {
        let socket = sandbox.cwd().join("tmux");
        let new = ["tmux", "-u", "-S", socket.to_str().unwrap(), "-f", "/dev/null", "new-session", "-d"];
        let size = ["-x".to_owned(), columns.to_string(), "-y".to_owned(), lines.to_string()];
        let script = r#""$0" "$@"; echo "ended with $?"; stty -a; exec sleep 1000"#;
        let wrapper = new.map(str::to_owned).into_iter().chain(size);
        let wrapper = wrapper.chain(["sh", "-c", script].map(str::to_owned));
        let running = sandbox.wrapper(wrapper).start(args);
        Self { running, socket, patience }
    }

    /// Runs a command of tmux.
    pub fn tmux(&self, args: &[&str]) -> String {
        let socket = ["-S", self.socket.to_str().unwrap()];
        String::from_utf8(tools::run("tmux", socket.iter().chain(args))).unwrap()
    }

    /// Presses keys.
    pub fn keys(&self, keys: &str) {
        self.tmux(&["send-keys", keys]);
    }

    /// The text on the screen.
    pub fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The text on the screen, with the sequences that set colours and attributes.
    pub fn styled(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Waits until the text on the screen satisfies `reached`, and returns it.
    #[track_caller]
    pub fn wait(&self, what: &str, reached: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        // tmux may not have started yet.
        while !self.socket.exists() {
            assert!(began.elapsed() < self.patience, "tmux does not start");
            sleep(Duration::from_millis(20));
        }
        loop {
            let text = self.text();
            if reached(&text) {
                return text;
            }
            assert!(began.elapsed() < self.patience, "not there: {what}\n{text}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of the program, and checks that the terminal is in its original state.
    #[track_caller]
    pub fn end(self, status: &str) -> (String, Finished) {
        let ended = format!("ended with {status}\n");
        let text = self.wait(&ended, |text| text.contains(&ended) && text.contains("-extproc"));
        for setting in [" icanon ", " echo ", " isig ", " opost "] {
            assert!(text.replace('\n', " ").contains(setting), "the terminal is not what it was: {text}");
        }
        let state = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag} #{pane_title}"]);
        assert!(state.starts_with("0 1 ") && !state.contains("stolen"), "{state}");
        self.tmux(&["kill-server"]);
        (text, self.running.finish())
    }
}

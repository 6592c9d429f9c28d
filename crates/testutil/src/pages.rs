//! Runs the examples on the pages of the documentation as a reader would run them.
//!
//! A block of ```` ```console ```` holds commands, each after `$ ` and followed by its standard
//! output. A command continues on lines that begin with `> `. A line `…` in the output stands for
//! any number of lines. These comments may precede a block:
//!
//! - `<!-- not run: REASON -->`: the block needs an appliance, a network or the like. - `<!--
//! setup`, commands, `-->`: these commands run first. The reader does not see them.
//!
//! [`Page::check_with_appliance`] runs a block that has both comments and whose reason is that it
//! `needs an appliance`.
//!
//! All blocks of a page run in one directory, which is at first a copy of `tests/questions` and
//! `tests/formats`. With `VIRT_BMAP_BLESS=1` in the environment, the output of the commands is
//! written into the pages.

use crate::tools;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A page with examples.
pub struct Page {
    /// Its path from the root of the repository.
    pub path: &'static str,
    /// The number of blocks that are run. If more blocks of a page are marked, this number must be
    /// changed, so that a page cannot lose tested examples unnoticed.
    pub run: usize,
    /// The number of blocks that are marked as not run.
    pub not_run: usize,
    /// The programs that the commands need.
    pub tools: &'static [&'static str],
}

/// A block of commands.
#[derive(Debug, Default)]
struct Block {
    /// The number of the line after the opening fence, counted from 0.
    first: usize,
    /// The number of the line of the closing fence.
    end: usize,
    setup: Option<String>,
    is_run: bool,
    needs_appliance: bool,
}

/// The blocks of a page. Text between a comment and its block is an error, since the comment would
/// have no effect.
fn blocks(page: &str, lines: &[&str]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut setup, mut is_run, mut needs_appliance) = (None, true, false);
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        if line == "<!-- setup" {
            let length = lines[at..].iter().position(|line| *line == "-->").expect("a setup has an end");
            setup = Some(lines[at + 1..at + length].join("\n"));
            at += length;
        } else if let Some(reason) = line.strip_prefix("<!-- not run: ") {
            assert!(reason.len() > " -->".len() && reason.ends_with(" -->"), "{page}:{}: {line}", at + 1);
            is_run = false;
            needs_appliance = reason == "needs an appliance -->";
        } else if line == "```console" {
            let length = lines[at..].iter().position(|line| *line == "```").expect("a block has an end");
            let (first, end) = (at + 1, at + length);
            blocks.push(Block {
                first,
                end,
                needs_appliance: needs_appliance && setup.is_some(),
                setup: setup.take(),
                is_run: std::mem::replace(&mut is_run, true),
            });
            needs_appliance = false;
            at = end;
        } else {
            let is_between = line.is_empty() || (is_run && setup.is_none());
            assert!(is_between, "{page}:{}: a comment for a block stands above {line:?}", at + 1);
        }
        at += 1;
    }
    blocks
}

/// The commands of a block. For each, the lines of the page with the command, and its output.
fn commands<'a>(page: &str, lines: &[&'a str]) -> Vec<(String, Vec<&'a str>, Vec<&'a str>)> {
    let mut commands: Vec<(String, Vec<&str>, Vec<&str>)> = Vec::new();
    for &line in lines {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push((command.to_owned(), vec![line], Vec::new()));
            continue;
        }
        let (command, shown, output) =
            commands.last_mut().unwrap_or_else(|| panic!("{page}: a block begins with {line:?}"));
        match line.strip_prefix("> ") {
            Some(more) if output.is_empty() => {
                *command = format!("{command}\n{more}");
                shown.push(line);
            }
            _ => output.push(line),
        }
    }
    commands
}

/// Runs a command line in a shell that has the program in its `PATH`.
fn shell(program: &Path, dir: &Path, line: &str) -> Output {
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-ec", line]).current_dir(dir).env("PATH", path).output().unwrap()
}

/// Whether the printed lines match the page, on which `…` stands for any number of lines.
fn fits(shown: &[&str], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), None) => fits(rest, printed),
        (Some((&"…", rest)), Some((_, later))) => fits(rest, printed) || fits(shown, later),
        (Some((line, rest)), Some((other, later))) => line == other && fits(rest, later),
        _ => false,
    }
}

fn push_lines(text: &mut String, lines: &[&str]) {
    lines.iter().for_each(|line| *text += &format!("{line}\n"));
}

impl Page {
    /// Runs the blocks that are not marked, and compares the output with the page. `root` is the
    /// directory of the repository. `program` is what runs as `virt-bmap-rs`.
    pub fn check(&self, root: &Path, program: &Path) {
        self.check_blocks(root, program, |block| block.is_run);
    }

    /// The same for blocks that need an appliance and have a setup.
    pub fn check_with_appliance(&self, root: &Path, program: &Path) {
        self.check_blocks(root, program, |block| block.needs_appliance);
    }

    fn check_blocks(&self, root: &Path, program: &Path, is_wanted: impl Fn(&Block) -> bool) {
        let path = self.path;
        if !tools::installed(self.tools) {
            return;
        }
        let file = root.join(path);
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let dir = tempfile::tempdir().unwrap();
        for samples in ["tests/questions", "tests/formats"] {
            for sample in fs::read_dir(root.join(samples)).unwrap() {
                let sample = sample.unwrap();
                if sample.path().is_file() {
                    fs::copy(sample.path(), dir.path().join(sample.file_name())).unwrap();
                }
            }
        }
        let blocks = blocks(path, &lines);
        let mut blessed = String::new();
        let mut copied = 0;
        let mut wrong = String::new();
        for block in &blocks {
            let commands = commands(path, &lines[block.first..block.end]);
            assert!(!commands.is_empty(), "{path}:{}: an empty block", block.first);
            if !is_wanted(block) {
                continue;
            }
            if let Some(setup) = &block.setup {
                let output = shell(program, dir.path(), setup);
                assert!(
                    output.status.success(),
                    "{path}: {setup}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            push_lines(&mut blessed, &lines[copied..block.first]);
            for (command, shown, expected) in commands {
                let output = shell(program, dir.path(), &command);
                let printed = String::from_utf8(output.stdout).unwrap();
                // An empty line before the next command does not matter.
                let printed: Vec<&str> = printed.trim_end_matches('\n').lines().collect();
                let is_right = fits(&expected, &printed);
                if !is_right {
                    wrong += &format!(
                        "{path}:{}: {command}\n--- shown\n{}\n--- printed\n{}\n{}\n",
                        block.first,
                        expected.join("\n"),
                        printed.join("\n"),
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
                push_lines(&mut blessed, &shown);
                push_lines(&mut blessed, if is_right { &expected } else { &printed });
            }
            copied = block.end;
        }
        push_lines(&mut blessed, &lines[copied..]);
        if std::env::var_os("VIRT_BMAP_BLESS").is_some() {
            fs::write(&file, blessed).unwrap();
        } else {
            assert!(wrong.is_empty(), "{wrong}VIRT_BMAP_BLESS=1 puts what was printed into the page");
        }
        let run = blocks.iter().filter(|block| block.is_run).count();
        assert_eq!((run, blocks.len() - run), (self.run, self.not_run), "{path}: blocks run and not run");
    }
}

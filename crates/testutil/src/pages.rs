//! Runs the commands on the pages of the documentation as a reader would run them.
//!
//! Two kinds of blocks have commands:
//!
//! - ```` ```console ````: commands, each after `$ ` and followed by its standard output, which
//!   must be what the command prints. A command continues on lines that begin with `> `. A line `…`
//!   in the output stands for any number of lines, and `9.9 s` for any time.
//! - ```` ```sh ````: a script, which must succeed. Its output is not shown.
//!
//! Words after the language say what is special about a block:
//!
//! - `needs=WHAT`: it needs something that not every machine has ([`NEEDS`]), and is not run. If
//!   that is an appliance, [`Page::check_with_appliance`] runs it.
//! - `tested=FILE`: it is not run as it is, but the tests in this file run its commands.
//! - `stderr`: standard error is part of the output, without the lines that only the first run on a
//!   machine or a slow one prints.
//! - `varies`: the guest is made of this machine's files, so that any number may stand in place of
//!   one on the page.
//!
//! The comment `<!-- setup`, commands, `-->` may precede a block. These commands run first. The
//! reader does not see them.
//!
//! All blocks of a page run in one directory, which is at first a copy of `tests/questions` and
//! `tests/formats`. In output it is called `/home/you`. With `VIRT_BMAP_BLESS=1` in the environment, the output of the commands is
//! written into the pages.

use crate::{formats, tools};
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

/// What a block may need that the tests without an appliance do not have.
pub const NEEDS: [&str; 5] = ["appliance", "disk", "duckdb", "registry", "storage"];

/// How a block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Commands with their output.
    Console,
    /// A script.
    Script,
}

/// A block of commands.
#[derive(Debug)]
struct Block {
    form: Form,
    /// The number of the line after the opening fence, counted from 0.
    first: usize,
    /// The number of the line of the closing fence.
    end: usize,
    setup: Option<String>,
    /// Whether it needs nothing, and is as the tests run it.
    is_run: bool,
    needs_appliance: bool,
    shows_stderr: bool,
    varies: bool,
}

impl Block {
    /// The block that begins with this line, if it is an opening fence of one with commands.
    fn of_fence(root: &Path, page: &str, line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("```")?.split(' ');
        let form = match words.next()? {
            "console" => Form::Console,
            "sh" => Form::Script,
            _ => return None,
        };
        let (first, end, setup) = (0, 0, None);
        let mut block = Self {
            form,
            first,
            end,
            setup,
            is_run: true,
            needs_appliance: false,
            shows_stderr: false,
            varies: false,
        };
        for word in words {
            match word.split_once('=') {
                Some(("needs", what)) => {
                    assert!(NEEDS.contains(&what), "{page}: {line}: the words are {NEEDS:?}");
                    block.is_run = false;
                    block.needs_appliance = what == "appliance";
                }
                Some(("tested", file)) => {
                    let tests = fs::read_to_string(root.join(file)).unwrap_or_default();
                    let name = page.rsplit('/').next().unwrap_or_default();
                    assert!(tests.contains(name), "{page}: {line}: {file} does not speak of {name}");
                    block.is_run = false;
                }
                None if word == "stderr" => block.shows_stderr = true,
                None if word == "varies" => block.varies = true,
                _ => panic!("{page}: {line}: what is {word}?"),
            }
        }
        Some(block)
    }
}

/// The blocks of a page. Text between a setup and its block is an error, since the setup would have
/// no effect.
fn blocks(root: &Path, page: &str, lines: &[&str]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut setup: Option<String> = None;
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let end = |fence| lines[at..].iter().position(|line| *line == fence).expect("a block has an end");
        if line == "<!-- setup" {
            let length = end("-->");
            setup = Some(lines[at + 1..at + length].join("\n"));
            at += length;
        } else if let Some(block) = Block::of_fence(root, page, line) {
            let length = end("```");
            blocks.push(Block { first: at + 1, end: at + length, setup: setup.take(), ..block });
            at += length;
        } else {
            let is_between = line.is_empty() || setup.is_none();
            assert!(is_between, "{page}:{}: a setup stands above {line:?}", at + 1);
            if line.starts_with("```") {
                at += 1;
                at += lines[at..].iter().position(|line| *line == "```").expect("a block has an end");
            }
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

/// Whether every run prints this line of progress, or whatever else it is.
fn is_usual(line: &str) -> bool {
    let is_of_first_run =
        ["building the appliance", "saving the state of the appliance"].iter().any(|it| line.starts_with(it));
    !(is_of_first_run || line.ends_with(" s so far") || line.ends_with('%'))
}

/// The line with `… s` in place of each time such as `9.9 s`.
fn without_times(line: &str) -> String {
    let is_time = |word: &str| word.contains('.') && word.parse::<f64>().is_ok();
    let mut words: Vec<&str> = line.split(' ').collect();
    for at in 1..words.len() {
        if words[at].trim_end_matches(',') == "s" && is_time(words[at - 1]) {
            words[at - 1] = "…";
        }
    }
    words.join(" ")
}

/// The line with `#` in place of each number, decimal or hexadecimal, and with one space in place of
/// several, since columns are as wide as their numbers.
fn without_numbers(line: &str) -> String {
    let is_number = |word: &str| {
        let word = word.trim_end_matches(',');
        word.starts_with(|c: char| c.is_ascii_hexdigit())
            && word.contains(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_hexdigit() || ".,".contains(c))
    };
    let words = line.split_whitespace().map(|word| if is_number(word) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether the printed lines match the page, on which `…` stands for any number of lines.
fn fits(shown: &[&str], printed: &[&str], varies: bool) -> bool {
    let plain = |line: &str| if varies { without_numbers(line) } else { without_times(line) };
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), None) => fits(rest, printed, varies),
        (Some((&"…", rest)), Some((_, later))) => fits(rest, printed, varies) || fits(shown, later, varies),
        (Some((line, rest)), Some((other, later))) => {
            plain(line) == plain(other) && fits(rest, later, varies)
        }
        _ => false,
    }
}

fn push_lines(text: &mut String, lines: &[&str]) {
    lines.iter().for_each(|line| *text += &format!("{line}\n"));
}

impl Page {
    /// Runs the blocks that need nothing, and compares the output with the page. `root` is the
    /// directory of the repository. `program` is what runs as `virt-bmap-rs`.
    pub fn check(&self, root: &Path, program: &Path) {
        self.check_blocks(root, program, &[], |block| block.is_run);
    }

    /// The same with the blocks that need an appliance. The directory has copies of `images`, too.
    pub fn check_with_appliance(&self, root: &Path, program: &Path, images: &[&Path]) {
        self.check_blocks(root, program, images, |block| block.is_run || block.needs_appliance);
    }

    fn check_blocks(
        &self,
        root: &Path,
        program: &Path,
        images: &[&Path],
        is_wanted: impl Fn(&Block) -> bool,
    ) {
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
        for image in images {
            formats::copy(image, &dir.path().join(image.file_name().unwrap()));
        }
        let succeed = |script: &str| {
            let output = shell(program, dir.path(), script);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{path}: {script}: {said}");
        };
        let blocks = blocks(root, path, &lines);
        let mut blessed = String::new();
        let mut copied = 0;
        let mut wrong = String::new();
        for block in &blocks {
            let shown = &lines[block.first..block.end];
            assert!(!shown.is_empty(), "{path}:{}: an empty block", block.first);
            if block.form == Form::Console {
                // Also looks at the blocks that are not run.
                commands(path, shown);
            }
            if !is_wanted(block) {
                continue;
            }
            if let Some(setup) = &block.setup {
                succeed(setup);
            }
            if block.form == Form::Script {
                succeed(&shown.join("\n"));
                continue;
            }
            push_lines(&mut blessed, &lines[copied..block.first]);
            for (command, shown, expected) in commands(path, shown) {
                let line = if block.shows_stderr { format!("exec 2>&1; {command}") } else { command.clone() };
                let output = shell(program, dir.path(), &line);
                let printed = String::from_utf8(output.stdout).unwrap();
                let printed = printed.replace(dir.path().to_str().unwrap(), "/home/you");
                // An empty line before the next command does not matter.
                let printed: Vec<&str> = printed.trim_end_matches('\n').lines().collect();
                let is_usual = |line: &&str| !block.shows_stderr || is_usual(line);
                let printed: Vec<&str> = printed.into_iter().filter(is_usual).collect();
                let is_right = fits(&expected, &printed, block.varies);
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

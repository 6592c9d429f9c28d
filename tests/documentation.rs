//! The examples on the pages, run as their reader would run them.
//!
//! A block of ```` ```console ```` holds commands, after `$ `, each with what it prints on standard
//! output. A command continues on lines that begin with `> `, and a line `…` in its output stands for
//! any number of lines. These comments may stand above a block:
//!
//! - `<!-- not run: REASON -->`: the block needs an appliance, a network or the like.
//! - `<!-- setup`, commands, `-->`: run first, and not shown to the reader.
//!
//! A block with both that `needs an appliance` is run by `cargo test --test documentation -- --ignored`.
//!
//! All blocks of a page run in one directory, which begins as a copy of `tests/questions` and `tests/formats`.
//! `VIRT_BMAP_BLESS=1 cargo test --test documentation` puts what the commands print into the pages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_virt-bmap-rs");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A page with examples.
struct Page {
    /// From the root of the repository.
    path: &'static str,
    /// Number of blocks that are run, and of those that are marked. If the marks on a page increase, this has to be
    /// changed, so that a page does not quietly lose its tested examples.
    run: usize,
    not_run: usize,
    /// Programs that the commands need.
    tools: &'static [&'static str],
}

/// Every page that has a block of `console`.
const PAGES: [Page; 10] = [
    Page { path: "README.md", run: 1, not_run: 1, tools: &[] },
    Page { path: "docs/exactness.md", run: 1, not_run: 0, tools: &["jq"] },
    Page { path: "docs/fleet.md", run: 1, not_run: 1, tools: &["jq"] },
    Page { path: "docs/formats.md", run: 5, not_run: 1, tools: &["jq", "zstdcat"] },
    Page { path: "docs/map-format.md", run: 5, not_run: 0, tools: &["gawk", "awk", "grep"] },
    Page { path: "docs/mapping.md", run: 0, not_run: 1, tools: &[] },
    Page { path: "docs/questions.md", run: 7, not_run: 0, tools: &["qemu-img", "qemu-io", "qemu-nbd"] },
    Page { path: "docs/report.md", run: 1, not_run: 0, tools: &[] },
    Page { path: "docs/trace.md", run: 1, not_run: 0, tools: &["qemu-io"] },
    Page { path: "docs/update.md", run: 1, not_run: 1, tools: &[] },
];

/// Where the options of each subcommand are described; the first is mapping itself.
const OPTIONS: [(&str, &str); 11] = [
    ("", "docs/mapping.md"),
    ("changed", "docs/questions.md"),
    ("convert", "docs/formats.md"),
    ("damaged", "docs/questions.md"),
    ("diff", "docs/questions.md"),
    ("fleet", "docs/fleet.md"),
    ("list", "docs/questions.md"),
    ("lookup", "docs/questions.md"),
    ("report", "docs/report.md"),
    ("trace", "docs/trace.md"),
    ("update", "docs/update.md"),
];

/// A block of commands.
#[derive(Debug, Default)]
struct Block {
    /// Number of the line after the opening fence, from 0.
    first: usize,
    /// Number of the closing fence.
    end: usize,
    setup: Option<String>,
    is_run: bool,
    needs_appliance: bool,
}

/// The blocks of a page. Text between a comment and its block is an error: the comment would be lost.
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

/// The commands of a block, each with the lines that show it and those that it prints.
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

/// Runs a command line as a shell does, which finds the program by its name.
fn shell(dir: &Path, line: &str) -> Output {
    let path =
        format!("{}:{}", Path::new(PROGRAM).parent().unwrap().display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-ec", line]).current_dir(dir).env("PATH", path).output().unwrap()
}

/// Whether lines were printed as they are shown, where `…` stands for any number of them.
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

/// Runs what is to be run on a page, and compares what is printed with what the page shows.
fn check(path: &str) {
    check_blocks(path, |block| block.is_run);
}

/// The same for those blocks that are to be run now.
fn check_blocks(path: &str, is_wanted: impl Fn(&Block) -> bool) {
    let page = PAGES.iter().find(|page| page.path == path).expect("the page is listed");
    if !common::tools::installed(page.tools) {
        return;
    }
    let file = Path::new(ROOT).join(path);
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let dir = tempfile::tempdir().unwrap();
    for samples in ["tests/questions", "tests/formats"] {
        for sample in fs::read_dir(Path::new(ROOT).join(samples)).unwrap() {
            let sample = sample.unwrap();
            fs::copy(sample.path(), dir.path().join(sample.file_name())).unwrap();
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
            let output = shell(dir.path(), setup);
            assert!(output.status.success(), "{path}: {setup}: {}", String::from_utf8_lossy(&output.stderr));
        }
        push_lines(&mut blessed, &lines[copied..block.first]);
        for (command, shown, expected) in commands {
            let output = shell(dir.path(), &command);
            let printed = String::from_utf8(output.stdout).unwrap();
            // An empty line before the next command tells nobody anything.
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
    assert_eq!((run, blocks.len() - run), (page.run, page.not_run), "{path}: blocks run and not run");
}

#[test]
fn the_readme() {
    check("README.md");
}

#[test]
fn exactness() {
    check("docs/exactness.md");
}

#[test]
fn fleet() {
    check("docs/fleet.md");
}

#[test]
fn formats() {
    check("docs/formats.md");
}

#[test]
fn map_format() {
    check("docs/map-format.md");
}

#[test]
fn mapping() {
    check("docs/mapping.md");
}

#[test]
fn questions() {
    check("docs/questions.md");
}

#[test]
fn report() {
    check("docs/report.md");
}

#[test]
fn trace() {
    check("docs/trace.md");
}

#[test]
fn update() {
    check("docs/update.md");
}

#[test]
#[ignore = "starts an appliance"]
fn with_an_appliance() {
    if common::tools::installed(&["mke2fs", "debugfs"]) {
        check_blocks("docs/update.md", |block| block.needs_appliance);
    }
}

/// The pages, from the root of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![Path::new(ROOT).join("README.md")];
    let mut directories = vec![Path::new(ROOT).join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|suffix| suffix == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// A new page with examples has to be listed, and so has its test.
#[test]
fn no_page_is_forgotten() {
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap();
        if text.lines().any(|line| line == "```console") {
            assert!(PAGES.iter().any(|page| page.path == name), "{name} is not in PAGES");
        }
    }
    let tests = include_str!("documentation.rs");
    for page in &PAGES {
        assert!(tests.contains(&format!("    check(\"{}\");", page.path)), "{} has no test", page.path);
    }
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn no_link_is_broken() {
    let (mut found, mut broken) = (0, Vec::new());
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            found += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_there = target.exists()
                && anchor
                    .is_none_or(|anchor| anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(found >= 60, "{found}");
}

/// The long options that the help of a command shows.
fn options(command: &[&str]) -> BTreeSet<String> {
    let output = Command::new(PROGRAM).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    lines.flat_map(long_options).collect()
}

/// The long options in a line.
fn long_options(line: &str) -> Vec<String> {
    let words = line.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
    words.filter(is_option).map(|word| word.trim_end_matches('-').to_owned()).collect()
}

/// The options of a command and of its subcommands.
fn all_options(command: &str) -> BTreeSet<String> {
    let mut all = options(if command.is_empty() { &[] } else { std::slice::from_ref(&command) });
    if command == "fleet" {
        for part in ["plan", "run", "status", "merge"] {
            all.extend(options(&["fleet", part]));
        }
    }
    all
}

#[test]
fn each_option_is_on_its_page() {
    let shared = all_options("");
    let mut missing = Vec::new();
    for (command, page) in OPTIONS {
        let text = fs::read_to_string(Path::new(ROOT).join(page)).unwrap();
        let shown: BTreeSet<String> = long_options(&text).into_iter().collect();
        let own = all_options(command);
        let general = ["--help", "--version"];
        let missed = own.iter().filter(|option| {
            !shown.contains(*option)
                && !general.contains(&option.as_str())
                && (command.is_empty() || !shared.contains(*option))
        });
        missing.extend(missed.map(|option| format!("{page} lacks {option} of {command}")));
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The command lines on the pages: of blocks of code, and between backquotes.
#[test]
fn no_page_shows_an_option_that_is_not_there() {
    let known: BTreeMap<&str, BTreeSet<String>> =
        OPTIONS.iter().map(|(command, _)| (*command, all_options(command))).collect();
    let (mut found, mut wrong) = (0, Vec::new());
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap().replace("\\\n", " ");
        for line in text.lines().flat_map(|line| line.split('`')) {
            let Some((_, line)) = line.split_once("virt-bmap-rs ") else { continue };
            let first = line.split(' ').next().unwrap_or_default();
            let command = if known.contains_key(first) { first } else { "" };
            // Options behind a pipe or in quotes belong to other programs.
            let ours = line.split(['|', ';', '\'', '"', '>']).next().unwrap_or_default();
            for option in long_options(ours) {
                found += 1;
                if !known[command].contains(&option) && option != "--help" {
                    wrong.push(format!("{}: {option} in {line}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(found >= 30, "{found}");
}

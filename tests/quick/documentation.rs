//! Tests of the pages of the documentation. Their examples must work, their links must lead
//! somewhere, and they must name every option.
//!
//! [`virt_bmap_testutil::pages`] explains how examples are written and renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use virt_bmap_testutil::pages::Page;
use virt_bmap_testutil::places::built;

const PROGRAM: &str = env!("CARGO_BIN_EXE_virt-bmap-rs");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Every page that has a block of `console` or `sh`.
const PAGES: [Page; 19] = [
    Page { path: "README.md", run: 1, not_run: 1, tools: &[] },
    Page { path: "docs/appliance.md", run: 0, not_run: 2, tools: &[] },
    Page { path: "docs/exactness.md", run: 3, not_run: 1, tools: &["jq"] },
    Page { path: "docs/fleet.md", run: 1, not_run: 3, tools: &["jq"] },
    Page { path: "docs/formats.md", run: 6, not_run: 2, tools: &["jq", "zstdcat"] },
    Page { path: "docs/getting-started.md", run: 2, not_run: 5, tools: &["mke2fs"] },
    Page { path: "docs/live.md", run: 0, not_run: 3, tools: &[] },
    Page { path: "docs/map-format.md", run: 5, not_run: 0, tools: &["gawk", "awk", "grep"] },
    Page { path: "docs/mapping.md", run: 0, not_run: 1, tools: &[] },
    Page { path: "docs/nbd.md", run: 2, not_run: 1, tools: &["nbdinfo", "qemu-io"] },
    Page { path: "docs/operations.md", run: 0, not_run: 5, tools: &[] },
    Page { path: "docs/packages.md", run: 0, not_run: 4, tools: &[] },
    Page { path: "docs/python.md", run: 0, not_run: 1, tools: &[] },
    Page { path: "docs/questions.md", run: 10, not_run: 1, tools: &["qemu-img", "qemu-io", "qemu-nbd"] },
    Page { path: "docs/report.md", run: 1, not_run: 0, tools: &[] },
    Page { path: "docs/sources.md", run: 1, not_run: 11, tools: &["ewfacquire"] },
    Page { path: "docs/ten-questions.md", run: 10, not_run: 0, tools: &["qemu-img", "qemu-io"] },
    Page { path: "docs/trace.md", run: 1, not_run: 3, tools: &["qemu-io"] },
    Page { path: "docs/update.md", run: 1, not_run: 1, tools: &[] },
];

/// How links lead out of `docs`: the site has no other pages.
const REPOSITORY: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/");

/// The page that describes the options of each subcommand. The first row is mapping itself.
const OPTIONS: [(&str, &str); 14] = [
    ("", "docs/mapping.md"),
    ("appliance", "docs/appliance.md"),
    ("changed", "docs/questions.md"),
    ("convert", "docs/formats.md"),
    ("damaged", "docs/questions.md"),
    ("diff", "docs/questions.md"),
    ("fleet", "docs/fleet.md"),
    ("list", "docs/questions.md"),
    ("lookup", "docs/questions.md"),
    ("operations", "docs/operations.md"),
    ("report", "docs/report.md"),
    ("trace", "docs/trace.md"),
    ("update", "docs/update.md"),
    ("verify", "docs/sources.md"),
];

/// Runs the blocks of a page that can be run.
fn check(path: &str) {
    let page = PAGES.iter().find(|page| page.path == path).expect("the page is listed");
    page.check(Path::new(ROOT), Path::new(PROGRAM));
}

#[test]
fn the_readme() {
    check("README.md");
}

#[test]
fn appliance() {
    check("docs/appliance.md");
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
fn getting_started() {
    check("docs/getting-started.md");
}

#[test]
fn live() {
    check("docs/live.md");
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
fn nbd() {
    // Its commands use an example.
    built("examples/serve_file");
    check("docs/nbd.md");
}

#[test]
fn operations() {
    check("docs/operations.md");
}

#[test]
fn packages() {
    check("docs/packages.md");
}

#[test]
fn python() {
    check("docs/python.md");
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
fn sources() {
    check("docs/sources.md");
}

#[test]
fn ten_questions() {
    check("docs/ten-questions.md");
}

#[test]
fn trace() {
    check("docs/trace.md");
}

#[test]
fn update() {
    check("docs/update.md");
}

/// The paths of all pages.
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

/// Fails if a page has examples but is not in `PAGES` or has no test.
#[test]
fn no_page_is_forgotten() {
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap();
        if text.lines().any(|line| line.starts_with("```console") || line.starts_with("```sh")) {
            assert!(PAGES.iter().any(|page| page.path == name), "{name} is not in PAGES");
        }
    }
    let tests = include_str!("documentation.rs");
    for page in &PAGES {
        assert!(tests.contains(&format!("    check(\"{}\");", page.path)), "{} has no test", page.path);
    }
}

/// A command that no test sees could be wrong: one in an indented block or in a block of another
/// language. What shows the form of a command has names of arguments in capitals.
#[test]
fn no_command_is_outside_of_a_block_for_commands() {
    let is_form = |line: &str| {
        line.split([' ', '[', ']', '.', '|'])
            .any(|word| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase()))
    };
    let is_command =
        |line: &str| line.starts_with("$ ") || line.starts_with("virt-bmap-rs ") && !is_form(line);
    let mut wrong = Vec::new();
    for path in pages().into_iter().filter(|path| path.starts_with(Path::new(ROOT).join("docs"))) {
        let text = fs::read_to_string(&path).unwrap();
        let (mut language, mut above, mut is_comment) = (None, "", false);
        for line in text.lines() {
            is_comment = line.starts_with("<!--") || is_comment && above != "-->";
            match (line.trim_start().strip_prefix("```"), language) {
                (Some(info), None) => language = Some(info.split(' ').next().unwrap_or_default()),
                (Some(_), Some(_)) => language = None,
                (None, None) if above.is_empty() && line.starts_with("    ") && !is_comment => {
                    wrong.push(format!("{}: an indented block: {line}", path.display()));
                }
                (None, Some(language)) if !matches!(language, "console" | "sh") && is_command(line) => {
                    wrong.push(format!("{}: a command in `{language}`: {line}", path.display()));
                }
                _ => {}
            }
            above = line;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_site_has_each_page() {
    let docs = Path::new(ROOT).join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    for page in pages() {
        let Some(page) = page.strip_prefix(&docs).ok().and_then(Path::to_str) else { continue };
        let times = summary.matches(&format!("]({page})")).count();
        assert_eq!(times, usize::from(page != "SUMMARY.md"), "{page} in docs/SUMMARY.md");
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
    let docs = Path::new(ROOT).join("docs");
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (of_repository, directory) = match link.strip_prefix(REPOSITORY) {
                Some(link) => (link, Path::new(ROOT)),
                None if link.contains("://") || link.contains(char::is_whitespace) => continue,
                None => (link, path.parent().unwrap()),
            };
            found += 1;
            let (file, anchor) = of_repository
                .split_once('#')
                .map_or((of_repository, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { directory.join(file) };
            let leaves_the_site = link == of_repository
                && path.starts_with(&docs)
                && !target.canonicalize().is_ok_and(|target| target.starts_with(&docs));
            let is_there = target.exists()
                && !leaves_the_site
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

/// The long options that a line names.
fn long_options(line: &str) -> Vec<String> {
    let words = line.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
    words.filter(is_option).map(|word| word.trim_end_matches('-').to_owned()).collect()
}

/// The options of a command and of its subcommands.
fn all_options(command: &str) -> BTreeSet<String> {
    let mut all = options(if command.is_empty() { &[] } else { std::slice::from_ref(&command) });
    let parts: &[&str] = match command {
        "appliance" => &["build", "status", "remove"],
        "fleet" => &["plan", "run", "status", "merge"],
        _ => &[],
    };
    for part in parts {
        all.extend(options(&[command, part]));
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

#[test]
fn each_help_has_examples_and_names_its_page() {
    for (command, page) in OPTIONS {
        let command: Vec<&str> = Some(command).filter(|command| !command.is_empty()).into_iter().collect();
        let output = Command::new(PROGRAM).args(&command).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{command:?}: {help}"));
        let start = format!("  virt-bmap-rs {}", command.first().unwrap_or(&""));
        assert!(examples.starts_with(start.trim_end()), "{command:?}: {examples}");
        let url = format!("{REPOSITORY}{page}");
        assert!(help.lines().any(|line| line.ends_with(&url) || line.contains(&format!("{url}#"))), "{help}");
    }
}

/// The command lines on the pages are in blocks of code and between backquotes.
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

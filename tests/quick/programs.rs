//! All test files must belong to a test program. A file that belongs to none would never be
//! compiled or run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Rust files below a directory.
fn below(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path);
        }
    }
}

/// The names of modules that are declared in `source` and are files, each with its `#[path]` if it
/// has one. Comments and modules in braces are no such declarations.
fn declared(source: &str) -> Vec<(String, Option<String>)> {
    let mut modules = Vec::new();
    let mut path = None;
    for line in source.lines().map(str::trim) {
        if let Some(quoted) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
            path = Some(quoted.to_owned());
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = match words[..] {
            ["mod", name] => name.strip_suffix(';'),
            [visibility, "mod", name] if visibility.starts_with("pub") => name.strip_suffix(';'),
            _ => None,
        };
        if let Some(name) = name {
            modules.push((name.to_owned(), path.take()));
        }
    }
    modules
}

/// Adds a file and all files that it declares. `directory` is where its modules are.
fn reach(file: &Path, directory: &Path, reached: &mut BTreeSet<PathBuf>) {
    reached.insert(file.to_owned());
    for (name, path) in declared(&fs::read_to_string(file).unwrap()) {
        if let Some(path) = path {
            // A file that is declared by its path belongs to other code, and has no modules.
            reached.insert(file.parent().unwrap().join(path));
            continue;
        }
        let (alone, folder) = (directory.join(format!("{name}.rs")), directory.join(&name));
        let file = if alone.exists() { alone } else { folder.join("mod.rs") };
        reach(&file, &folder, reached);
    }
}

/// The names of the programs in a directory: its directories with a `main.rs`, and its files.
fn programs(tests: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(tests).unwrap().map(|entry| entry.unwrap().path());
    let is_file = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    let programs = entries.filter(|path| is_file(path) || path.join("main.rs").exists());
    programs.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

/// The directories `tests` of the packages in `crates`.
fn tests_of_crates() -> Vec<PathBuf> {
    let crates = fs::read_dir(Path::new(ROOT).join("crates")).unwrap();
    crates.map(|entry| entry.unwrap().path().join("tests")).filter(|tests| tests.exists()).collect()
}

#[test]
fn every_test_file_is_in_a_program() {
    let tests = Path::new(ROOT).join("tests");
    let (mut files, mut reached) = (BTreeSet::new(), BTreeSet::new());
    below(&tests, &mut files);
    for program in programs(&tests) {
        reach(&tests.join(&program).join("main.rs"), &tests.join(&program), &mut reached);
    }
    let left_out: Vec<_> = files.difference(&reached).collect();
    assert!(
        left_out.is_empty(),
        "these files are in no test program; declare them by `mod` in a tests/*/main.rs: {left_out:#?}"
    );
    // If a file is missing, the declarations were not read as the compiler reads them.
    let missing: Vec<_> = reached.iter().filter(|file| !file.exists()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(reached.contains(&tests.join("quick/programs.rs")), "{reached:#?}");
}

/// A program that no target of the Makefile runs is useless, in whichever package it is.
#[test]
fn every_program_is_run_by_make_check() {
    let makefile = fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
    let of_crates = tests_of_crates();
    assert!(!of_crates.is_empty());
    let programs = [Path::new(ROOT).join("tests")]
        .iter()
        .chain(&of_crates)
        .flat_map(|tests| programs(tests))
        .collect::<BTreeSet<_>>();
    for program in programs {
        let run = format!("--test {program}");
        let is_run = makefile
            .lines()
            .skip_while(|line| !line.starts_with("check-all:"))
            .take_while(|line| !line.starts_with("build:"))
            .any(|line| {
                let lists = ["GUESTS := ", "QUICK := "].map(|list| line.strip_prefix(list));
                let mut listed = lists.into_iter().flatten().flat_map(|list| list.split(' '));
                line.contains(&run) || listed.any(|listed| listed == program)
            });
        assert!(is_run, "make check does not say {run}");
    }
}

#[test]
fn declarations_are_found() {
    let source =
        "mod a;\n// mod b;\npub(crate) mod c;\nmod d {\n#[path = \"../e.rs\"]\n    mod e;\n}\nmod f { }\n";
    let names: Vec<_> = declared(source).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "c", "e"]);
    assert_eq!(declared(source)[2].1.as_deref(), Some("../e.rs"));
}

//! Tests of the packages' metadata: which packages can be published, what they depend on, and the
//! name of the image for containers.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Packages that are useless without the rest of the repository.
const PRIVATE: [&str; 5] =
    ["virt-bmap-agent", "virt-bmap-agent-protocol", "virt-bmap-nbdkit", "virt-bmap-rs", "virt-bmap-testutil"];

/// The categories of crates.io (its `categories.toml`) that suit the packages.
const CATEGORIES: [&str; 8] = [
    "asynchronous",
    "command-line-utilities",
    "data-structures",
    "filesystem",
    "network-programming",
    "os::unix-apis",
    "parser-implementations",
    "virtualization",
];

/// The first line of a library whose documentation has its readme.
const README_IS_TESTED: &str = "#![doc = include_str!(\"../README.md\")]\n";

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of all crates that `package` is built from on this system.
fn dependencies(package: &str) -> BTreeSet<String> {
    let tree = cargo(&["tree", "-p", package, "-e", "normal,build", "--prefix", "none"]);
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn packages() -> Vec<Value> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn the_plugin_builds_without_libguestfs() {
    let names = dependencies("virt-bmap-nbdkit");
    assert!(names.contains("virt-bmap-trace"), "{names:?}");
    for banned in ["guestfs", "virt-bmap-rs", "virt-bmap-agent"] {
        assert!(!names.contains(banned), "{banned}");
    }
}

#[test]
fn the_map_needs_no_libguestfs_no_runtime_and_no_image() {
    let names = dependencies("virt-bmap-map");
    assert!(names.contains("virt-bmap-ranges"), "{names:?}");
    for banned in ["guestfs", "tokio", "nbd", "virt-bmap-image", "virt-bmap-nbd", "virt-bmap-child"] {
        assert!(!names.contains(banned), "{banned}");
    }
}

#[test]
fn the_server_knows_no_images() {
    let names = dependencies("virt-bmap-nbd");
    assert!(
        !names
            .iter()
            .any(|name| name == "guestfs" || name.starts_with("virt-bmap-") && name != "virt-bmap-nbd")
    );
}

#[test]
fn libraries_can_be_published_and_nothing_else_can() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let is_private = package["publish"].as_array().is_some_and(Vec::is_empty);
        assert_eq!(is_private, PRIVATE.contains(&name), "{name}: `publish`");
        assert!(package["description"].is_string(), "{name}: no description");
        if is_private {
            continue;
        }
        let directory = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        let readme = package["readme"].as_str().unwrap_or_else(|| panic!("{name}: no readme"));
        let readme =
            fs::read_to_string(directory.join(readme)).unwrap_or_else(|_| panic!("{name}: {readme}"));
        // As a part of the documentation, the example is a test.
        assert!(readme.contains("```rust\n"), "{name}: the readme has no example that runs");
        let library = fs::read_to_string(directory.join("src/lib.rs")).unwrap();
        assert!(library.starts_with(README_IS_TESTED), "{name}: the readme is not in the documentation");
        let targets = &package["metadata"]["docs"]["rs"]["targets"];
        assert_eq!(targets, &json!(["x86_64-unknown-linux-gnu"]), "{name}: targets of docs.rs");
        for text in ["LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(directory.join(text).is_file(), "{name}: {text} is missing");
        }
        for field in ["license", "repository"] {
            assert!(package[field].is_string(), "{name}: no {field}");
        }
        let keywords = package["keywords"].as_array().unwrap();
        assert!((1..=5).contains(&keywords.len()), "{name}: {} keywords", keywords.len());
        for keyword in keywords {
            assert!(keyword.as_str().unwrap().len() <= 20, "{name}: {keyword} is too long");
        }
        let categories = package["categories"].as_array().unwrap();
        assert!((1..=5).contains(&categories.len()), "{name}: {} categories", categories.len());
        for category in categories {
            assert!(CATEGORIES.contains(&category.as_str().unwrap()), "{name}: category {category}");
        }
        // A package with a dependency that has only a path, or is private, cannot be published.
        for dependency in package["dependencies"].as_array().unwrap() {
            let needs = dependency["name"].as_str().unwrap();
            if dependency["path"].is_string() && dependency["kind"] != "dev" {
                assert!(dependency["req"] != "*", "{name}: {needs} has no version");
                assert!(!PRIVATE.contains(&needs), "{name}: {needs} is not published");
            }
        }
    }
}

/// The words of a file of this repository.
fn words(path: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_kubernetes_job_uses_the_image_that_a_release_pushes() {
    let workflow = words(".github/workflows/release.yml");
    let pushed = workflow.iter().skip_while(|word| *word != "IMAGE:").nth(1).expect("the name of the image");
    let image = format!("{pushed}:{}", env!("CARGO_PKG_VERSION"));
    let job = words("examples/kubernetes/fleet.yaml");
    assert_eq!(job.iter().skip_while(|word| *word != "image:").nth(1), Some(&image));
    let page = words("docs/packages.md").join(" ");
    assert!(page.contains(&image), "docs/packages.md does not name {image}");
    let makefile = words("Makefile").join(" ");
    assert!(makefile.contains(&format!("IMAGE ?= {pushed} ")), "Makefile does not name {pushed}");
}

/// The Python package has a workspace of its own, and so a version of its own.
#[test]
fn the_python_package_has_the_same_version() {
    let python = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/Cargo.toml")).unwrap();
    assert!(python.contains(concat!("\nversion = \"", env!("CARGO_PKG_VERSION"), "\"\n")), "{python}");
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/Cargo.lock")).unwrap();
    let own = concat!("\nname = \"virt-bmap-python\"\nversion = \"", env!("CARGO_PKG_VERSION"), "\"\n");
    assert!(lock.contains(own), "python/Cargo.lock");
}

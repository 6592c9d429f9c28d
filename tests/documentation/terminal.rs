//! Mapping in a real terminal: the bars while a guest is read, and what follows the first map.

use std::path::Path;
use std::time::Duration;
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::screen::Screen;
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::{fixture, picture};

#[test]
fn bars_are_drawn_and_the_next_commands_named() {
    needs!("guestfish", "sfdisk", "tmux", "stty");
    let guest = fixture::guest().image.to_str().unwrap();
    let args = [guest, "--accel", "tcg", "-o", "guest.bmap"];
    let screen = Screen::start(Sandbox::new(), [100, 24], Duration::from_secs(250), &args);
    let is_read = |text: &str| text.contains("[4/4] reading") && text.contains('%');
    screen.wait("a bar", is_read);
    let styled = screen.styled();
    // The first run of all has two more lines.
    let is_usual = |line: &&str| {
        !["building the appliance", "saving the state"].iter().any(|words| line.contains(words))
    };
    let lines: Vec<_> = styled.lines().filter(is_usual).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/progress.svg");
    picture::check(&path, &lines.join("\n"));
    let (text, run) = screen.end("0");
    // Who maps a guest for the first time wants to know what to do with the map.
    for command in ["virt-bmap-rs lookup guest.bmap", "virt-bmap-rs report guest.bmap"] {
        assert!(text.contains(command), "{text}");
    }
    assert_eq!(run.files().iter().filter(|name| *name == "guest.bmap").count(), 1);
}

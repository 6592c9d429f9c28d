//! `virt-bmap-rs trace --top` in a real terminal, which tmux draws. tmux reports the text on the
//! screen and the state in which the program leaves the terminal. Needs no appliance, and in
//! place of the guest in docs/trace.md there is a client.

use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;
use virt_bmap_testutil::picture;
use virt_bmap_testutil::sandbox::Sandbox;
use virt_bmap_testutil::screen::Screen;
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::traced::{NBDSH, sandbox};

/// How long the test waits for something to appear on the screen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Names that would clear the screen, set its title or reverse the text, and a name in characters
/// that are two columns wide.
const MAP: &str = "\
1 0 1000 f /dev/sda1 /evil\u{1b}[2J\u{1b}]0;stolen\u{7}\u{202e}name
1 1000 2000 f /dev/sda1 /漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字
1 2000 3000 f /dev/sda1 /written
1 3000 800000 p /dev/sda1
";

/// Traces a disk that has a map in a terminal.
fn start(sandbox: Sandbox, map: &str, args: &[&str]) -> Screen {
    fs::write(sandbox.cwd().join("disk.bmap"), map).unwrap();
    let args = [&["trace", "disk.raw", "--map", "disk.bmap", "--top"], args].concat();
    Screen::start(sandbox, [100, 30], PATIENCE, &args)
}

/// A command that reads and writes, prints a line, and waits.
fn command(sandbox: &Sandbox) -> String {
    let script = "import sys, time\nh.pread(1024, 0)\nh.pread(512, 0x1000)\nh.pread(512, 0x1200)\nh.pread(512, 0x1400)\n\
                  h.pwrite(b'x' * 512, 0x2000)\nh.flush()\nprint('I read \\x1b[2J', flush=True)\n\
                  try:\n    time.sleep(1000)\nexcept KeyboardInterrupt:\n    print('I was interrupted')\n";
    fs::write(sandbox.cwd().join("client.py"), script).unwrap();
    format!("exec {NBDSH} -u \"$uri\" -c - <client.py")
}

fn row(text: &str, number: usize) -> &str {
    let heading = text.lines().position(|line| line.contains("REQUESTS")).unwrap();
    text.lines().nth(heading + number).unwrap()
}

#[test]
fn the_screen_shows_files_and_gives_the_terminal_back() {
    needs!("tmux", "nbdsh", "stty");
    let sandbox = sandbox();
    let run = command(&sandbox);
    let screen = start(sandbox, MAP, &["-o", "log", "--run", &run]);
    let text = screen.wait("the flush", |text| text.contains("1 flush") && text.contains("I read"));
    assert!(text.lines().next().unwrap().starts_with("virt-bmap-rs trace disk.raw"), "{text}");
    assert!(text.contains("read 2.5 KiB in 4") && text.contains("wrote 512 B in 1"), "{text}");
    assert!(text.contains("OUTPUT OF THE COMMAND\nI read \\033[2J\n"), "{text}");
    // The files are sorted by bytes that were read. Keys sort them by bytes written, by requests
    // and by time.
    let first = |name: &'static str| move |text: &str| row(text, 1).contains(name);
    let text = screen.wait("the first of the files", |text| row(text, 1).contains("1.5 KiB"));
    assert!(row(&text, 1).contains("…") && row(&text, 1).ends_with("漢字漢字"), "{text}");
    assert!(
        row(&text, 2).ends_with("f /dev/sda1 /evil\\033[2J\\033]0;stolen\\007\\342\\200\\256name"),
        "{text}"
    );
    screen.keys("w");
    screen.wait("the file that was written", first("/written"));
    screen.keys("r");
    screen.wait("the file that was asked for most", first("漢字"));
    screen.keys("t");
    screen.wait("the last file", first("/written"));
    screen.keys("Space");
    screen.wait("that it is held", |text| text.contains("(paused)"));
    screen.keys("Space");
    // After a change of the size the screen is drawn at once, and names are shortened to fit.
    screen.tmux(&["resize-window", "-x", "60", "-y", "12"]);
    let text = screen.wait("a smaller screen", |text| text.contains("1.5 KiB") && text.lines().count() <= 12);
    assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
    screen.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    screen.keys("q");
    let (text, run) = screen.end("130");
    assert!(
        text.contains("I read \\033[2J\nI was interrupted\n"),
        "what the command said is said again: {text}"
    );
    assert!(text.contains("4 reads of 2.5 KiB, 1 write of 512 B, 1 flush"), "{text}");
    let log = String::from_utf8(run.read("log")).unwrap();
    assert!(log.contains("read f /dev/sda1 /evil") && log.ends_with("\nflush\n"), "{log}");
}

/// The files of a guest that boots, in the order in which it reads them: path, first and last byte.
const BOOT: [(&str, u64, u64); 8] = [
    ("/boot/grub/grub.cfg", 0x10_0000, 0x10_2000),
    ("/boot/initrd.img", 0x10_2000, 0x40_0000),
    ("/boot/vmlinuz", 0x40_0000, 0x60_0000),
    ("/usr/lib/systemd/systemd", 0x60_0000, 0x64_0000),
    ("/usr/lib/x86_64-linux-gnu/libc.so.6", 0x64_0000, 0x70_0000),
    ("/etc/fstab", 0x70_0000, 0x70_1000),
    ("/etc/passwd", 0x70_1000, 0x70_2000),
    ("/var/log/journal/system.journal", 0x70_2000, 0x80_0000),
];

/// The picture of the page shows what the program shows.
#[test]
fn the_picture_in_the_documentation() {
    needs!("tmux", "nbdsh", "stty");
    let sandbox = sandbox();
    let mut map = "1 0 100000 v /dev/sda\n".to_owned();
    let mut script = "import time\n".to_owned();
    for (path, start, end) in BOOT {
        for object in [&format!("f /dev/sda1 {path}"), "p /dev/sda1", "v /dev/sda"] {
            map += &format!("1 {start:x} {end:x} {object}\n");
        }
        let call = if path.ends_with(".journal") { "pwrite(b'x' * 65536," } else { "pread(65536," };
        let length = (end - start).min(65536);
        let call = call.replace("65536", &length.to_string());
        script += &format!("for at in range({start}, {end} - {length} + 1, {length}): h.{call} at)\n");
    }
    script += "h.flush()\nprint('Welcome to Debian GNU/Linux', flush=True)\ntime.sleep(1000)\n";
    fs::write(sandbox.cwd().join("client.py"), script).unwrap();
    // The name of what stands for a guest.
    let run = format!("exec {NBDSH} -u \"$uri\" -c - <client.py");
    let screen = start(sandbox, &map, &["--run", &run]);
    screen.wait("the end of the boot", |text| text.contains("Welcome to Debian") && text.contains("1 flush"));
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    picture::check(&pictures.join("top.svg"), &screen.styled());
    screen.keys("q");
    screen.end("130");
}

#[test]
fn any_end_gives_the_terminal_back() {
    needs!("tmux", "nbdsh", "stty");
    // Without a command, the screen shows where clients connect, and Ctrl-C ends the program
    // normally.
    let screen = start(sandbox(), MAP, &[]);
    let text =
        screen.wait("the URI", |text| text.contains("nbd+unix:///?socket=") && text.contains("REQUESTS"));
    assert!(text.contains("q: quit"), "{text}");
    screen.keys("C-c");
    let (_, run) = screen.end("0");
    assert!(!run.files().iter().any(|name| name == "-"), "{:?}", run.files());
    // The program ends when the command ends.
    let screen = start(sandbox(), MAP, &["--run", "sleep 1; exit 7"]);
    screen.wait("the screen", |text| text.contains("REQUESTS"));
    screen.end("7");
    // Signals end the program.
    for (signal, status) in [(Signal::TERM, "143"), (Signal::HUP, "129"), (Signal::QUIT, "131")] {
        let screen = start(sandbox(), MAP, &["--run", "sleep 1000"]);
        screen.wait("the screen", |text| text.contains("REQUESTS"));
        let program = screen.running.program_in_terminal();
        virt_bmap_testutil::sandbox::kill(program, signal);
        screen.end(status);
    }
    // The screen shows that the log is full. The message is repeated after the end.
    let client = format!("{NBDSH} -u \"$uri\" -c 'h.pread(512, 0)'; sleep 2");
    let screen = start(sandbox(), MAP, &["-o", "/dev/full", "--run", &client]);
    screen.wait("that the log is full", |text| text.contains("/dev/full: cannot write the log any"));
    let (text, _) = screen.end("3");
    assert!(text.contains("/dev/full"), "{text}");
}

#[test]
fn elsewhere_it_is_a_line_from_time_to_time() {
    needs!("nbdsh");
    let sandbox = sandbox();
    fs::write(sandbox.cwd().join("disk.bmap"), MAP).unwrap();
    let run = format!("{NBDSH} -u \"$uri\" -c 'h.pread(1024, 0)' -c 'h.flush()'; sleep 6");
    let run = sandbox.run(["trace", "disk.raw", "--map", "disk.bmap", "--top", "--run", &run]);
    run.assert_code(0);
    let said = String::from_utf8(run.stdout.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "a line every 5 s, and no log: {said}");
    assert!(said.starts_with("5 s: read 1 KiB in 1 ("), "{said}");
    assert!(
        said.ends_with(", most 1 KiB of f /dev/sda1 /evil\\033[2J\\033]0;stolen\\007\\342\\200\\256name\n"),
        "{said}"
    );
    let args = ["trace", "disk.raw", "--map", "disk.bmap", "--top", "-o", "-", "--run", "true"];
    run.sandbox.run(args).assert_fails(&["--top", "standard output", "-o"]);
}

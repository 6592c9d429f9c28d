use super::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::io::Cursor;
use virt_bmap_map::text;
use virt_bmap_ranges::DiskRange;
use virt_bmap_trace::{Live, Tail, TraceEvent};

const MAP: &str = "1 0 1000 f /dev/sda1 /bin/busybox\n\
                   1 1000 2000 f /dev/sda1 /evil\u{1b}[2J\u{1b}]0;title\u{7}\u{202e}name\n\
                   1 2000 3000 f /dev/sda1 /漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字\n\
                   1 3000 4000 f /dev/sda1 /e\u{301}e\u{301}\u{301}\u{301}\n";

fn look(map: &Map, order: ObjectOrder) -> LiveView {
    let live = Live::default();
    let event = |op, start: u64, end: u64| TraceEvent {
        time: Duration::from_secs(start / 0x1000),
        latency: Duration::ZERO,
        connection: 1,
        disk: 1,
        op,
        fua: false,
        failed: false,
        range: DiskRange::new(start, end),
    };
    let events = [
        event(Op::Read, 0, 0x1000),
        event(Op::Write, 0x1000, 0x1400),
        event(Op::Read, 0x2000, 0x2200),
        event(Op::Read, 0x2200, 0x2400),
        event(Op::Read, 0x3000, 0x3100),
        event(Op::Flush, 0, 0),
    ];
    for (number, event) in (1..).zip(&events) {
        live.add(number, event, &map.over(event.disk, event.range).most_specific_first());
    }
    live.view(order, 100, 100)
}

fn drawn(width: u16, height: u16, order: ObjectOrder, status: &TopStatus) -> Vec<String> {
    let map = text::read(MAP.as_bytes()).unwrap();
    let screen = Screen {
        title: &["virt-bmap-rs trace guest\u{1b}[31m.raw".into(), "nbd+unix:///?socket=/run/x".into()],
        elapsed: Duration::from_secs(3725),
        look: &look(&map, order),
        rate: Rate { read: Amount { requests: 7, bytes: 2048 }, written: Amount::default() },
        map: &map,
        status,
        order,
        is_paused: false,
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| -> String {
        let mut line = String::new();
        let mut x = 0;
        // A wide character has two cells, the second of which is not drawn.
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line += symbol;
            x += u16::try_from(symbol.width()).unwrap().max(1);
        }
        line.trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

#[test]
fn everything_has_its_place() {
    let status = TopStatus { dropped: 3, log_error: Some("log: no\nspace".into()), ..TopStatus::default() };
    let lines = drawn(100, 24, ObjectOrder::Bytes, &status);
    let expected = [
        "virt-bmap-rs trace guest\\033[31m.raw                                                         1:02:05",
        "nbd+unix:///?socket=/run/x",
        "read 5.3 KiB in 4 (2 KiB/s in 7)   wrote 1 KiB in 1 (0 B/s in 0)   1 flush",
        "3 missing from the log, which is too slow; log: no\\012space",
        "",
        "     BYTES   WRITTEN  REQUESTS      LAST  OBJECT (4)",
        "     4 KiB       0 B         1    62 min  f /dev/sda1 /bin/busybox",
    ];
    assert_eq!(lines[..7], expected);
    assert!(lines[7].contains("1 KiB") && lines[7].contains("…漢字"), "{lines:#?}");
    assert!(lines[8].contains("/evil\\033[2J\\033]0;title\\007\\342\\200\\256name"), "{lines:#?}");
    assert_eq!(lines[16], "MOST RECENT");
    assert_eq!(lines[17], "flush");
    assert_eq!(
        lines[18].trim_start(),
        "read 0x3000 256 B              f /dev/sda1 /e\u{301}e\u{301}\u{301}\u{301}"
    );
    assert_eq!(lines[23], KEYS);
    assert!(drawn(100, 24, ObjectOrder::Written, &status)[6].contains("/evil"));
    assert!(drawn(100, 24, ObjectOrder::Requests, &status)[6].contains("漢字"));
    assert!(drawn(100, 24, ObjectOrder::Latest, &status)[6].contains("/e\u{301}"));
}

#[test]
fn the_output_of_the_command_is_escaped() {
    let tail = Tail::of(Cursor::new(b"one\n\x1b[2Jtwo\n".to_vec()));
    while tail.lines(2).len() < 2 {
        std::thread::yield_now();
    }
    let lines = drawn(80, 30, ObjectOrder::Bytes, &TopStatus { tail: Some(tail), ..TopStatus::default() });
    let place = lines.iter().position(|line| line == "OUTPUT OF THE COMMAND").unwrap();
    assert_eq!(lines[place + 1..place + 3], ["one", "\\033[2Jtwo"]);
}

#[test]
fn a_terminal_of_any_size_is_drawn_on() {
    let tail = Some(Tail::of(Cursor::new(b"says\n".to_vec())));
    let status = TopStatus { dropped: 1, log_error: Some("trouble".into()), tail, operations: None };
    for (width, height) in (0..60).flat_map(|width| (0..20).map(move |height| (width, height))) {
        drawn(width, height, ObjectOrder::Bytes, &status);
    }
}

#[test]
fn names_are_cut_by_columns() {
    assert_eq!(fit("/usr/bin/env", 12), "/usr/bin/env");
    assert_eq!(fit("/usr/bin/env", 8), "…bin/env");
    // A wide character that does not fit whole is left out.
    assert_eq!(fit("/漢字", 4), "…字");
    assert_eq!(fit("/漢字", 3), "…字");
    assert_eq!(fit("/漢字", 2), "…");
    assert_eq!(fit("abe\u{301}c", 2), "…c");
    assert_eq!((fit("abc", 1), fit("abc", 0), fit("", 0)), ("…".into(), String::new(), String::new()));
    for width in 0..40 {
        assert!(
            fit("/x\u{301}漢 \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{fe0f}字", width).width() <= width
        );
    }
}

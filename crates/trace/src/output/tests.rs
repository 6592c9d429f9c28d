use super::*;
use crate::Op;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use virt_bmap_map::{Attributes, Header, Kind, Map, MapBuilder, ObjectName};
use virt_bmap_ranges::{DiskRange, FileOffset};

/// A log in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with a partition from 1000h, a directory, and two files of which the second, which begins
/// first by name, ends first.
fn map() -> Map {
    let mut builder = MapBuilder::new(Header::default());
    let mut add = |kind, device: &[u8], path: &[u8], start, end, inside: Option<u64>| {
        let object = builder.object(ObjectName { kind, device, path }, Attributes::default()).unwrap();
        builder.piece(object, 1, DiskRange::new(start, end), inside.map(FileOffset)).unwrap();
    };
    add(Kind::Disk, b"/dev/sda", b"", 0, 0x10000, None);
    add(Kind::Partition, b"/dev/sda1", b"", 0x1000, 0x10000, None);
    add(Kind::Directory, b"/dev/sda1", b"/", 0x2000, 0x3000, None);
    add(Kind::File, b"/dev/sda1", b"/zz", 0x4000, 0x6000, Some(0x8000));
    add(Kind::File, b"/dev/sda1", b"/a\n\"\x1b", 0x4000, 0x8000, Some(0));
    builder.build()
}

fn event(op: Op, start: u64, end: u64) -> TraceEvent {
    TraceEvent {
        time: Duration::from_micros(1_500_000),
        latency: Duration::from_micros(12),
        connection: 2,
        disk: 1,
        op,
        fua: op == Op::Write,
        failed: op == Op::Trim,
        range: DiskRange::new(start, end),
    }
}

fn written(format: LogFormat, events: &[TraceEvent]) -> Vec<u8> {
    let (map, memory) = (map(), Memory::default());
    let mut output = format.output(memory.clone(), &[]).unwrap();
    for (number, event) in (1..).zip(events) {
        let hits = map.over(event.disk, event.range).most_specific_first();
        output.request(number, event, &hits).unwrap();
    }
    output.finish().unwrap();
    memory.0.lock().unwrap().clone()
}

#[test]
fn the_text_is_the_originals() {
    let events = [
        event(Op::Read, 0, 0x200),
        event(Op::Read, 0x1000, 0x1200),
        event(Op::Read, 0x200, 0x400),
        // Touches the directory and both files: the files count, and of these the first by name.
        event(Op::Read, 0x2000, 0x9000),
        event(Op::Read, 0x7000, 0x8000),
        event(Op::Write, 0x7000, 0x8000),
        event(Op::Read, 0x2000, 0x2400),
    ];
    assert_eq!(
        String::from_utf8(written(LogFormat::Text, &events)).unwrap(),
        "\nread v /dev/sda\n 0-200\nread p /dev/sda1\n 1000-1200\nread v /dev/sda\n 200-400\n\
         read f /dev/sda1 /a\\012\"\\033\n 2000-9000 7000-8000\n\
         write f /dev/sda1 /a\\012\"\\033\n 7000-8000\nread d /dev/sda1 /\n 2000-2400"
    );
}

#[test]
fn the_text_omits_requests_without_objects_except_flushes() {
    let outside = TraceEvent { disk: 2, ..event(Op::Read, 0, 512) };
    let flush = TraceEvent { range: DiskRange::new(0, 0), ..event(Op::Flush, 0, 0) };
    let events = [outside, flush, flush, event(Op::Trim, 0, 0x200), event(Op::Zero, 0, 0x200)];
    assert_eq!(
        String::from_utf8(written(LogFormat::Text, &events)).unwrap(),
        "\nflush\n\ntrim v /dev/sda\n 0-200\nzero v /dev/sda\n 0-200"
    );
}

#[test]
fn json_has_every_object_and_the_offset_in_it() {
    let text = String::from_utf8(written(LogFormat::Jsonl, &[event(Op::Write, 0x5000, 0x6800)])).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["format"], "virt-bmap-rs trace");
    let request = &lines[1];
    assert_eq!(request["time"], 1.5);
    assert_eq!(request["latency"], 0.000_012);
    assert_eq!((&request["fua"], &request["failed"]), (&true.into(), &serde_json::Value::Null));
    let objects: Vec<_> = request["objects"].as_array().unwrap().iter().collect();
    let of = |name: &str| objects.iter().find(|object| object["path"] == name).unwrap();
    assert_eq!(of("/zz")["file_offset"], 0x9000);
    assert_eq!(of("/zz")["length"], 0x1000);
    assert_eq!(of("/a\n\"\u{1b}")["file_offset"], 0x1000);
    let kinds: Vec<_> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["f", "f", "p", "v"], "the most specific first");
}

#[test]
fn the_page_plays_what_is_written() {
    let events = [
        event(Op::Read, 0, 512),
        event(Op::Trim, 0, 512),
        event(Op::Write, 512, 1024),
        event(Op::Zero, 1024, 2048),
        TraceEvent { range: DiskRange::new(0, 0), ..event(Op::Flush, 0, 0) },
        event(Op::Read, 0x4000, 0x5000),
    ];
    for format in [LogFormat::Text, LogFormat::Jsonl] {
        let trace = virt_bmap_map::report::trace::read(&written(format, &events)[..]).unwrap();
        use virt_bmap_map::report::trace::Op::{Read, Write};
        let played: Vec<_> = trace.requests.iter().map(|r| (r.op, r.offset, r.length)).collect();
        let expected = [(Read, 0, 512), (Write, 512, 512), (Write, 1024, 1024), (Read, 0x4000, 0x1000)];
        assert_eq!(played, expected, "{format}");
    }
}

#[test]
fn a_table_has_a_row_for_each_object() {
    let outside = TraceEvent { disk: 2, ..event(Op::Read, 0, 512) };
    let bytes = written(LogFormat::Csv, &[event(Op::Read, 0x5000, 0x5200), outside]);
    let mut csv = ::csv::Reader::from_reader(&bytes[..]);
    let column = |name: &str, headers: &::csv::StringRecord| headers.iter().position(|h| h == name).unwrap();
    let headers = csv.headers().unwrap().clone();
    let rows: Vec<_> = csv.records().map(Result::unwrap).collect();
    let cells = |name: &str| -> Vec<&str> { rows.iter().map(|row| &row[column(name, &headers)]).collect() };
    assert_eq!(cells("request"), ["1", "1", "1", "1", "2"]);
    assert_eq!(cells("type"), ["f", "f", "p", "v", ""]);
    assert_eq!(cells("path"), ["/a\\012\"\\033", "/zz", "", "", ""]);
    assert_eq!(cells("file_offset"), ["4096", "36864", "", "", ""]);
}

#[test]
fn a_line_is_read_as_one_of_nbdkits_log_filter() {
    let bytes = written(LogFormat::Log, &[event(Op::Read, 0x5000, 0x5200), event(Op::Trim, 0, 512)]);
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(
        " connection=2 Read id=1 offset=0x5000 count=0x200 return=0 latency=0.000012 disk=1 \
         object=\"f /dev/sda1 /a\\012\\042\\033\" object=\"f /dev/sda1 /zz\" object=\"p /dev/sda1\" \
         object=\"v /dev/sda\"\n"
    ));
    assert!(text.contains("Trim id=2 offset=0x0 count=0x200 return=-1"));
    let list =
        virt_bmap_map::rangelist::read(&bytes[..], &virt_bmap_map::rangelist::RangeListOptions::default())
            .unwrap();
    assert_eq!(list.kind, virt_bmap_map::rangelist::Kind::NbdkitLog);
    let ranges: Vec<_> = list.spans.iter().collect();
    assert_eq!(ranges, [DiskRange::new(0, 512), DiskRange::new(0x5000, 0x5200)]);
}

/// Each event has the record of the JSON Lines, and a place on a line of time.
#[test]
fn events_of_chrome_have_the_records_of_json_lines() {
    let overlapping = |start: u64, end: u64| TraceEvent {
        time: Duration::from_nanos(start),
        latency: Duration::from_nanos(end - start),
        ..event(Op::Read, 0x4000, 0x5000)
    };
    let events = [
        event(Op::Read, 0x4000, 0x9000),
        event(Op::Trim, 0x10000, 0x10200),
        event(Op::Flush, 0, 0),
        // In the order of their answers.
        overlapping(3_000_000_100, 3_000_000_200),
        overlapping(3_000_000_000, 3_000_000_900),
        overlapping(3_000_000_250, 3_000_001_000),
        overlapping(3_000_001_000, 3_000_001_001),
    ];
    let lines = String::from_utf8(written(LogFormat::Jsonl, &events)).unwrap();
    let records: Vec<serde_json::Value> =
        lines.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let text = written(LogFormat::Chrome, &events);
    assert!(!text.contains(&0x1b));
    let all: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    assert!(all.iter().map(|event| &event["args"]).eq(&records));
    let mut busy = std::collections::HashMap::new();
    for (event, record) in all.iter().zip(&records) {
        assert_eq!((&event["ph"], &event["pid"], &event["cat"]), (&"X".into(), &1.into(), &record["op"]));
        let number = |field: &str| event[field].as_f64().unwrap();
        assert!((number("ts") / 1e6 - record["time"].as_f64().unwrap()).abs() < 1e-6);
        assert!((number("dur") / 1e6 - record["latency"].as_f64().unwrap()).abs() < 1e-6);
        // Events of one thread do not overlap. Three digits after the point are nanoseconds.
        let nanoseconds = |time: f64| (time * 1000.0).round() as u64;
        let (start, end) = (nanoseconds(number("ts")), nanoseconds(number("ts") + number("dur")));
        let last = busy.insert(event["tid"].as_u64().unwrap(), end);
        assert!(last.is_none_or(|last| last <= start), "{event}");
    }
    let name = all[0]["name"].as_str().unwrap();
    assert!(name.starts_with("read f /dev/sda1 /"), "{name}");
    assert_eq!((&all[1]["name"], &all[2]["name"]), (&"trim".into(), &"flush".into()));
    // The beginning of a log that was cut off, with the end that a reader adds.
    let cut = text.iter().rposition(|&byte| byte == b'\n').unwrap();
    let cut = text[..cut].iter().rposition(|&byte| byte == b'\n').unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&[&text[..cut], b"]"].concat()).is_ok());
}

//! Reads the text map according to its specification, without the program's own code.

use super::ranges::{Range, normalise};
use std::collections::BTreeMap;
use std::fmt;

/// A text map.
#[derive(Debug)]
pub struct TextMap {
    /// The lines at the top that begin with `#`, without the `#`.
    pub header: Vec<String>,
    /// The other lines, in order.
    pub lines: Vec<Line>,
}

/// A line: an object to which an interval of a disk belongs.
#[derive(Clone, PartialEq, Eq)]
pub struct Line {
    /// The number of the disk, counted from 1.
    pub disk: u32,
    /// The interval.
    pub range: Range,
    /// `v`, `p`, `l`, `d` or `f`.
    pub kind: char,
    /// The device that the object is, or on which it is.
    pub device: Vec<u8>,
    /// The name of a directory or file, without escapes.
    pub path: Option<Vec<u8>>,
    /// `TYPE DEVICE PATH` as the line has it.
    object: Vec<u8>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x?} {}", self.disk, self.range, String::from_utf8_lossy(&self.object))
    }
}

impl TextMap {
    /// Reads a map.
    ///
    /// # Panics If the map violates the specification. The message names the line.
    pub fn parse(text: &[u8]) -> Self {
        assert!(text.is_empty() || text.ends_with(b"\n"), "the last line has no end");
        let mut map = Self { header: Vec::new(), lines: Vec::new() };
        for (number, line) in text.split_inclusive(|&b| b == b'\n').enumerate() {
            let line = &line[..line.len() - 1];
            match line.strip_prefix(b"#") {
                Some(comment) => {
                    assert!(map.lines.is_empty(), "line {}: a comment after the map began", number + 1);
                    map.header.push(String::from_utf8_lossy(comment).into_owned());
                }
                None => {
                    map.lines.push(parse_line(line).unwrap_or_else(|| {
                        panic!("line {}: {:?}", number + 1, String::from_utf8_lossy(line))
                    }));
                }
            }
        }
        map.check_order();
        map
    }

    /// Checks that intervals are disjoint, ascending and joined, and that the lines of an interval
    /// are sorted.
    fn check_order(&self) {
        let intervals: Vec<&[Line]> =
            self.lines.chunk_by(|a, b| a.disk == b.disk && a.range == b.range).collect();
        for lines in &intervals {
            for pair in lines.windows(2) {
                let [a, b] = pair else { unreachable!() };
                let key = |l: &Line| (l.kind, l.device.clone(), l.path.clone());
                assert!(key(a) < key(b), "not in order:\n{a:?}\n{b:?}");
            }
        }
        for pair in intervals.windows(2) {
            let (a, b) = (&pair[0][0], &pair[1][0]);
            assert!(
                a.disk < b.disk || a.disk == b.disk && a.range.end <= b.range.start,
                "overlap or out of order:\n{a:?}\n{b:?}"
            );
            if a.disk == b.disk && a.range.end == b.range.start {
                let objects = |lines: &[Line]| lines.iter().map(|l| l.object.clone()).collect::<Vec<_>>();
                assert_ne!(objects(pair[0]), objects(pair[1]), "not joined:\n{a:?}\n{b:?}");
            }
        }
    }

    /// The ranges on disk `disk` of the objects of one kind, by device and path.
    fn objects(&self, disk: u32, kind: char) -> BTreeMap<(String, Vec<u8>), Vec<Range>> {
        let mut objects: BTreeMap<_, Vec<Range>> = BTreeMap::new();
        for line in self.lines.iter().filter(|l| l.disk == disk && l.kind == kind) {
            let device = String::from_utf8(line.device.clone()).unwrap();
            let path = line.path.clone().unwrap_or_default();
            objects.entry((device, path)).or_default().push(line.range.clone());
        }
        objects.into_iter().map(|(object, ranges)| (object, normalise(ranges))).collect()
    }

    /// The ranges on disk `disk` of the devices of kind `v`, `p` or `l`.
    pub fn devices(&self, disk: u32, kind: char) -> BTreeMap<String, Vec<Range>> {
        self.objects(disk, kind).into_iter().map(|((device, _), ranges)| (device, ranges)).collect()
    }

    /// The ranges on disk `disk` of each file (`f`) or directory (`d`) of the filesystem on
    /// `device`.
    pub fn paths(&self, disk: u32, kind: char, device: &str) -> BTreeMap<Vec<u8>, Vec<Range>> {
        let objects = self.objects(disk, kind).into_iter();
        objects.filter(|((d, _), _)| d == device).map(|((_, path), ranges)| (path, ranges)).collect()
    }
}

/// The map without the lines that begin with `#`.
pub fn body(text: &[u8]) -> &[u8] {
    let mut rest = text;
    while rest.starts_with(b"#") {
        rest = rest.iter().position(|&b| b == b'\n').map_or(b"", |end| &rest[end + 1..]);
    }
    rest
}

fn parse_line(line: &[u8]) -> Option<Line> {
    let mut fields = line.splitn(4, |&b| b == b' ');
    let (disk, start, end) = (fields.next()?, fields.next()?, fields.next()?);
    let object = fields.next()?;
    let decimal = |digits: &[u8]| -> Option<u32> {
        let plain = digits.iter().all(u8::is_ascii_digit) && !digits.starts_with(b"0");
        plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
    };
    let hex = |digits: &[u8]| -> Option<u64> {
        let lower = digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        let unpadded = digits == b"0" || !digits.starts_with(b"0");
        (lower && unpadded).then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
    };
    let range = hex(start)?..hex(end)?;
    let (kind, rest) = (*object.first()?, object.get(2..)?);
    let (device, path) = match kind {
        b'v' | b'p' | b'l' => (rest.to_vec(), None),
        b'd' | b'f' => {
            let space = rest.iter().position(|&b| b == b' ')?;
            (rest[..space].to_vec(), Some(unescape(&rest[space + 1..])?))
        }
        _ => return None,
    };
    let sound = range.start < range.end
        && object[1] == b' '
        && device.starts_with(b"/dev/")
        && !device.contains(&b' ')
        && path.as_ref().is_none_or(|p| p.starts_with(b"/"));
    sound.then(|| {
        Line { disk: decimal(disk)?, range, kind: char::from(kind), device, path, object: object.to_vec() }
            .into()
    })?
}

/// Undoes `\ooo`. `None` if a byte that must be escaped is not escaped, or if another byte is.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' {
            let digits = tail.get(..3)?;
            let octal = digits.iter().all(|d| (b'0'..=b'7').contains(d));
            let value = octal.then(|| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok())??;
            must_be_escaped(value).then_some(())?;
            name.push(value);
            rest = &tail[3..];
        } else {
            (!must_be_escaped(byte)).then_some(())?;
            name.push(byte);
            rest = tail;
        }
    }
    Some(name)
}

fn must_be_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f || byte == b'\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &[u8] = b"#virt-bmap\n1 0 200 v /dev/sda\n1 200 400 f /dev/sda1 /a\\012b c\n1 200 400 v /dev/sda\n2 0 10 v /dev/sdb\n";

    #[test]
    fn a_map_is_read() {
        let map = TextMap::parse(MAP);
        assert_eq!(map.header, ["virt-bmap"]);
        assert_eq!(map.devices(1, 'v')["/dev/sda"], [0..0x400]);
        assert_eq!(map.paths(1, 'f', "/dev/sda1")[b"/a\nb c".as_slice()], [0x200..0x400]);
        assert_eq!(map.devices(2, 'v').len(), 1);
        assert_eq!(body(MAP), &MAP[11..]);
        assert_eq!(body(b"# only"), b"");
    }

    #[test]
    fn what_the_format_does_not_allow_is_refused() {
        for bad in [
            "1 0 200 v /dev/sda",
            "1 0 0 v /dev/sda\n",
            "01 0 200 v /dev/sda\n",
            "1 0 2A0 v /dev/sda\n",
            "1 0x0 200 v /dev/sda\n",
            "1 0 200 ? /dev/sda\n",
            "1 0 200 f /dev/sda1\n",
            "1 0 200 f /dev/sda1 /a\tb\n",
            "1 0 200 f /dev/sda1 /a\\b\n",
            "1 0 200 f /dev/sda1 /a\\101\n",
            "1 0 200 v /dev/sda\n# late\n",
            "1 0 200 v /dev/sda\n1 100 300 v /dev/sda\n",
            "1 0 200 v /dev/sda\n1 200 300 v /dev/sda\n",
            "1 0 200 v /dev/sda\n1 0 200 p /dev/sda1\n",
            "2 0 200 v /dev/sda\n1 0 200 p /dev/sda1\n",
        ] {
            assert!(std::panic::catch_unwind(|| TextMap::parse(bad.as_bytes())).is_err(), "{bad:?}");
        }
    }
}

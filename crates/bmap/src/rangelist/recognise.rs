//! Recognises the format of a list by its beginning.

use super::lines::{short, without_comment};
use super::{Kind, ListError};
use super::{badblocks, blkparse, ddrescue, nbdkit_log, plain};

/// Bytes of the beginning that are looked at.
pub(super) const LOOK_AHEAD: u64 = 64 * 1024;

/// Decides by the first lines. Comments are skipped, since anyone may add one.
pub(super) fn kind(head: &[u8]) -> Result<Kind, ListError> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if text.starts_with(b"[") {
        return json(text);
    }
    if head.starts_with(b"QFI\xfb") {
        return Err(ListError::Image);
    }
    for line in head.split(|&byte| byte == b'\n') {
        let line = without_comment(line);
        if line.is_empty() {
            continue;
        }
        // Each format is tested for properties of its own lines only, so the order matters little.
        return if ddrescue::is_state(line) {
            Ok(Kind::Ddrescue)
        } else if blkparse::is_event(line) {
            Ok(Kind::Blkparse)
        } else if nbdkit_log::is_event(line) {
            Ok(Kind::NbdkitLog)
        } else if badblocks::is_block(line) {
            Ok(Kind::Badblocks)
        } else if plain::is_range(line) {
            Ok(Kind::Plain)
        } else {
            Err(ListError::Unknown { found: short(line) })
        };
    }
    Err(ListError::Empty)
}

/// Decides by the names of the first entry's fields.
fn json(text: &[u8]) -> Result<Kind, ListError> {
    let first = text.split(|&byte| byte == b'}').next().unwrap_or(text);
    let has = |field: &[u8]| memchr::memmem::find(first, field).is_some();
    if has(b"\"start\"") {
        Ok(Kind::QemuImgMap)
    } else if has(b"\"offset\"") && has(b"\"type\"") {
        Ok(Kind::Nbdinfo)
    } else if text[1..].trim_ascii_start().starts_with(b"]") {
        Err(ListError::Empty)
    } else {
        Err(ListError::Unknown { found: short(first) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_recognised() {
        let cases: [(&str, Kind); 13] = [
            (r#"[{ "start": 0, "length": 4096, "depth": 0, "zero": false, "data": true}]"#, Kind::QemuImgMap),
            (r#"[{"start":0,"length":4096,"depth":0}]"#, Kind::QemuImgMap),
            (
                "[\n{ \"offset\": 0, \"length\": 4096, \"type\": 0, \"description\": \"data\"}\n]",
                Kind::Nbdinfo,
            ),
            ("# Mapfile. Created by GNU ddrescue\n0x0 ? 1\n", Kind::Ddrescue),
            ("0x00011000     ?\n0x0 0x100 +\n", Kind::Ddrescue),
            ("12345\n12346\n", Kind::Badblocks),
            (
                "2026-11-20 16:10:45.744190 connection=1 Read id=1 offset=0x0 count=0x1000 ...\n",
                Kind::NbdkitLog,
            ),
            ("2026-11-20 16:10:45.705205 Ready thread_model=3\n", Kind::NbdkitLog),
            ("  8,0    3        1     0.000000000   697  G   W 223490 + 8 [kjournald]\n", Kind::Blkparse),
            ("0 512\n", Kind::Plain),
            ("# offsets\n\n0x1000 4K # and why\n", Kind::Plain),
            ("1M\t1M\n", Kind::Plain),
            ("0 1\n", Kind::Plain),
        ];
        for (head, expected) in cases {
            assert_eq!(kind(head.as_bytes()).unwrap(), expected, "{head}");
        }
    }

    #[test]
    fn an_unknown_format_is_refused() {
        for head in [
            "1 0 200 v /dev/sda\n",
            "{\"start\": 0}",
            "[1, 2]",
            "hello\n",
            "0x100\n",
            "<xml/>",
            "-5 3\n",
            "\u{1b}[2J",
        ] {
            let error = kind(head.as_bytes()).unwrap_err();
            assert!(matches!(error, ListError::Unknown { .. }), "{head}: {error}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        for head in ["", "\n\n", "# only a comment\n", "[]", " [ ]\n"] {
            assert!(matches!(kind(head.as_bytes()), Err(ListError::Empty)), "{head}");
        }
    }
}

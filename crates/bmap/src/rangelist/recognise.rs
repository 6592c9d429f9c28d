//! Recognises the format of a list by its beginning.

use super::lines::{short, without_comment};
use super::{Kind, ListError};

/// Bytes of the beginning that are looked at.
pub(super) const LOOK_AHEAD: u64 = 64 * 1024;

/// The beginning of a list.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// As it is.
    pub(super) bytes: &'a [u8],
    /// From the first character on.
    pub(super) text: &'a [u8],
    /// The first line that is not blank, without its comment. Anyone may add a comment.
    pub(super) line: &'a [u8],
}

impl<'a> Head<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
        let mut lines = bytes.split(|&byte| byte == b'\n').map(without_comment);
        Self { bytes, text, line: lines.find(|line| !line.is_empty()).unwrap_or_default() }
    }

    /// Whether it is an array of JSON whose first entry has all these fields.
    pub(super) fn is_array_of(self, fields: &[&str]) -> bool {
        let first = self.text.split(|&byte| byte == b'}').next().unwrap_or(self.text);
        self.text.starts_with(b"[")
            && fields.iter().all(|field| has(first, format!("\"{field}\"").as_bytes()))
    }

    /// Whether one of these words is in it.
    pub(super) fn has_one_of(self, words: &[&str]) -> bool {
        words.iter().any(|word| has(self.bytes, word.as_bytes()))
    }
}

fn has(text: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(text, word).is_some()
}

/// Decides by the beginning, format by format.
pub(super) fn kind(head: &[u8]) -> Result<Kind, ListError> {
    let head = Head::of(head);
    if head.bytes.starts_with(b"QFI\xfb") {
        return Err(ListError::Image);
    }
    if let Some(kind) = Kind::of(head) {
        return Ok(kind);
    }
    let is_empty_array =
        head.text.strip_prefix(b"[").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"]"));
    if head.line.is_empty() || is_empty_array {
        return Err(ListError::Empty);
    }
    Err(ListError::Unknown { found: short(head.line) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_recognised() {
        let cases: [(&str, Kind); 25] = [
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
            (
                "<superblock uuid=\"\" data_block_size=\"128\">\n  <diff left=\"1\" right=\"2\">",
                Kind::ThinDelta,
            ),
            ("Offset Length Type \n0 4194304 data \n", Kind::RbdDiff),
            ("0 4194304 zero\n", Kind::RbdDiff),
            (r#"[{"offset":0,"length":1048576,"exists":"true"}]"#, Kind::RbdDiff),
            ("rbd diff v1\ne", Kind::RbdExport),
            ("rbd diff v2\ne", Kind::RbdExport),
            (r#"{"startOffset": 0, "length": 1, "changedArea": []}"#, Kind::Vmware),
            ("class = \"ereport.fs.zfs.checksum\"\n", Kind::ZfsEvents),
            ("[1.0] blk_update_request: I/O error, dev sda, sector 1\n", Kind::KernelLog),
            ("boot\n[1.0] critical medium error, dev sdi, sector 14381056\n", Kind::KernelLog),
            ("smartctl 7.3 2022-02-28 r5338\n", Kind::Smartctl),
            ("# 1  Extended offline    Completed: read failure 90% 1 2\n", Kind::Smartctl),
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

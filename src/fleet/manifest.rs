//! The manifest: the list of a fleet's guests as JSON Lines. `docs/fleet.md` describes it, and
//! `docs/fleet-manifest.schema.json` is its schema.

use super::error::{FleetError, GuestError};
use super::{Guest, GuestId};
use crate::mapper::{GuestDisk, MOST_DISKS};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, BufRead, Read as _, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use virt_bmap_image::Location;
use virt_bmap_map::jsonl::Text;
use virt_bmap_ranges::Printable;

/// Maximum length of a line in bytes.
const MAX_LINE: u64 = 4 << 20;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    disks: Vec<DiskLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskLine {
    path: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
}

/// Writes the guests.
///
/// # Errors
/// Those of the output.
pub fn write(guests: &[Guest], mut output: impl Write) -> io::Result<()> {
    for guest in guests {
        let disk = |disk: &GuestDisk| DiskLine {
            path: Text::from(disk.location.text().as_os_str()),
            format: disk.format.map(|format| format.to_string()),
            snapshot: disk.snapshot.clone(),
        };
        let line = Line { id: guest.id.to_string(), disks: guest.disks.iter().map(disk).collect() };
        serde_json::to_writer(&mut output, &line)?;
        output.write_all(b"\n")?;
    }
    output.flush()
}

/// Reads a manifest. `name` is its path for errors; relative paths in it start from the directory
/// `base`.
///
/// # Errors
/// If a line is invalid or repeats an ID; the error names the line and the reason.
pub fn read(mut input: impl BufRead, name: &Path, base: &Path) -> Result<Vec<Guest>, FleetError> {
    let mut guests = Vec::new();
    let mut seen = HashSet::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        (&mut input)
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut line)
            .map_err(FleetError::io(name, "cannot read this manifest"))?;
        if line.is_empty() {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let guest = guest(&line, base).and_then(|guest| {
            let is_new = seen.insert(guest.id.clone());
            if is_new { Ok(guest) } else { Err(GuestError::Twice(guest.id.to_string())) }
        });
        let wrong = |error: GuestError| FleetError::Manifest {
            path: name.to_owned(),
            line: number,
            reason: error.to_string(),
        };
        guests.push(guest.map_err(wrong)?);
    }
    if guests.is_empty() {
        return Err(FleetError::NoGuest { places: vec![name.to_owned()] });
    }
    Ok(guests)
}

fn guest(line: &[u8], base: &Path) -> Result<Guest, GuestError> {
    if line.len() as u64 > MAX_LINE {
        return Err(GuestError::Json(format!("the line is longer than {MAX_LINE} bytes")));
    }
    let line: Line = serde_json::from_slice(line)
        .map_err(|error| GuestError::Json(Printable(error.to_string().as_bytes()).to_string()))?;
    let id: GuestId = line.id.try_into()?;
    if line.disks.is_empty() || line.disks.len() > MOST_DISKS {
        return Err(GuestError::Disks(id.to_string()));
    }
    let disk = |disk: DiskLine| {
        let Text(path) = disk.path;
        if path.is_empty() || path.contains(&0) {
            return Err(GuestError::Path(id.to_string()));
        }
        let location = match Location::stated(&OsString::from_vec(path)) {
            Ok(Location::File(path)) => Location::File(base.join(path)),
            Ok(location) => location,
            Err(error) => return Err(GuestError::Uri(id.to_string(), error)),
        };
        let format = disk.format.map(|format| format.parse()).transpose()?;
        Ok(GuestDisk { location, format, snapshot: disk.snapshot })
    };
    let disks = line.disks.into_iter().map(disk).collect::<Result<_, GuestError>>()?;
    Ok(Guest { id, disks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt as _;

    fn parse(text: &[u8]) -> Result<Vec<Guest>, FleetError> {
        read(text, Path::new("m"), Path::new("/base"))
    }

    #[test]
    fn guests_are_read() {
        let guests = parse(
            b"{\"id\":\"a\",\"disks\":[{\"path\":\"x.raw\",\"format\":\"raw\"},{\"path\":\"/y\"}]}\n\n\
              {\"id\":\"b\",\"disks\":[{\"path\":{\"base64\":\"/w==\"}}]}",
        )
        .unwrap();
        assert_eq!(guests.len(), 2);
        assert_eq!(guests[0].disks[0].location, Location::File("/base/x.raw".into()));
        assert_eq!(guests[0].disks[0].format, Some(virt_bmap_image::ImageFormat::Raw));
        assert_eq!(guests[0].disks[1].location, Location::File("/y".into()));
        assert_eq!(guests[1].disks[0].location.name().as_bytes(), b"/base/\xff");
    }

    #[test]
    fn errors_name_their_line() {
        let good = r#"{"id":"a","disks":[{"path":"x"}]}"#;
        for (line, why) in [
            (good, "occurs twice"),
            ("nonsense", "invalid guest"),
            (r#"{"id":"../a","disks":[{"path":"x"}]}"#, "not a valid guest ID"),
            (r#"{"id":"b","disks":[]}"#, "no disks"),
            (r#"{"id":"b","disks":[{"path":""}]}"#, "that is empty"),
            (r#"{"id":"b","disks":[{"path":"x\u0000y"}]}"#, "NUL"),
            (r#"{"id":"b","disks":[{"path":"x","format":"nbd"}]}"#, "unknown image format"),
            (r#"{"id":"b","disks":[{"path":"x","formt":"raw"}]}"#, "formt"),
        ] {
            let error = parse(format!("{good}\n{line}\n").as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("m, line 2: ") && error.contains(why), "{error}");
        }
        assert!(parse(b"\n\n").unwrap_err().to_string().contains("no guest found in m"));
    }

    proptest! {
        #[test]
        fn a_written_manifest_reads_back(names in prop::collection::btree_set(prop::collection::vec(1u8.., 1..20), 1..9)) {
            let guests: Vec<Guest> = names
                .into_iter()
                .map(|name| Guest {
                    id: GuestId::of_name(&name),
                    disks: vec![GuestDisk {
                        snapshot: name.first().is_some_and(u8::is_ascii_digit).then(|| "before".to_owned()),
                        ..GuestDisk::new(Location::File(Path::new("/").join(OsString::from_vec(name))), None)
                    }],
                })
                .collect();
            let mut out = Vec::new();
            write(&guests, &mut out).unwrap();
            prop_assert_eq!(parse(&out).unwrap(), guests);
        }
    }
}

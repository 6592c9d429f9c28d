//! Warnings in JSON Lines.
//!
//! Version 2 has an object with the subject (`image`, `device`, `path`), the `cause` with its
//! `kind` and data, and the words in `text`, which are not read back. Version 1 had only the words:
//! they are read as [`Cause::Sentence`], or as [`Cause::MoreOmitted`] if they count omitted
//! warnings.

use super::{Cause, Subject, Warning};
use crate::jsonl::Text;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The beginning of a warning of version 1 that counts omitted warnings.
const VERSION_1_OMITTED: &str = "and more: ";

/// The fields of a warning. `docs/formats.md` describes them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WarningRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Text>,
    cause: Cause,
    /// The words for people. A reader ignores them.
    #[serde(default)]
    text: String,
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut image, mut device, mut path) = (None, None, None);
        let text = |bytes: &Vec<u8>| Some(Text(bytes.clone()));
        match &self.subject {
            Subject::Device(name) => device = text(name),
            Subject::Path { device: name, path: inside } => (device, path) = (text(name), text(inside)),
            Subject::Image(name) => image = text(name),
            Subject::Guest => {}
        }
        let cause = self.cause.clone();
        WarningRecord { image, device, path, cause, text: self.to_string() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Warning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WarningVisitor)
    }
}

/// Reads an object, or a string of version 1.
struct WarningVisitor;

impl<'de> Visitor<'de> for WarningVisitor {
    type Value = Warning;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a warning")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Warning, E> {
        let Some(omitted) = text.strip_prefix(VERSION_1_OMITTED) else { return Ok(Warning::sentence(text)) };
        let count = omitted.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(1);
        Ok(Warning::on_guest(Cause::MoreOmitted { count }))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Warning, A::Error> {
        let record = WarningRecord::deserialize(MapAccessDeserializer::new(map))?;
        let subject = match (record.image, record.device, record.path) {
            (None, None, None) => Subject::Guest,
            (Some(Text(image)), None, None) => Subject::Image(image),
            (None, Some(Text(device)), None) => Subject::Device(device),
            (None, Some(Text(device)), Some(Text(path))) => Subject::Path { device, path },
            _ => {
                let what = "a warning is about an image, a device, or a path on a device";
                return Err(de::Error::custom(what));
            }
        };
        Ok(Warning { subject, cause: record.cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileOperation, LockReason};

    #[test]
    fn warnings_are_frozen() {
        let failed = Cause::FileFailed { operation: FileOperation::Read, errno: None, offset: Some(512) };
        for (warning, json) in [
            (
                Warning::on_path("/dev/sda1", b"/b\xff", failed),
                r#"{"device":"/dev/sda1","path":{"base64":"L2L/"},"cause":{"kind":"file-failed","operation":"read","offset":512},"text":"/dev/sda1 /b\\377: cannot read it at byte 512"}"#,
            ),
            (
                Warning::on_device("/dev/sda2", Cause::Locked { reason: LockReason::NoKey }),
                r#"{"device":"/dev/sda2","cause":{"kind":"locked","reason":"no-key"},"text":"/dev/sda2: it is encrypted, and no key was given (--key DEVICE:key:PASSPHRASE)"}"#,
            ),
            (
                Warning::on_image("a.raw", Cause::ImageRoundedUp { size: 3, rounded: 512 }),
                r#"{"image":"a.raw","cause":{"kind":"image-rounded-up","size":3,"rounded":512},"text":"a.raw: the image has 3 bytes, no multiple of 512; it is read as a disk of 512 bytes that ends in zeroes"}"#,
            ),
            (
                Warning::on_guest(Cause::MoreOmitted { count: 7 }),
                r#"{"cause":{"kind":"more-omitted","count":7},"text":"7 more warnings were not kept"}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&warning).unwrap(), json);
            assert_eq!(serde_json::from_str::<Warning>(json).unwrap(), warning);
        }
    }

    #[test]
    fn words_of_version_1_are_kept() {
        let read = |json: &str| serde_json::from_str::<Warning>(json).unwrap();
        assert_eq!(read(r#""/dev/sda1: it is blank""#), Warning::sentence("/dev/sda1: it is blank"));
        let omitted = Warning::on_guest(Cause::MoreOmitted { count: 7 });
        assert_eq!(read(r#""and more: 7 like these""#), omitted);
    }

    #[test]
    fn other_warnings_are_refused() {
        for json in [
            r#"{"text":"no cause"}"#,
            r#"{"path":"/a","cause":{"kind":"directory-loop"}}"#,
            r#"{"image":"a","device":"/dev/sda","cause":{"kind":"copies-differ"}}"#,
            r#"{"cause":{"kind":"from-the-future"}}"#,
            r#"{"cause":{"kind":"copies-differ"},"more":1}"#,
            "7",
        ] {
            assert!(serde_json::from_str::<Warning>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_hostile_warning_is_escaped() {
        let json = r#"{"cause":{"kind":"call-failed","error":"\u001b[2Jgone\\012"}}"#;
        let warning: Warning = serde_json::from_str(json).unwrap();
        assert_eq!(warning.to_string(), r"\033[2Jgone\012");
    }
}

//! Where the documentation says more about an error.

use anyhow::Error;
use std::error::Error as StdError;
use std::fmt;
use virt_bmap::live::LiveError;
use virt_bmap::mapper::MapError;
use virt_bmap_image::OpenError;
use virt_bmap_map::rangelist::ListError;

/// The directory of the pages.
const DOCS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/");

/// The pages of the commands.
const COMMANDS: [(&str, &str); 13] = [
    ("appliance", "appliance.md"),
    ("changed", "questions.md#what-changed"),
    ("convert", "formats.md"),
    ("damaged", "questions.md#damage"),
    ("diff", "questions.md#differences"),
    ("fleet", "fleet.md"),
    ("list", "questions.md#files"),
    ("lookup", "questions.md#offsets"),
    ("operations", "operations.md#after-the-fact"),
    ("report", "report.md"),
    ("trace", "trace.md"),
    ("update", "update.md"),
    ("verify", "sources.md#encase-images-e01"),
];

/// The command with its page, and those of its subcommands, at the end of the long help.
pub(super) fn in_help(command: clap::Command) -> clap::Command {
    let with_page = |command: clap::Command, page: &str| {
        let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        command.after_long_help(format!("{help}\n\nDocumentation: {DOCS}{page}"))
    };
    COMMANDS.iter().fold(with_page(command, "mapping.md"), |command, (name, page)| {
        command.mut_subcommand(name, |it| with_page(it, page))
    })
}

/// A page, or a section of one, by its name in `docs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page(&'static str);

impl Page {
    /// The first map, step by step.
    pub(super) const START: Self = Self("getting-started.md");
    /// What newcomers stumble over.
    pub(super) const TROUBLE: Self = Self("getting-started.md#when-something-goes-wrong");
    const LISTS: Self = Self("questions.md#lists");
    const LIVE: Self = Self("live.md");
    const LIVE_REFUSED: Self = Self("live.md#when-it-is-refused");
    const SEGMENTS: Self = Self("sources.md#a-raw-disk-in-segments");
    const OVA: Self = Self("sources.md#appliances-ova");
    const E01: Self = Self("sources.md#encase-images-e01");
    const COMPRESSED: Self = Self("sources.md#compressed-images");
    const ENCRYPTED: Self = Self("sources.md#encrypted-images");
    const REFUSED: Self = Self("sources.md#what-is-refused");
    const TRUST: Self = Self("security.md#the-image");
    /// What the warnings of a map mean.
    pub(super) const WARNINGS: Self = Self("formats.md#warnings");

    /// The page that helps with an error, if there is one.
    pub(super) fn of(error: &Error) -> Option<Self> {
        error.chain().find_map(Self::of_cause)
    }

    fn of_cause(cause: &(dyn StdError + 'static)) -> Option<Self> {
        if let Some(error) = cause.downcast_ref::<MapError>() {
            return match error {
                MapError::Open(error) => Self::of_image(error),
                MapError::Launch(_) => Some(Self::TROUBLE),
                _ => None,
            };
        }
        if let Some(error) = cause.downcast_ref::<OpenError>() {
            return Self::of_image(error);
        }
        if cause.is::<LiveError>() {
            return Some(Self::LIVE_REFUSED);
        }
        matches!(cause.downcast_ref::<ListError>()?, ListError::Empty | ListError::Unknown { .. })
            .then_some(Self::LISTS)
    }

    fn of_image(error: &OpenError) -> Option<Self> {
        Some(match error {
            OpenError::NotFirstSegment { .. }
            | OpenError::NoSegment { .. }
            | OpenError::SegmentSize { .. }
            | OpenError::TooManySegments { .. } => Self::SEGMENTS,
            OpenError::Locked { .. } => Self::LIVE,
            OpenError::Encrypted { .. } | OpenError::WrongKey { .. } => Self::ENCRYPTED,
            OpenError::Foreign { .. } | OpenError::NotAsNamed { .. } => Self::REFUSED,
            OpenError::Untrusted { .. } | OpenError::RawByName { .. } => Self::TRUST,
            OpenError::Ewf { .. } => Self::E01,
            OpenError::NotUnpacked { .. }
            | OpenError::CannotUnpack { .. }
            | OpenError::UnpackLimit { .. } => Self::COMPRESSED,
            OpenError::Ova { .. } | OpenError::SeveralDisks { .. } | OpenError::SeveralGuests { .. } => {
                Self::OVA
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DOCS}{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// The test of links in the documentation does not see these.
    #[test]
    fn each_section_is_there() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let of_errors = [
            Page::START,
            Page::TROUBLE,
            Page::LISTS,
            Page::LIVE,
            Page::LIVE_REFUSED,
            Page::SEGMENTS,
            Page::OVA,
            Page::E01,
            Page::COMPRESSED,
            Page::ENCRYPTED,
            Page::REFUSED,
            Page::TRUST,
            Page::WARNINGS,
        ];
        for name in of_errors.iter().map(|page| page.0).chain(COMMANDS.map(|(_, page)| page)) {
            let (page, section) = name.split_once('#').unwrap_or((name, ""));
            let text = fs::read_to_string(docs.join(page)).unwrap();
            let anchor = |heading: &str| {
                let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect::<String>()
            };
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(section.is_empty() || headings.any(|heading| anchor(heading) == section), "{name}");
        }
    }
}

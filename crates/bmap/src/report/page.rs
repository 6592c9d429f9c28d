//! The page: one HTML file with its style, its script and its data inside.
//!
//! The page loads nothing: its Content-Security-Policy allows only the one style and the one
//! script, identified by their SHA-256. Data is in elements that browsers do not run. All text from
//! a guest is in them, and reaches the page only through `textContent`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};

use super::columns::Columns;

const STYLE: &str = include_str!("web/style.css");

/// The script's files, each with a job of its own. In the page they are one.
const SCRIPT: &str = concat!(
    "\"use strict\";\n",
    include_str!("web/decode.js"),
    include_str!("web/model.js"),
    include_str!("web/words.js"),
    include_str!("web/hilbert.js"),
    include_str!("web/colours.js"),
    include_str!("web/draw.js"),
    include_str!("web/search.js"),
    include_str!("web/tables.js"),
    include_str!("web/details.js"),
    include_str!("web/playback.js"),
    include_str!("web/main.js"),
    include_str!("web/input.js"),
    include_str!("web/start.js"),
);

const BODY: &str = include_str!("web/body.html");

/// Writes the page. `about` is its JSON, `columns` are its numbers and names.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(
    out: &mut impl Write,
    about: &impl serde::Serialize,
    columns: &Columns,
) -> io::Result<()> {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
        source(SCRIPT),
        source(STYLE)
    );
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>Block map</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{BODY}"
    )?;
    writeln!(out, "<script type=\"application/json\" id=\"about\">{}</script>", embedded(about)?)?;
    write!(out, "<script type=\"application/octet-stream\" id=\"columns\">")?;
    columns.write(&mut *out)?;
    writeln!(out, "</script>\n<script>{SCRIPT}</script>\n</body>\n</html>")
}

/// The source expression of a content-security policy for this style or script.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// JSON for a script element: it can neither end the element nor begin a comment in it, and is also
/// valid JavaScript.
fn embedded(value: &impl serde::Serialize) -> io::Result<String> {
    let json = serde_json::to_string(value)?;
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => text.push(character),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_leave_its_element() {
        let hostile = "</script><!--<script>&amp;\u{2028}\u{2029}\"\\";
        let text = embedded(&hostile).unwrap();
        assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), hostile);
    }

    #[test]
    fn the_policy_knows_the_script_and_the_style() {
        let mut page = Vec::new();
        write(&mut page, &"about", &Columns::default()).unwrap();
        let page = String::from_utf8(page).unwrap();
        let policy = page.split("http-equiv=\"Content-Security-Policy\" content=\"").nth(1).unwrap();
        let policy = policy.split('"').next().unwrap();
        let inside = |begin: &str, end: &str| {
            let (_, rest) = page.split_once(begin).unwrap();
            rest.split_once(end).unwrap().0
        };
        for (directive, text) in
            [("script-src", inside("<script>", "</script>")), ("style-src", inside("<style>", "</style>"))]
        {
            assert!(policy.contains(&format!("{directive} {};", source(text))), "{directive}: {policy}");
        }
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
    }

    #[test]
    fn the_template_stays_within_the_policy() {
        for (name, text) in [("body.html", BODY), ("the script", SCRIPT), ("style.css", STYLE)] {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "http:",
                "https:",
                "style=\"",
                "url(",
            ] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--") && !STYLE.contains("</style"));
    }
}

//! Errors in messages.

/// An error and its causes in one line, the outermost first.
///
/// ```
/// use std::io;
/// use virt_bmap_ranges::error_chain;
///
/// #[derive(Debug, thiserror::Error)]
/// #[error("the map could not be read")]
/// struct Unreadable(#[source] io::Error);
///
/// let error = Unreadable(io::Error::other("no such device"));
/// assert_eq!(error_chain(&error), "the map could not be read: no such device");
/// ```
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

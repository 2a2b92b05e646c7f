//! Formats an error and its causes on one line.

use std::error::Error as StdError;

/// The message of an error, followed by those of all its sources.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // The message of many errors already contains that of their source.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

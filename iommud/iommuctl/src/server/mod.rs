//! What a running server says: its texts, read into values.

pub mod activity;
pub mod domain;
pub mod fault;
pub mod lines;
pub mod machine;
pub mod status;

use iommu_client::{Connection, Error};

/// Where texts come from.
pub trait Texts {
    /// The text at a path of the scheme.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    fn text(&self, path: &str) -> Result<String, Error>;

    /// The names in a directory of the scheme.
    ///
    /// # Errors
    /// As [`Texts::text`].
    fn names(&self, path: &str) -> Result<Vec<String>, Error>;
}

impl Texts for Connection {
    fn text(&self, path: &str) -> Result<String, Error> {
        Ok(printable(&Self::text(self, path)?))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        Ok(Self::names(self, path)?.iter().map(|name| printable(name)).collect())
    }
}

/// A text without control characters but line feeds: names that firmware or a program chose cannot steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let steers = |c: char| c.is_control() && c != '\n';
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The texts of all objects in a directory. An object that goes between the two requests is left out.
///
/// # Errors
/// As [`Texts::text`].
pub fn all(texts: &dyn Texts, directory: &str) -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for name in texts.names(directory)? {
        match texts.text(&format!("{directory}/{name}")) {
            Ok(text) => found.push((name, text)),
            Err(error) if error.refusal() == Some(iommu_client::Refusal::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a: b\nc\x1b[2J\r\u{9b}"), "a: b\nc\u{fffd}[2J\u{fffd}\u{fffd}");
    }
}

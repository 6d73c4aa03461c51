//! Names that users choose: topics, groups, producers, nodes. A value that exists is valid.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits::NAME_BYTES_MAX;
use super::pattern::is_pattern;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The text is longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} bytes, this one has {0}: {1:?}...")]
    TooLong(usize, String),
    /// The text has a character that names do not have.
    #[error(
        "name {name:?}: character {character:?} is not allowed; use letters, digits and the characters . _ - / : and start with a letter, a digit or _"
    )]
    Character {
        /// The text that was refused.
        name: String,
        /// The first character that is not allowed where it stands.
        character: char,
    },
    /// No word of the text stands for others.
    #[error("{0} is a name and no pattern: one of the words between its dots must be * or #")]
    NoPattern(String),
}

/// A name: 1 to 255 bytes of ASCII letters, digits and `. _ - / :`, starting with a letter, a digit or `_`; or a
/// [pattern](super::pattern) of such names, where one is allowed.
///
/// `*` and `#` are kept out of names because patterns use them; spaces and quotes because names stand in
/// commands, SQL and metrics. Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len(), text.chars().take(32).collect()));
        }
        let refused = text.chars().enumerate().find(|&(at, c)| {
            !(c.is_ascii_alphanumeric() || c == '_' || (at > 0 && matches!(c, '.' | '-' | '/' | ':')))
        });
        match refused {
            Some((_, character)) => Err(NameError::Character { name: text.to_owned(), character }),
            None => Ok(Self(text.into())),
        }
    }

    /// Checks `text` and makes it the name of a pattern: words between dots, of which one at least is `*` or `#`.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn pattern(text: &str) -> Result<Self, NameError> {
        // What stands for a word is as long as the shortest word: with a letter in its place it must be a name.
        let words: Vec<&str> =
            text.split('.').map(|word| if matches!(word, "*" | "#") { "x" } else { word }).collect();
        Self::new(&words.join("."))?;
        if is_pattern(text) { Ok(Self(text.into())) } else { Err(NameError::NoPattern(text.to_owned())) }
    }

    /// Whether it is a pattern.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        is_pattern(&self.0)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if is_pattern(&text) { Self::pattern(&text) } else { Self::new(&text) }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_field_are_accepted() {
        for text in ["orders", "eu/orders.v2", "a", "_x", "7", "tenant:orders-dead"] {
            assert_eq!(Name::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn patterns_are_names_with_words_that_stand_for_others() {
        for text in ["orders.*", "#", "*.eu.#", "a/b.*"] {
            let pattern = Name::pattern(text).unwrap();
            assert!(pattern.is_pattern());
            assert_eq!(Name::try_from(text.to_owned()), Ok(pattern));
        }
        assert!(matches!(Name::pattern("orders"), Err(NameError::NoPattern(_))));
        for text in ["orders.*x", "a b.*", "", &format!("*.{}", "x".repeat(NAME_BYTES_MAX))] {
            assert!(Name::pattern(text).is_err(), "{text}");
        }
        assert!(Name::new("orders.*").is_err());
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_the_reason() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        for (text, character) in
            [("a b", ' '), (".hidden", '.'), ("orders.*", '*'), ("größe", 'ö'), ("-x", '-')]
        {
            assert_eq!(Name::new(text), Err(NameError::Character { name: text.into(), character }));
        }
        assert!(matches!(Name::new(&"x".repeat(10_000)), Err(NameError::TooLong(10_000, _))));
        assert!(Name::new(&"x".repeat(NAME_BYTES_MAX)).is_ok());
    }
}

//! Where a message is in a topic, as people see it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::Offset;
use super::limits::PRIORITY_MAX;

/// The place of a message in a topic: the messages of each priority have offsets of their own.
///
/// As a text it is the offset, with the priority and a colon before it unless that is 0: `17`, `9:17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The priority.
    pub priority: u8,
    /// The offset among the messages of this priority.
    pub offset: Offset,
}

impl From<Offset> for Position {
    fn from(offset: Offset) -> Self {
        Self { priority: 0, offset }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.priority {
            0 => self.offset.fmt(f),
            priority => f.pad(&format!("{priority}:{}", self.offset)),
        }
    }
}

/// Why a text is no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no offset: give a number, or priority and number as in 9:17")]
pub struct PositionError(String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (priority, offset) = text.split_once(':').unwrap_or(("0", text));
        match (priority.parse(), offset.parse()) {
            (Ok(priority), Ok(offset)) if priority <= PRIORITY_MAX => {
                Ok(Self { priority, offset: Offset(offset) })
            }
            _ => Err(PositionError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_what_its_text_says() {
        for (text, priority, offset) in [("0", 0, 0), ("17", 0, 17), ("9:17", 9, 17)] {
            let position = Position { priority, offset: Offset(offset) };
            assert_eq!(text.parse(), Ok(position));
            assert_eq!(position.to_string(), text);
        }
        assert_eq!("0:3".parse(), Ok(Position::from(Offset(3))));
        for text in ["", ":", "10:1", "1:", ":1", "-1", "1:2:3", "x"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }
}

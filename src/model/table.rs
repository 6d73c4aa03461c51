//! Answers of a query: rows of values under named columns.

use serde::{Deserialize, Serialize};

/// What a query is answered with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Names of the columns. Two may be the same.
    pub columns: Vec<String>,
    /// The rows, each with a value for each column.
    pub rows: Vec<Vec<Value>>,
}

/// A value. The order stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// There is none.
    Null,
    /// A whole number.
    Integer(i64),
    /// A number that need not be whole.
    Real(Real),
    /// A text.
    Text(String),
    /// Bytes: body and key of a message, for example.
    Bytes(Vec<u8>),
}

impl Value {
    /// About the memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let content = match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Null | Self::Integer(_) | Self::Real(_) => 0,
        };
        size_of::<Self>() + content
    }
}

/// A number that need not be whole. The same if and only if its bits are, so that an answer is equal to itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

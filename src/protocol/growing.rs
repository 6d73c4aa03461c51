//! Structs that may grow within a version of the protocol: fields are added at their end.
//!
//! On the wire such a struct is bytes with their length in front, and in these its fields. Whoever reads it passes over
//! what is behind the fields that it knows, so that a node and a client of different builds understand each other. In a
//! form for people, as JSON, it is the struct itself.
//!
//! A field that was added since is read by [`added`]: whoever is older does not send it.
//!
//! Used as `#[serde(with = "growing")]`, and [`list`] for a list of them. Nothing in the middle of a struct grows but what
//! is marked like that itself.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frame;

/// A struct that may grow.
struct Growing<T>(T);

impl<T: Serialize> Serialize for Growing<&T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return self.0.serialize(serializer);
        }
        serializer.serialize_bytes(&frame::encoded(self.0).map_err(S::Error::custom)?)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Growing<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return T::deserialize(deserializer).map(Self);
        }
        let bytes = deserializer.deserialize_byte_buf(Octets)?;
        frame::decoded(&bytes).map(Self).map_err(D::Error::custom)
    }
}

/// Takes bytes as they are.
struct Octets;

impl serde::de::Visitor<'_> for Octets {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }
}

/// Writes a struct that may grow.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    Growing(value).serialize(serializer)
}

/// Reads a struct that may have grown.
///
/// # Errors
/// Those of the deserializer, and where the fields that are known are not there.
pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Growing::deserialize(deserializer).map(|growing| growing.0)
}

/// Reads a field at the end of a struct that may grow, which an older build does not send: its default then.
///
/// # Errors
/// Those of the deserializer of a form for people, which says by itself what is missing. On the wire none: what is cut off
/// is taken for what is not there.
pub fn added<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    if deserializer.is_human_readable() {
        return T::deserialize(deserializer);
    }
    Ok(T::deserialize(deserializer).unwrap_or_default())
}

/// Lists of structs that may grow.
pub mod list {
    use super::{Deserialize, DeserializeOwned, Deserializer, Growing, Serialize, Serializer};

    /// Writes the list.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Serialize, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(Growing))
    }

    /// Reads the list.
    ///
    /// # Errors
    /// Those of the deserializer, and where the fields that are known are not there.
    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let values = Vec::<Growing<T>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|growing| growing.0).collect())
    }
}

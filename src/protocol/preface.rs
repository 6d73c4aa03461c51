//! The first eight bytes in each direction: magic and version.
//!
//! ```text
//! client   "BATON", lowest version it speaks u8, highest u8, '\n'
//! node     "BATON", version chosen u8 (0: none in common), highest version the node speaks u8, '\n'
//! ```
//!
//! Frames of the chosen version follow in both directions.

use super::error::DecodeError;
use super::{VERSION_MAX, VERSION_MIN};

/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 8;

const MAGIC: &[u8; 5] = b"BATON";

/// The preface of a client of this library.
#[must_use]
pub const fn client() -> [u8; PREFACE_BYTES] {
    [b'B', b'A', b'T', b'O', b'N', VERSION_MIN, VERSION_MAX, b'\n']
}

/// The preface with which a node of this library answers `client`, and the version chosen, if there is one.
///
/// # Errors
/// Where `client` is not a preface.
pub fn answer(client: [u8; PREFACE_BYTES]) -> Result<([u8; PREFACE_BYTES], Option<u8>), DecodeError> {
    let (min, max) = versions(client)?;
    let chosen = max.min(VERSION_MAX);
    let chosen = (chosen >= min.max(VERSION_MIN)).then_some(chosen);
    Ok(([b'B', b'A', b'T', b'O', b'N', chosen.unwrap_or(0), VERSION_MAX, b'\n'], chosen))
}

/// The version that the node chose, or `Err` with the highest that it speaks.
///
/// # Errors
/// Where `node` is not a preface.
pub fn chosen(node: [u8; PREFACE_BYTES]) -> Result<Result<u8, u8>, DecodeError> {
    let (chosen, highest) = versions(node)?;
    Ok(if (VERSION_MIN..=VERSION_MAX).contains(&chosen) { Ok(chosen) } else { Err(highest) })
}

fn versions(preface: [u8; PREFACE_BYTES]) -> Result<(u8, u8), DecodeError> {
    match preface.strip_prefix(MAGIC) {
        Some(&[first, second, b'\n']) => Ok((first, second)),
        _ => Err(DecodeError::Magic(preface)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_settle_on_the_highest_version_in_common() {
        let (node, version) = answer(client()).unwrap();
        assert_eq!((&node, version), (b"BATON\x01\x01\n", Some(1)));
        assert_eq!(chosen(node), Ok(Ok(1)));
        assert_eq!(answer(*b"BATON\x01\x09\n").unwrap().1, Some(1));
    }

    #[test]
    fn a_client_that_is_too_new_learns_the_version_of_the_node() {
        let (node, version) = answer(*b"BATON\x02\x03\n").unwrap();
        assert_eq!((&node, version), (b"BATON\x00\x01\n", None));
        assert_eq!(chosen(node), Ok(Err(1)));
    }

    #[test]
    fn another_protocol_is_not_a_preface() {
        assert!(matches!(answer(*b"GET / HT"), Err(DecodeError::Magic(_))));
        assert!(matches!(answer(*b"BATON\x01\x01\0"), Err(DecodeError::Magic(_))));
    }
}

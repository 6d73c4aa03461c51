//! Frames: where one ends, what kind it is, and the codec of its head.
//!
//! ```text
//! u32   length of what follows, little-endian
//! u8    kind
//! head  bincode 2, standard configuration (little-endian variable-length integers), one struct per kind
//! rest  encoded messages, for the kinds that carry them; see `model::message`
//! ```
//!
//! The only module besides the codec of records that names `bincode`.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::DecodeError;

/// Bytes that the head of a frame may allocate while it is decoded.
pub const HEAD_BYTES_MAX: usize = 4 << 20;
/// The same for the frames of a node that hold lists as long as its catalog or as a prefetch.
pub const LIST_BYTES_MAX: usize = 256 << 20;

type Config<const BYTES_MAX: usize> = Configuration<LittleEndian, Varint, Limit<BYTES_MAX>>;

const fn config<const BYTES_MAX: usize>() -> Config<BYTES_MAX> {
    bincode::config::standard().with_limit::<BYTES_MAX>()
}

/// A frame that has been cut out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// What the frame is.
    pub kind: u8,
    /// Head and messages.
    pub payload: Bytes,
}

impl RawFrame {
    /// Cuts the next frame off `input`. `None` where it is not whole yet; `input` then stays as it is.
    ///
    /// # Errors
    /// Where the frame is longer than `bytes_max` or has no kind. The stream cannot go on.
    pub fn cut(input: &mut BytesMut, bytes_max: u64) -> Result<Option<Self>, DecodeError> {
        let Some(len) = input.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) else {
            return Ok(None);
        };
        if len as u64 > bytes_max {
            return Err(DecodeError::FrameTooLarge { len: len as u64, max: bytes_max });
        }
        if len == 0 {
            return Err(DecodeError::Empty);
        }
        if input.len() < 4 + len {
            return Ok(None);
        }
        input.advance(4);
        let mut payload = input.split_to(len).freeze();
        Ok(Some(Self { kind: payload.get_u8(), payload }))
    }

    /// Reads the head and answers it with what lies behind it.
    ///
    /// # Errors
    /// Where the head is not of type `T`.
    pub fn head<T: DeserializeOwned>(&self) -> Result<(T, Bytes), DecodeError> {
        self.head_within::<T, HEAD_BYTES_MAX>()
    }

    /// Reads a head that may hold a long list, and answers it with what lies behind it.
    ///
    /// # Errors
    /// Where the head is not of type `T`.
    pub fn list_head<T: DeserializeOwned>(&self) -> Result<(T, Bytes), DecodeError> {
        self.head_within::<T, LIST_BYTES_MAX>()
    }

    fn head_within<T: DeserializeOwned, const BYTES_MAX: usize>(&self) -> Result<(T, Bytes), DecodeError> {
        let (head, used) = bincode::serde::decode_from_slice(&self.payload, config::<BYTES_MAX>())
            .map_err(|error| DecodeError::Head { kind: self.kind, what: in_words(&error) })?;
        Ok((head, self.payload.slice(used..)))
    }

    /// Reads the head of a frame to which fields may be added within a version; those that are not known are passed over.
    ///
    /// # Errors
    /// Where the head is not of type `T`.
    pub fn growing<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        self.head().map(|(head, _)| head)
    }

    /// Reads the head of a frame that carries no messages.
    ///
    /// # Errors
    /// Where the head is not of type `T`, or something lies behind it.
    pub fn whole<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        let (head, rest) = self.head()?;
        if rest.is_empty() {
            return Ok(head);
        }
        Err(DecodeError::Trailing { kind: self.kind, count: rest.len() })
    }
}

/// The fields of a struct, as they stand in a head.
pub(super) fn encoded<T: Serialize>(value: &T) -> Result<Vec<u8>, bincode::error::EncodeError> {
    bincode::serde::encode_to_vec(value, config::<HEAD_BYTES_MAX>())
}

/// A struct whose fields stand at the beginning of `bytes`; in words what is wrong, where they do not.
pub(super) fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let decoded = bincode::serde::decode_from_slice(bytes, config::<HEAD_BYTES_MAX>());
    decoded.map(|(value, _)| value).map_err(|error| in_words(&error))
}

/// What the decoder says, for people who do not know the decoder.
fn in_words(error: &bincode::error::DecodeError) -> String {
    use bincode::error::DecodeError as E;
    match error {
        E::UnexpectedEnd { .. } => "it ends too early".to_owned(),
        E::LimitExceeded => "it is longer than the limit, or a length in it is".to_owned(),
        E::Utf8 { .. } => "a text is not UTF-8".to_owned(),
        E::InvalidBooleanValue(byte) => format!("{byte} is neither 0 nor 1"),
        E::UnexpectedVariant { found, .. } => format!("there is no choice {found}"),
        E::Other(text) => (*text).to_owned(),
        E::OtherString(text) => text.clone(),
        // Types of integers and the like: the head is of another layout.
        _ => "it is not laid out as this version of the protocol says".to_owned(),
    }
}

/// Appends length, kind and head of a frame behind which `messages_len` bytes of messages will follow.
///
/// # Panics
/// Where the frame would not fit into a length of 32 bits: the callers bound what they put into one.
pub fn put_head<T: Serialize>(out: &mut BytesMut, kind: u8, head: &T, messages_len: usize) {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind);
    bincode::serde::encode_into_writer(head, Writer(out), config::<HEAD_BYTES_MAX>())
        .expect("heads of this crate can be encoded");
    let len =
        u32::try_from(out.len() - start - 4 + messages_len).expect("frames are bounded by frame_bytes_max");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// Lets bincode append to a buffer.
struct Writer<'a>(&'a mut BytesMut);

impl bincode::enc::write::Writer for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.put_slice(bytes);
        Ok(())
    }
}

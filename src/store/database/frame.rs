//! What a write-ahead log consists of: its header and its frames, and when they are valid.
//!
//! Reads nothing and decides nothing.
//!
//! # Format, SQLite's version 3007000
//!
//! ```text
//!       0  u32  0x377f0682, or 0x377f0683 where the words that are summed are big-endian
//!       4  u32  3007000
//!       8  u32  bytes of a page: a power of two from 512 to 65536
//!      12  u32  how often the log was started over
//!      16       two salts of 4 bytes, changed whenever it is started over
//!      24  u32  checksum of bytes 0 to 24, two words      28  u32
//!      32       frames
//!
//!       0  u32  page number, not 0
//!       4  u32  commit mark: pages of the database after the commit that this frame ends; 0 in every other frame
//!       8       the salts of the header
//!      16  u32  checksum, two words      20  u32
//!      24       the page
//! ```
//!
//! Numbers are big-endian. A checksum continues the one before it, the header's begins with (0, 0): for each two
//! words (a, b) that are summed, `s0 += a + s1` and then `s1 += b + s0`. A frame sums its first 8 bytes and its page.
//! A frame is valid if and only if its page number is not 0, its salts are those of the header, its checksum is
//! right, and so are all before it. Behind the last frame there may be anything: zeros, frames with earlier salts
//! from before the log was started over, and frames of transactions that were rolled back.

/// Bytes of the header of a log.
pub(super) const HEADER_BYTES: usize = 32;
/// Bytes before the page of a frame.
pub(super) const FRAME_HEADER_BYTES: usize = 24;

const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
const VERSION: u32 = 3_007_000;

/// A valid header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    order: Order,
    page_bytes: u32,
    /// What every frame of this log has.
    pub(super) salts: [u8; 8],
    /// What the first frame continues.
    pub(super) checksum: Checksum,
}

impl Header {
    /// Reads a header; `None` where it is not valid.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let order = match number(0) {
            MAGIC_LITTLE => Order::Little,
            MAGIC_BIG => Order::Big,
            _ => return None,
        };
        let page_bytes = number(8);
        let page_is_valid = page_bytes.is_power_of_two() && (512..=65536).contains(&page_bytes);
        let checksum = Checksum(0, 0).over(order, &bytes[..24]);
        let is_valid = number(4) == VERSION && page_is_valid && checksum == Checksum(number(24), number(28));
        let salts = *bytes[16..].first_chunk()?;
        is_valid.then_some(Self { order, page_bytes, salts, checksum })
    }

    /// The header of a log that has this frame; `None` where the frame says nothing.
    pub(super) fn of_frame(frame: &[u8], page_bytes: u32) -> Option<Self> {
        let salts = *frame.get(8..16)?.first_chunk()?;
        let mut header = Self { order: Order::Little, page_bytes, salts, checksum: Checksum(0, 0) };
        header.checksum = header.encoded_checksum();
        (salts != [0; 8]).then_some(header)
    }

    /// Its bytes, as those of a log that was never started over.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let magic = match self.order {
            Order::Little => MAGIC_LITTLE,
            Order::Big => MAGIC_BIG,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.salts);
        let Checksum(one, other) = Checksum(0, 0).over(self.order, &bytes[..24]);
        bytes[24..28].copy_from_slice(&one.to_be_bytes());
        bytes[28..].copy_from_slice(&other.to_be_bytes());
        bytes
    }

    /// The checksum that the first frame continues where the header is as [`encode`](Self::encode) has it.
    pub(super) fn encoded_checksum(&self) -> Checksum {
        Checksum(0, 0).over(self.order, &self.encode()[..24])
    }

    /// Makes a frame valid behind one with the checksum `before`. Answers its own.
    pub(super) fn sum(&self, frame: &mut [u8], before: Checksum) -> Checksum {
        frame[8..16].copy_from_slice(&self.salts);
        let sum = Frame { header: self, bytes: frame }.checksum(before);
        frame[16..20].copy_from_slice(&sum.0.to_be_bytes());
        frame[20..24].copy_from_slice(&sum.1.to_be_bytes());
        sum
    }

    /// Bytes of a frame.
    pub(super) const fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_bytes as usize
    }

    /// Whether a frame that begins with these bytes was written since the log was last started over.
    pub(super) fn has_salts_of(&self, frame: &[u8; FRAME_HEADER_BYTES]) -> bool {
        frame[8..16] == self.salts
    }
}

/// What may be a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    /// The header of its log.
    pub(super) header: &'a Header,
    /// As many bytes as a frame has.
    pub(super) bytes: &'a [u8],
}

impl Frame<'_> {
    fn word(self, at: usize) -> [u8; 4] {
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]]
    }

    /// The commit mark.
    pub(super) fn mark(self) -> [u8; 4] {
        self.word(4)
    }

    fn page(&self) -> &[u8] {
        &self.bytes[FRAME_HEADER_BYTES..]
    }

    /// The checksum that it has.
    pub(super) fn stored_checksum(self) -> Checksum {
        Checksum(u32::from_be_bytes(self.word(16)), u32::from_be_bytes(self.word(20)))
    }

    /// The checksum that it must have behind a frame with the checksum `before`.
    pub(super) fn checksum(self, before: Checksum) -> Checksum {
        before.over(self.header.order, &self.bytes[..8]).over(self.header.order, self.page())
    }

    fn has_salts(self) -> bool {
        self.bytes[8..16] == self.header.salts
    }

    /// Whether it is valid behind a valid frame, or the header, with the checksum `before`.
    pub(super) fn is_valid(self, before: Checksum) -> bool {
        self.word(0) != [0; 4] && self.has_salts() && self.checksum(before) == self.stored_checksum()
    }

    /// Whether a frame that is not valid was the last of its commit: by its mark, where the salts beside it or the
    /// checksum are right; or where the checksum is right but for one bit that the mark has lost.
    pub(super) fn ended_commit(self, before: Checksum) -> bool {
        if self.mark() != [0; 4] {
            return self.has_salts() || self.checksum(before) == self.stored_checksum();
        }
        let order = self.header.order;
        let after_head = self.stored_checksum().without(order, self.page());
        let number = after_head.0.wrapping_sub(before.0).wrapping_sub(before.1);
        let mark = after_head.1.wrapping_sub(before.1).wrapping_sub(after_head.0);
        self.has_salts() && order.bytes(number) == self.word(0) && mark.is_power_of_two()
    }
}

/// The order of bytes in a word that is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn words(self, [a, b, c, d, e, f, g, h]: [u8; 8]) -> (u32, u32) {
        match self {
            Self::Little => (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])),
            Self::Big => (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])),
        }
    }

    const fn bytes(self, word: u32) -> [u8; 4] {
        match self {
            Self::Little => word.to_le_bytes(),
            Self::Big => word.to_be_bytes(),
        }
    }
}

/// A running checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checksum(u32, u32);

impl Checksum {
    /// Continued over `bytes`, a multiple of 8.
    fn over(self, order: Order, bytes: &[u8]) -> Self {
        bytes.as_chunks().0.iter().fold(self, |Self(s0, s1), pair| {
            let (a, b) = order.words(*pair);
            let s0 = s0.wrapping_add(a).wrapping_add(s1);
            Self(s0, s1.wrapping_add(b).wrapping_add(s0))
        })
    }

    /// What it was before it was continued over `bytes`.
    fn without(self, order: Order, bytes: &[u8]) -> Self {
        bytes.as_chunks().0.iter().rev().fold(self, |Self(s0, s1), pair| {
            let (a, b) = order.words(*pair);
            let s1 = s1.wrapping_sub(b).wrapping_sub(s0);
            Self(s0.wrapping_sub(a).wrapping_sub(s1), s1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_both_orders_are_taken_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        for order in [Order::Little, Order::Big] {
            let start = Checksum(7, 9);
            let sum = start.over(order, &bytes);
            assert_ne!(sum, start.over(order, &[&bytes[8..], &bytes[..8]].concat()));
            assert_eq!(sum.without(order, &bytes), start);
        }
    }
}

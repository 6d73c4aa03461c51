//! One block of the control file: who owns an epoch, byte by byte.
//!
//! # Format, version 1 of the store
//!
//! Integers are little-endian. A block is [`BLOCK_BYTES`] long; what is not listed is zero.
//!
//! ```text
//!    0   8  magic "BATONCTL"
//!    8   4  format of the store as a whole
//!   12   4  state: 1 founding, 2 active, 3 released
//!   16   8  epoch
//!   24  16  incarnation of the owner
//!   40  16  store id
//!   56  16  boot id of the owner's kernel
//!   72   8  pid namespace (inode number)
//!   80   8  time namespace (inode number, 0 where there is none)
//!   88   8  start time of the process, clock ticks since the boot
//!   96   4  pid
//!  100   4  mode of the store: 1 database, 2 file
//!  104   8  when the epoch was claimed, milliseconds since 1970 by the owner's clock; for people
//!  112   8  when it was released, likewise; 0 while it is not
//!  120   1  bytes of the node's name, 1 to 255
//!  121   1  bytes of the client address, 0 to 255
//!  122   1  1 once the epoch has begun, 0 before: see [`Block::has_begun`]
//!  124 255  the node's name
//!  380 255  the client address
//!  640   8  inode number of the lock file
//!  648   8  when that inode was changed last, nanoseconds since 1970
//! 4092   4  CRC32C of the bytes 0..4092
//! ```
//!
//! A block counts if and only if its checksum, its magic and every value are right; a block whose bytes are all zero
//! was never written. The places of magic, format and checksum stay the same in every format, so that an old binary
//! can tell "newer" from "damaged". The format of the newest block is that of the store as a whole: it is raised when
//! the version of any other file is, so one look at it says whether a binary can read them all.

use uuid::Uuid;

use super::identity::Identity;
use super::lock::LockFile;
use crate::model::id::Epoch;
use crate::model::mode::Mode;
use crate::model::name::Name;
use crate::model::time::Timestamp;
use crate::model::version::{FORMAT_WRITTEN, FORMATS_READ};

/// Length of a block: a page, so that it can be read past the page cache.
pub const BLOCK_BYTES: usize = 4096;

/// The most bytes of a client address.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Bytes at the start of a block that its owner never changes but for its state, which is read as zero here.
pub const HEAD_BYTES: usize = 40;

const MAGIC: &[u8; 8] = b"BATONCTL";
const STATE: std::ops::Range<usize> = 12..16;
const BEGUN_AT: usize = 122;
const NODE_AT: usize = 124;
const ADDRESS_AT: usize = 380;
const LOCK_FILE_AT: usize = 640;
const SUM_AT: usize = BLOCK_BYTES - 4;

/// How far the owner of an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It found no store and makes one; its store id counts only once the state is another one.
    Founding,
    /// It serves, or it died or lost on the way.
    Active,
    /// It has ended by itself: nothing of it will be written any more.
    Released,
}

/// Who owns an epoch, and of which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The epoch.
    pub epoch: Epoch,
    /// How far its owner has come.
    pub state: State,
    /// Whether the manifest of the epoch was made and, in file mode, the first segment of its journal. Written when both
    /// are durable and before anything of the epoch is confirmed: so where one of them is missing afterwards, it is lost.
    pub has_begun: bool,
    /// The process that claimed it.
    pub owner: Identity,
    /// Where clients reach the owner.
    pub address: Address,
    /// The file whose lock the owner had when it claimed.
    pub lock_file: LockFile,
    /// The store.
    pub store_id: Uuid,
    /// Where the store keeps its records.
    pub mode: Mode,
    /// When the epoch was claimed, by the owner's clock.
    pub claimed_at: Timestamp,
    /// When it was released, by the owner's clock; 0 while it is not.
    pub released_at: Timestamp,
}

/// Where clients reach a node, as `host:port`: at most [`ADDRESS_BYTES_MAX`] bytes, empty where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address(String);

/// A client address has too many bytes; with how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client address has at most {ADDRESS_BYTES_MAX} bytes, this one has {0}")]
pub struct AddressTooLong(pub usize);

impl Address {
    /// Checks the length of `text` and makes it an address.
    ///
    /// # Errors
    /// Where it is too long for a block.
    pub fn new(text: &str) -> Result<Self, AddressTooLong> {
        match text.len() {
            0..=ADDRESS_BYTES_MAX => Ok(Self(text.to_owned())),
            length => Err(AddressTooLong(length)),
        }
    }

    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// Why bytes are not a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The bytes are all zero: nothing was ever written there.
    #[error("never written")]
    Empty,
    /// The bytes are not what was written.
    #[error("{0}")]
    Damaged(&'static str),
    /// A newer version wrote it.
    #[error("format {0}, this version knows up to {max}", max = FORMATS_READ.max)]
    Newer(u32),
}

impl Block {
    /// The bytes of the block.
    #[must_use]
    pub fn encode(&self) -> Box<[u8; BLOCK_BYTES]> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let state: u32 = match self.state {
            State::Founding => 1,
            State::Active => 2,
            State::Released => 3,
        };
        let mode: u32 = match self.mode {
            Mode::Database => 1,
            Mode::File => 2,
        };
        let node = self.owner.node.as_str().as_bytes();
        let address = self.address.as_str().as_bytes();
        put(0, MAGIC);
        put(8, &FORMAT_WRITTEN.to_le_bytes());
        put(STATE.start, &state.to_le_bytes());
        put(16, &self.epoch.0.to_le_bytes());
        put(24, self.owner.incarnation.as_bytes());
        put(40, self.store_id.as_bytes());
        put(56, self.owner.boot.as_bytes());
        put(72, &self.owner.pid_namespace.to_le_bytes());
        put(80, &self.owner.time_namespace.to_le_bytes());
        put(88, &self.owner.started.to_le_bytes());
        put(96, &self.owner.pid.to_le_bytes());
        put(100, &mode.to_le_bytes());
        put(104, &self.claimed_at.0.to_le_bytes());
        put(112, &self.released_at.0.to_le_bytes());
        put(120, &[length_byte(node), length_byte(address), u8::from(self.has_begun)]);
        put(NODE_AT, node);
        put(ADDRESS_AT, address);
        put(LOCK_FILE_AT, &self.lock_file.number.to_le_bytes());
        put(LOCK_FILE_AT + 8, &self.lock_file.changed_at.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..SUM_AT]);
        bytes[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a block.
    ///
    /// # Errors
    /// Where the bytes are no block of a known version.
    pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Self, BlockError> {
        use BlockError::{Damaged, Empty, Newer};
        if is_zero(bytes) {
            return Err(Empty);
        }
        let fields = Fields(bytes);
        if fields.u32(SUM_AT) != crc32c::crc32c(&bytes[..SUM_AT]) {
            return Err(Damaged("bad checksum"));
        }
        if &bytes[..8] != MAGIC {
            return Err(Damaged("not a control block"));
        }
        match fields.u32(8) {
            0 => return Err(Damaged("version 0 was never written")),
            version if version > FORMATS_READ.max => return Err(Newer(version)),
            _ => {}
        }
        let state = match fields.u32(STATE.start) {
            1 => State::Founding,
            2 => State::Active,
            3 => State::Released,
            _ => return Err(Damaged("unknown state")),
        };
        let mode = match fields.u32(100) {
            1 => Mode::Database,
            2 => Mode::File,
            _ => return Err(Damaged("unknown mode")),
        };
        let has_begun = match bytes[BEGUN_AT] {
            0 => false,
            1 => true,
            _ => return Err(Damaged("neither begun nor not")),
        };
        let text = |at: usize, length_at: usize| {
            std::str::from_utf8(&bytes[at..at + usize::from(bytes[length_at])])
                .map_err(|_| Damaged("a text is not UTF-8"))
        };
        let owner = Identity {
            node: Name::new(text(NODE_AT, 120)?).map_err(|_| Damaged("the node's name is not a name"))?,
            incarnation: fields.uuid(24),
            boot: fields.uuid(56),
            pid_namespace: fields.u64(72),
            time_namespace: fields.u64(80),
            pid: fields.u32(96),
            started: fields.u64(88),
        };
        Ok(Self {
            epoch: Epoch(fields.u64(16)),
            state,
            has_begun,
            owner,
            address: Address(text(ADDRESS_AT, 121)?.to_owned()),
            lock_file: LockFile {
                number: fields.u64(LOCK_FILE_AT),
                changed_at: fields.u64(LOCK_FILE_AT + 8),
            },
            store_id: fields.uuid(40),
            mode,
            claimed_at: Timestamp(fields.u64(104)),
            released_at: Timestamp(fields.u64(112)),
        })
    }
}

/// The part of a block that stays the same from the claim on: magic, version, epoch, incarnation.
#[must_use]
pub fn head(block: &[u8; BLOCK_BYTES]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head.copy_from_slice(&block[..HEAD_BYTES]);
    head[STATE].fill(0);
    head
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole chunks first: the compiler makes wide instructions of them.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

fn length_byte(text: &[u8]) -> u8 {
    u8::try_from(text.len()).expect("names and addresses are at most 255 bytes")
}

struct Fields<'a>(&'a [u8; BLOCK_BYTES]);

impl Fields<'_> {
    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.0[at..at + N]);
        value
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.take(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.take(at))
    }

    fn uuid(&self, at: usize) -> Uuid {
        Uuid::from_bytes(self.take(at))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A block with a different value in every field.
    pub fn sample() -> Block {
        Block {
            epoch: Epoch(7),
            state: State::Active,
            has_begun: true,
            owner: Identity {
                node: Name::new("alpha").unwrap(),
                incarnation: Uuid::from_bytes([0x11; 16]),
                boot: Uuid::from_bytes([0x33; 16]),
                pid_namespace: 4_026_531_836,
                time_namespace: 4_026_531_834,
                pid: 4711,
                started: 123_456,
            },
            address: Address::new("10.0.0.1:7470").unwrap(),
            lock_file: LockFile { number: 0x44, changed_at: 1_700_000_000_123_456_789 },
            store_id: Uuid::from_bytes([0x22; 16]),
            mode: Mode::File,
            claimed_at: Timestamp(1_700_000_000_000),
            released_at: Timestamp(0),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let bytes = sample().encode();
        assert_eq!(
            hex(&bytes[..124]),
            "4241544f4e43544c\
             01000000\
             02000000\
             0700000000000000\
             11111111111111111111111111111111\
             22222222222222222222222222222222\
             33333333333333333333333333333333\
             fcffffef00000000\
             faffffef00000000\
             40e2010000000000\
             67120000\
             02000000\
             0068e5cf8b010000\
             0000000000000000\
             050d0100"
        );
        assert_eq!(&bytes[124..129], b"alpha");
        assert_eq!(&bytes[380..393], b"10.0.0.1:7470");
        assert_eq!(hex(&bytes[640..656]), "440000000000000015cd853dfe9c9717");
        assert!(is_zero(&bytes[129..380]) && is_zero(&bytes[393..640]) && is_zero(&bytes[656..4092]));
        assert_eq!(hex(&bytes[4092..]), "b0921e72");
    }

    #[test]
    fn what_was_written_is_read() {
        let founding = Block { state: State::Founding, has_begun: false, mode: Mode::Database, ..sample() };
        let released = Block { state: State::Released, released_at: Timestamp(5), ..sample() };
        let longest = Name::new(&"n".repeat(255)).unwrap();
        let long = Block {
            owner: Identity { node: longest, ..sample().owner },
            address: Address::new(&"a".repeat(ADDRESS_BYTES_MAX)).unwrap(),
            ..sample()
        };
        let without_address = Block { address: Address::default(), ..sample() };
        assert_eq!(Address::new(&"a".repeat(256)), Err(AddressTooLong(256)));
        for block in [sample(), founding, released, long, without_address] {
            assert_eq!(Block::decode(&block.encode()), Ok(block));
        }
    }

    #[test]
    fn a_flip_of_any_bit_is_damage() {
        let good = sample().encode();
        for at in 0..BLOCK_BYTES {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert_eq!(Block::decode(&bad), Err(BlockError::Damaged("bad checksum")), "byte {at}");
        }
    }

    #[test]
    fn a_cut_at_any_byte_is_damage() {
        let good = sample().encode();
        for length in 1..BLOCK_BYTES {
            let mut bad = good.clone();
            bad[length..].fill(0);
            assert!(matches!(Block::decode(&bad), Err(BlockError::Damaged(_))), "{length} bytes");
            let mut bad = good.clone();
            bad[..length].fill(0);
            assert!(matches!(Block::decode(&bad), Err(BlockError::Damaged(_))), "but for {length} bytes");
        }
        assert_eq!(Block::decode(&[0; BLOCK_BYTES]), Err(BlockError::Empty));
    }

    /// Sets bytes of a good block and makes the checksum right again.
    fn altered(at: usize, value: &[u8]) -> Box<[u8; BLOCK_BYTES]> {
        let mut bytes = sample().encode();
        bytes[at..at + value.len()].copy_from_slice(value);
        let sum = crc32c::crc32c(&bytes[..SUM_AT]);
        bytes[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        assert_eq!(Block::decode(&altered(8, &[2])), Err(BlockError::Newer(2)));
        assert_eq!(Block::decode(&altered(8, &[0])), Err(BlockError::Damaged("version 0 was never written")));
        assert_eq!(Block::decode(&altered(0, b"X")), Err(BlockError::Damaged("not a control block")));
    }

    #[test]
    fn values_that_were_never_written_are_damage() {
        for (at, value) in [
            (STATE.start, &[0][..]),
            (STATE.start, &[4]),
            (100, &[0]),
            (100, &[3]),
            (120, &[0]),
            (BEGUN_AT, &[2]),
            (NODE_AT, b" "),
            (NODE_AT, b"\xff"),
            (ADDRESS_AT, b"\xff"),
        ] {
            assert!(matches!(Block::decode(&altered(at, value)), Err(BlockError::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn the_head_survives_a_release_and_nothing_else() {
        let active = sample();
        let released = Block { state: State::Released, released_at: Timestamp(5), ..sample() };
        assert_eq!(head(&active.encode()), head(&released.encode()));
        let other = Identity { incarnation: Uuid::nil(), ..sample().owner };
        assert_ne!(head(&active.encode()), head(&Block { owner: other, ..sample() }.encode()));
        assert_ne!(head(&active.encode()), head(&Block { epoch: Epoch(8), ..sample() }.encode()));
    }
}

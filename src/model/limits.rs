//! Every limit that has a name: one table, from which the settings, the checks and the documentation come.
//!
//! A limit is either fixed by a format (a constant below) or a field of [`Limits`], which the configuration's
//! `[limits]` table sets within bounds.

use serde::{Deserialize, Serialize};

/// Bytes of a name: topic, group, producer, node.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a message key.
pub const KEY_BYTES_MAX: usize = 4096;
/// Headers of one message, as its publisher gives it.
pub const HEADER_COUNT_MAX: usize = 256;
/// Headers that the node itself may add to a message, to a dead one for example.
pub const NODE_HEADER_COUNT_MAX: usize = 16;
/// Parts of a publish, each for a topic. Every part is stored for itself, however few messages it has.
pub const PUBLISH_PARTS_MAX: usize = 16 << 10;
/// Settlements of a transaction, each of one consumer and topic.
pub const TRANSACTION_SETTLEMENTS_MAX: usize = 1024;
/// Ranges of offsets that all settlements of a transaction have together. Each is looked up before anything is changed.
pub const TRANSACTION_RANGES_MAX: usize = 16 << 10;
/// Bytes of a header's name.
pub const HEADER_NAME_BYTES_MAX: usize = 255;
/// Dead letters that one request replays, or messages that one drops.
pub const LETTERS_MAX: usize = 1000;
/// Requests to replay dead letters, of all clients together, that wait for their answer. One at a time is worked at.
pub const REPLAYS_MAX: usize = 16;
/// Delayed messages that one request cancels.
pub const CANCELLED_MAX: usize = 16 << 10;
/// Bytes of what a consumer says about a message that it could not process.
pub const REASON_BYTES_MAX: usize = 256;
/// Targets of a route.
pub const ROUTE_TARGETS_MAX: usize = 64;
/// Routes that one message may pass, one behind the other.
pub const ROUTE_STEPS_MAX: usize = 8;
/// Groups and consumers in one description of a topic.
pub const DESCRIBED_MAX: usize = 1000;
/// Targets of all routes together that one message may pass, one behind the other and beside each other: they are
/// copied to within the publish.
pub const ROUTE_COPIES_MAX: usize = 256;
/// Topics, groups or routes in one answer to a question for all of them.
pub const LISTED_MAX: usize = 1000;
/// Browses of all clients together that wait for their answer.
pub const BROWSES_MAX: usize = 64;
/// Browses of one connection that wait in line.
pub const BROWSES_PER_CONNECTION_MAX: usize = 16;
/// Seeks of groups to a time that are under way, over all clients.
pub const SEEKS_MAX: usize = 64;
/// Ranges of messages that could not be read from the store and are remembered, over all topics. Those beyond it are
/// asked for again at short intervals.
pub const UNREADABLE_RANGES_MAX: usize = 1024;
/// Reads from the store for browses at a time; each brings a mebibyte or one larger message.
pub const BROWSE_READS_MAX: usize = 2;
/// Bytes of answers to browses that clients have not taken yet, over all clients. One answer may go over it.
pub const BROWSED_BYTES_MAX: usize = 128 << 20;
/// Bytes of messages that were read from the store and wait for the engine. Each reader may go over it with one read.
pub const LOADED_BYTES_MAX: u64 = 16 << 20;
/// Rows that a query is answered with.
pub const QUERY_ROWS_MAX: usize = 10_000;
/// Bytes that the answer to a query takes in memory.
pub const QUERY_BYTES_MAX: usize = 4 << 20;
/// Bytes of one value in a query, on the way to its answer too. With the columns it bounds the memory of a row.
pub const QUERY_VALUE_BYTES_MAX: usize = 1 << 20;
/// Columns of one row in a query, on the way to its answer too.
pub const QUERY_COLUMNS_MAX: usize = 100;
/// Bytes of the text of a query.
pub const QUERY_TEXT_BYTES_MAX: usize = 64 << 10;
/// Seconds that a master works at one query. While it does, nothing that is committed can leave the store's log: the
/// log grows, and a commit may wait a fifth of a second for the query to end, a few times.
pub const QUERY_SECONDS_MAX: u64 = 5;
/// Queries of all clients together that wait for their answer. One at a time is worked at.
pub const QUERIES_MAX: usize = 8;
/// Connections beyond `connections_max` that the other node may have, to watch this one.
pub const WATCHES_MAX: u64 = 2;
/// Connections beyond those that are accepted, to be told that there are too many. A further one waits.
pub const GREETINGS_MAX: u64 = 64;
/// Connections to the admin address at a time: monitoring asks and goes.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;
/// Open files that a node needs beside its connections: store, lock, control file, listeners, log.
pub const FILES_RESERVED: u64 = 64;
/// Backups of a node that are under way at a time. Each keeps the store from giving back the space of what was settled.
pub const BACKUPS_MAX: usize = 2;
/// Bytes of a backup in one answer.
pub const BACKUP_PART_BYTES: usize = 1 << 20;
/// Seconds after which a backup ends whose client asks for nothing more.
pub const BACKUP_IDLE_SECONDS: u64 = 60;
/// Bytes of the text of a filter.
pub const FILTER_BYTES_MAX: usize = 4096;
/// Parentheses, `NOT`s and signs of a filter inside each other. Reading and evaluating one takes stack for each.
pub const FILTER_DEPTH_MAX: usize = 32;
/// Values of a filter outside lists, and so about its conditions too. Each may have to look through all headers of every message.
pub const FILTER_NODES_MAX: usize = 256;
/// Values in one list of `IN`. They are kept sorted, so a longer list costs memory rather than time.
pub const FILTER_LIST_MAX: usize = 256;
/// Characters between two `%` of a `LIKE` pattern where `_` is among them: they are searched for in one pass, with a
/// bit of a 64-bit word for each.
pub const FILTER_PATTERN_RUN_MAX: usize = 64;
/// Messages published to a topic that keeps the newest of each key from which on it is cleaned at once; half of what
/// it holds, where that is more.
pub const LAST_VALUE_FRESH_MIN: u64 = 1_000;
/// Milliseconds after which fewer are reason enough to clean it.
pub const LAST_VALUE_FRESH_MS: u64 = 60_000;
/// Gaps in such a topic above which its messages are moved together.
pub const LAST_VALUE_RANGES_MAX: usize = 16 << 10;
/// Milliseconds for which a message without a body, which says that its key is gone, stays in such a topic: a day.
pub const LAST_VALUE_TOMBSTONE_MS: u64 = 86_400_000;
/// Highest priority of a message; 0 is the lowest and the default.
pub const PRIORITY_MAX: u8 = 9;

/// Highest value of `frame_bytes_max`: the largest frame that any node of a pair may ever have taken, and so the
/// largest that a node sends.
pub const FRAME_BYTES_HIGHEST: u64 = GIB;

/// One row of the table of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRow {
    /// Key in the configuration's `[limits]`; fixed limits have none and are in capitals.
    pub name: &'static str,
    /// Value used where nothing is configured.
    pub default: u64,
    /// Lowest value that can be configured.
    pub min: u64,
    /// Highest value that can be configured.
    pub max: u64,
    /// What is counted.
    pub unit: &'static str,
    /// What happens when it is reached.
    pub when_hit: &'static str,
}

macro_rules! limits {
    ($($(#[doc = $doc:literal])* $name:ident: $unit:literal, $default:expr, $min:expr, $max:expr, $hit:literal;)*) => {
        /// The configurable limits. [`LIMITS`] has their bounds and what happens when one is reached.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Limits {
            /// The limit called `name`, to be set.
            pub fn field_mut(&mut self, name: &str) -> Option<&mut u64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }

            /// Files that a node with these limits may have open at a time.
            #[must_use]
            pub fn open_files(&self) -> u64 {
                self.connections_max + WATCHES_MAX + GREETINGS_MAX + ADMIN_CONNECTIONS_MAX as u64 + FILES_RESERVED
            }

            /// The first limit that is outside its bounds, with the value it has.
            #[must_use]
            pub fn out_of_bounds(&self) -> Option<(&'static LimitRow, u64)> {
                let values = [$(self.$name),*];
                LIMITS.iter().zip(values).find(|(row, value)| !(row.min..=row.max).contains(value))
            }
        }

        /// The table of configurable limits, in the order of the fields of [`Limits`].
        pub const LIMITS: &[LimitRow] = &[
            $(LimitRow {
                name: stringify!($name), default: $default, min: $min, max: $max, unit: $unit, when_hit: $hit,
            },)*
        ];
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

limits! {
    /// Largest frame to the node, head and messages together.
    frame_bytes_max: "bytes", 72 * MIB, 8 * MIB, FRAME_BYTES_HIGHEST, "the connection is closed with `frame-too-large`";
    /// Largest body of a message.
    body_bytes_max: "bytes", 64 * MIB, KIB, 900 * MIB, "the message is refused with `message-too-large`";
    /// All headers of a message together, names and values.
    header_bytes_max: "bytes", 64 * KIB, KIB, MIB, "the message is refused with `message-too-large`";
    /// Encoded messages of a transaction together. They fit into a frame with the rest of it, or the frame is too large.
    transaction_bytes_max: "bytes", 16 * MIB, 64 * KIB, FRAME_BYTES_HIGHEST, "the transaction is refused with `limit`, nothing of it is stored";
    /// Topics in the store.
    topics_max: "topics", 100_000, 1, 16_000_000, "creating a topic is refused with `limit`";
    /// Groups in the store.
    groups_max: "groups", 100_000, 1, 16_000_000, "creating a group is refused with `limit`";
    /// Routes in the store.
    routes_max: "routes", 1_000, 1, 10_000, "making a route is refused with `limit`";
    /// Client connections at a time. The other node may watch this one beyond it. Each takes an open file, of which
    /// [`open_files`](Limits::open_files) are needed in all.
    connections_max: "connections", 10_000, 4, 1_000_000, "a new connection is answered `too-many-connections` and closed";
    /// Consumers of one connection.
    consumers_per_connection_max: "consumers", 10_000, 1, 1_000_000, "subscribing is refused with `limit`";
    /// Producers of one connection.
    producers_per_connection_max: "producers", 10_000, 1, 1_000_000, "opening a producer is refused with `limit`";
    /// Producers that the store remembers.
    producers_max: "producers", 100_000, 16, 10_000_000, "the producer that was idle longest is forgotten; opening is refused with `limit` while none is idle, and for ten minutes after a start in favour of those that were there before";
    /// How long an idle producer is remembered.
    producer_idle_seconds: "seconds", 7 * 86_400, 60, 10 * 365 * 86_400, "the producer expires; a resend from it is refused with `producer-expired`, never stored twice";
    /// Deliveries that one group has in flight.
    in_flight_max: "messages", 100_000, 1, 10_000_000, "the group hands out nothing more until something is settled";
    /// Largest prefetch of one consumer.
    prefetch_max: "messages", 100_000, 1, 1_000_000, "a larger prefetch is lowered to it";
    /// Messages of one group that wait for another attempt. What is in flight may still come on top.
    retries_max: "messages", 100_000, 1, 10_000_000, "the group hands out nothing new until the retries have drained";
    /// Messages of one group that hands out by key which wait behind another one of their key, or for its consumer.
    parked_max: "messages", 100_000, 1, 10_000_000, "the group goes no further until some of them can be handed out";
    /// Topics that a pattern stands for, where it has groups.
    pattern_topics_max: "topics", 10_000, 1, 1_000_000, "making a group of the pattern, or a further topic that it stands for, is refused with `limit`";
    /// Ranges of settled offsets above a group's floor.
    settled_ranges_max: "ranges", 100_000, 16, 10_000_000, "the group hands out nothing new until the oldest message is settled";
    /// Settled messages of a topic that stay on the disk because one before them is not settled, about.
    pinned_bytes_max: "bytes", 8 * MIB, 1, GIB, "they are removed from the middle of the topic";
    /// Delayed messages that are due soon and known one by one, over all topics; and as many notes of those that expire.
    scheduled_known_max: "messages", 100_000, 16, 10_000_000, "further ones are kept by the second, and may be late by one";
    /// Pulls of one group that wait for messages.
    pulls_waiting_max: "pulls", 10_000, 1, 1_000_000, "a further pull is answered at once with what is there";
    /// Keys of a topic that keeps the newest message of each that are known at a time.
    last_value_keys_max: "keys", 128 * KIB, 16, 16 * 1024 * KIB, "a topic with more is cleaned a stretch at a time, and what is behind it is read once for each; a key takes about 50 bytes";
    /// Bytes received on one connection that the engine has not taken yet, with the room for what they ask for.
    unprocessed_bytes_max: "bytes", 8 * MIB, 64 * KIB, GIB, "the connection is not read until the engine has caught up";
    /// Bytes for one connection that it has not read yet.
    output_bytes_max: "bytes", 8 * MIB, 64 * KIB, GIB, "nothing more is handed out to that connection until it reads";
    /// What all connections hold together of the two above, and of frames that have not come to their end.
    memory_bytes_max: "bytes", 256 * MIB, 16 * MIB, 1024 * GIB, "connections with more than their share of it are neither read nor handed out to until they have less; each may go over it by what one read brings or by another share of what is handed out, and one by a frame";
    /// Messages held in memory for delivery, over all topics.
    cache_bytes_max: "bytes", 16 * MIB, MIB, 64 * GIB, "the oldest are dropped from memory and read from the store when needed";
    /// Bytes of one commit.
    commit_bytes_max: "bytes", 4 * MIB, 64 * KIB, GIB, "the rest goes into the next commit; one larger message is committed alone";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_bounds() {
        assert_eq!(Limits::default().out_of_bounds(), None);
        for row in LIMITS {
            assert!(row.min <= row.default && row.default <= row.max, "{}", row.name);
        }
    }

    #[test]
    fn a_limit_out_of_bounds_is_named() {
        let limits = Limits { topics_max: 0, ..Limits::default() };
        let (row, value) = limits.out_of_bounds().unwrap();
        assert_eq!((row.name, value), ("topics_max", 0));
    }

    #[test]
    fn the_largest_message_fits_into_a_frame() {
        let limits = Limits::default();
        let around = KEY_BYTES_MAX as u64 + limits.header_bytes_max + MIB;
        assert!(limits.body_bytes_max + around <= limits.frame_bytes_max);
    }
}

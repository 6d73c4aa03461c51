//! `docs/limits.md` says what the code says. `BATON_BLESS=1 cargo test --test limits_document` writes it anew.

use batonmq::address::keeper::{HAND_OVER_MAX, LIFETIME};
use batonmq::admin::{CONNECTION_MAX, HEAD_BYTES_MAX, HEAD_MAX, HEADERS_MAX};
use batonmq::check::peer::LINE_BYTES_MAX;
use batonmq::check::remembered::BYTES_MAX as RESULTS_BYTES_MAX;
use batonmq::config::floating::ADDRESSES_MAX;
use batonmq::config::value::size_text;
use batonmq::model::limits::{
    ADMIN_CONNECTIONS_MAX, BACKUP_IDLE_SECONDS, BACKUP_PART_BYTES, BACKUPS_MAX, BROWSE_READS_MAX,
    BROWSED_BYTES_MAX, BROWSES_MAX, BROWSES_PER_CONNECTION_MAX, FILES_RESERVED, FILTER_BYTES_MAX,
    FILTER_DEPTH_MAX, FILTER_LIST_MAX, FILTER_NODES_MAX, FILTER_PATTERN_RUN_MAX, GREETINGS_MAX,
    HEADER_COUNT_MAX, HEADER_NAME_BYTES_MAX, KEY_BYTES_MAX, LAST_VALUE_RANGES_MAX, LAST_VALUE_TOMBSTONE_MS,
    LETTERS_MAX, LIMITS, LISTED_MAX, LOADED_BYTES_MAX, LimitRow, Limits, NAME_BYTES_MAX, PRIORITY_MAX,
    PUBLISH_PARTS_MAX, QUERIES_MAX, QUERY_BYTES_MAX, QUERY_COLUMNS_MAX, QUERY_ROWS_MAX, QUERY_SECONDS_MAX,
    QUERY_TEXT_BYTES_MAX, QUERY_VALUE_BYTES_MAX, REPLAYS_MAX, ROUTE_COPIES_MAX, ROUTE_STEPS_MAX,
    ROUTE_TARGETS_MAX, TRANSACTION_RANGES_MAX, TRANSACTION_SETTLEMENTS_MAX, UNREADABLE_RANGES_MAX,
    WATCHES_MAX,
};
use batonmq::protocol::frame::HEAD_BYTES_MAX as FRAME_HEAD_BYTES_MAX;
use batonmq::server::{FENCE_AGE_MAX, HANDSHAKE_MAX, STALLED_MIN};

const HEAD: &str = "\
# Limits

Everything that could grow without end has a limit with a name. The first table can be changed in the
configuration's `[limits]` (sizes also as `64MiB`, times also as `7d`); the second is fixed by the formats on disk
and on the wire. A limit that is reached refuses or slows down what reached it; nothing that was confirmed is lost.

Every connection is an open file, and a node without one left cannot check that it is master. At its start `baton
serve` raises the soft limit of the process (`ulimit -Sn`) to the hard one (`ulimit -Hn`, `LimitNOFILE=` of a systemd
service). It needs `connections_max` + 162 files. Where the hard limit is lower, a `connections_max` that was configured
keeps the node from starting, and the default is lowered to what fits, with a warning in the log.

## Configurable

| key | default | from | to | unit | when it is reached |
| --- | --- | --- | --- | --- | --- |
";

const FIXED: &str = "
## Fixed

| limit | value | when it is passed |
| --- | --- | --- |
";

fn value(row: &LimitRow, value: u64) -> String {
    if row.unit == "bytes" { size_text(value) } else { value.to_string() }
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    for row in LIMITS {
        let [default, min, max] = [row.default, row.min, row.max].map(|number| value(row, number));
        let LimitRow { name, unit, when_hit, .. } = row;
        text += &format!("| `{name}` | {default} | {min} | {max} | {unit} | {when_hit} |\n");
    }
    text.push_str(FIXED);
    let refused = "the message is refused with `message-too-large`";
    let invalid = "the message is refused with `invalid`";
    let query = "the query is refused with `limit`";
    let filter = "the filter is refused, and the error points at the place";
    for (limit, value, hit) in [
        (
            "bytes of a name (topic, group, producer, node)",
            NAME_BYTES_MAX,
            "the request is refused with `invalid`",
        ),
        ("bytes of a message's key", KEY_BYTES_MAX, refused),
        ("headers of a message", HEADER_COUNT_MAX, refused),
        ("bytes of a header's name", HEADER_NAME_BYTES_MAX, invalid),
        ("parts of a publish, each for a topic", PUBLISH_PARTS_MAX, "the publish is refused with `invalid`"),
        (
            "settlements of a transaction, each of one consumer and topic in one way",
            TRANSACTION_SETTLEMENTS_MAX,
            "the transaction is refused with `limit`",
        ),
        (
            "ranges of offsets that a transaction settles",
            TRANSACTION_RANGES_MAX,
            "the transaction is refused with `limit`",
        ),
        (
            "dead letters in one request to replay them, or messages in one to drop them",
            LETTERS_MAX,
            "the request is refused with `invalid`; the command line makes several",
        ),
        (
            "requests to replay dead letters of all clients that wait; one at a time is worked at",
            REPLAYS_MAX,
            "a further one is refused with `limit`",
        ),
        ("priority of a message", usize::from(PRIORITY_MAX), invalid),
        (
            "gaps in a topic that keeps last values, and no more than half of `settled_ranges_max`",
            LAST_VALUE_RANGES_MAX,
            "its oldest values are moved to its end",
        ),
        (
            "milliseconds for which a message without a body stays in such a topic",
            LAST_VALUE_TOMBSTONE_MS as usize,
            "it goes with the next cleaning, and nothing older of its key comes back",
        ),
        (
            "bytes of a frame's head, that is without messages",
            FRAME_HEAD_BYTES_MAX,
            "the connection is closed with `protocol`",
        ),
        (
            "topics, groups or routes in one answer to a question for all of them",
            LISTED_MAX,
            "the answer says that there are more; the client asks for what follows",
        ),
        (
            "browses of all clients that wait for an answer",
            BROWSES_MAX,
            "a further one is refused with `limit`",
        ),
        (
            "browses of one connection that wait in line",
            BROWSES_PER_CONNECTION_MAX,
            "a further one is refused with `limit`",
        ),
        (
            "ranges of messages that could not be read from the store and are remembered",
            UNREADABLE_RANGES_MAX,
            "what cannot be read besides is asked for again every 100 ms, and nothing overtakes it in its group",
        ),
        (
            "reads from the store for browses at a time, each of 1 MiB or one larger message",
            BROWSE_READS_MAX,
            "further browses wait",
        ),
        (
            "bytes of answers to browses that clients have not taken yet",
            BROWSED_BYTES_MAX,
            "further browses wait; one answer may go over it",
        ),
        (
            "bytes that were read from the store and wait for the engine",
            LOADED_BYTES_MAX as usize,
            "readers wait; each may go over it with one read",
        ),
        (
            "queries of all clients that wait for an answer; one at a time is worked at",
            QUERIES_MAX,
            "a further one is refused with `limit`",
        ),
        (
            "seconds that a master works at a query; the store's log cannot be written back meanwhile",
            QUERY_SECONDS_MAX as usize,
            "the query is given up and refused with `limit`",
        ),
        ("rows that a query is answered with", QUERY_ROWS_MAX, query),
        ("bytes of the answer to a query", QUERY_BYTES_MAX, query),
        ("bytes of a value in a query, on the way to the answer too", QUERY_VALUE_BYTES_MAX, query),
        (
            "columns of a row in a query, on the way to the answer too",
            QUERY_COLUMNS_MAX,
            "the query is refused",
        ),
        ("bytes of the text of a query to a master", QUERY_TEXT_BYTES_MAX, query),
        ("bytes of the text of a filter", FILTER_BYTES_MAX, filter),
        ("parentheses, `NOT`s and signs of a filter inside each other", FILTER_DEPTH_MAX, filter),
        ("values of a filter outside lists", FILTER_NODES_MAX, filter),
        ("values in one list of a filter", FILTER_LIST_MAX, filter),
        (
            "characters between two `%` of a filter's pattern where `_` is among them",
            FILTER_PATTERN_RUN_MAX,
            filter,
        ),
        ("topics that a route leads to", ROUTE_TARGETS_MAX, "the route is refused with `limit`"),
        (
            "routes that a message may pass one behind the other",
            ROUTE_STEPS_MAX,
            "the route is refused with `limit`",
        ),
        (
            "targets, together, of all routes that a message may pass",
            ROUTE_COPIES_MAX,
            "the route is refused with `limit`",
        ),
        ("backups of a node that are under way", BACKUPS_MAX, "a further one is refused with `limit`"),
        ("bytes of a backup in one answer", BACKUP_PART_BYTES, "the client asks for the next part"),
        (
            "seconds in which the client of a backup asks for nothing",
            BACKUP_IDLE_SECONDS as usize,
            "the backup ends; the client begins another one",
        ),
        (
            "connections of the other node beyond `connections_max`",
            WATCHES_MAX as usize,
            "a new one is answered `too-many-connections` and closed",
        ),
        (
            "connections beyond all those that wait to be told that there are too many",
            GREETINGS_MAX as usize,
            "a further one is not accepted until one of them has ended",
        ),
        ("floating addresses of a node", ADDRESSES_MAX, "the node does not start"),
        (
            "seconds for which a host keeps a floating address that its node does not extend",
            LIFETIME.as_secs() as usize,
            "the kernel removes it",
        ),
        (
            "milliseconds for which a node that hands over keeps it while the next one does not announce it",
            HAND_OVER_MAX.as_millis() as usize,
            "the node removes it",
        ),
        (
            "connections to the admin address",
            ADMIN_CONNECTIONS_MAX,
            "a further one is not accepted until one of them has ended",
        ),
        (
            "bytes of line and headers of a request to the admin address, about",
            HEAD_BYTES_MAX,
            "the connection is closed",
        ),
        ("headers of a request to the admin address", HEADERS_MAX, "the connection is closed"),
        (
            "seconds for line and headers of a request to the admin address",
            HEAD_MAX.as_secs() as usize,
            "the connection is closed",
        ),
        (
            "seconds that a connection to the admin address lasts",
            CONNECTION_MAX.as_secs() as usize,
            "the connection is closed after the answer that is under way",
        ),
        (
            "open files kept for the store and everything else that is no connection",
            FILES_RESERVED as usize,
            "the node does not start with as many connections",
        ),
        (
            "seconds for a client's first words; 1 where connections beyond all limits wait",
            HANDSHAKE_MAX.as_secs() as usize,
            "the connection is closed",
        ),
        (
            "seconds for which a client takes nothing of what is sent to it, at least three heartbeats",
            STALLED_MIN.as_secs() as usize,
            "the connection is closed; what the client had in flight goes back",
        ),
        (
            "seconds since the last check of the fence, beyond `poll_interval`",
            FENCE_AGE_MAX.as_secs() as usize,
            "clients are sent away, and new ones told that the node is not master, until the storage answers",
        ),
        (
            "bytes of a line between two `baton store check`",
            LINE_BYTES_MAX,
            "the check ends: what is at the other end is no checker",
        ),
        (
            "bytes of the results of checks that stay in a directory",
            RESULTS_BYTES_MAX as usize,
            "they are not read, and the node warns",
        ),
    ] {
        text += &format!("| {limit} | {value} | {hit} |\n");
    }
    text
}

#[test]
fn the_document_tells_how_many_files_a_connection_limit_needs() {
    let beside = Limits { connections_max: 0, ..Limits::default() }.open_files();
    assert!(HEAD.contains(&format!("`connections_max` + {beside} files")));
}

#[test]
fn the_document_has_the_limits_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/limits.md");
    if std::env::var_os("BATON_BLESS").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(written, document(), "docs/limits.md is out of date; BATON_BLESS=1 writes it anew");
}

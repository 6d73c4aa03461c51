-- Baton's store in database mode, format 1.
--
-- To read it: `baton store query` on a live store, the `sqlite3` shell on a backup. Never the shell on the file
-- itself: it would recover and checkpoint without holding an epoch. Start with the views at the end.
--
-- Times are milliseconds since 1970-01-01 UTC. Ranges are half-open: the end is the first offset after them.

PRAGMA application_id = 0x4241544E; -- "BATN"

-- Every row but a body's part has a checksum of its other columns: a CRC32C as a signed number, whose bytes are
-- described in src/store/database/checksum.rs. Those of messages and their bodies are checked on every read, all others
-- when a master starts.

-- Numbers of the whole store, in one row. Ids are never used twice. The counts say how many rows the tables of topics,
-- groups and producers must have.
CREATE TABLE meta (
    id            INTEGER PRIMARY KEY, -- 0
    next_topic    INTEGER NOT NULL,
    next_group    INTEGER NOT NULL,
    next_producer INTEGER NOT NULL,
    topics        INTEGER NOT NULL,
    groups        INTEGER NOT NULL,
    producers     INTEGER NOT NULL,
    time          INTEGER NOT NULL,    -- highest store time of what is not in topic.stored_at
    checksum      INTEGER NOT NULL
) STRICT;

CREATE TABLE topic (
    id             INTEGER PRIMARY KEY,
    name           TEXT NOT NULL,
    settings       TEXT NOT NULL,    -- JSON
    start_offset   INTEGER NOT NULL, -- first message that is still there
    cleared_offset INTEGER NOT NULL, -- rows below are deleted; start_offset runs ahead of it
    end_offset     INTEGER NOT NULL, -- what the next message gets; stays when all messages are gone
    stored_at      INTEGER NOT NULL, -- store time when the topic last got a message; 0: never
    checksum       INTEGER NOT NULL
) STRICT;

-- Messages above the start that are gone: every group has settled them, but not all that is before them.
CREATE TABLE removed_range (
    topic        INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    end_offset   INTEGER NOT NULL,
    checksum     INTEGER NOT NULL,
    PRIMARY KEY (topic, start_offset)
) STRICT, WITHOUT ROWID;

-- One row for each 2^32 offsets of a topic: message.id is stretch.id * 2^32 + the low 32 bits of the offset. So the
-- hot table has one integer key and no index beside it, the messages of a topic lie together in order, and neither
-- the number of topics nor the length of one is limited by how 63 bits are shared out. A stretch whose topic is gone
-- is being cleared.
CREATE TABLE stretch (
    id       INTEGER PRIMARY KEY,
    topic    INTEGER NOT NULL,
    number   INTEGER NOT NULL, -- offset / 2^32
    checksum INTEGER NOT NULL,
    UNIQUE (topic, number)
) STRICT;

-- One row for each message. The columns that are NULL for most come before the body, which is read last.
-- The checksum covers topic and offset too, so that a row that stands in the place of another is noticed, and the body
-- wherever it lies.
CREATE TABLE message (
    id           INTEGER PRIMARY KEY,
    published_at INTEGER NOT NULL,
    producer     INTEGER,          -- NULL: published by the broker itself
    sequence     INTEGER,          -- number that the producer gave it
    checksum     INTEGER NOT NULL,
    key          BLOB,
    headers      BLOB,             -- encoded as in a message: u16 count, then names and values with their lengths
    deliver_at   INTEGER,
    expires_at   INTEGER,
    priority     INTEGER,          -- NULL: 0
    body         BLOB              -- NULL: it is large, see large_body
) STRICT;

-- Bodies of 256 KiB and more: which message has which one. They lie in parts, so that they can be written, a part at a
-- time, before the message is.
CREATE TABLE large_body (
    message  INTEGER PRIMARY KEY, -- message.id
    body     INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,    -- of all parts
    checksum INTEGER NOT NULL
) STRICT;

-- Part n of a body has the id body * 2^16 + n, n counts from 0.
CREATE TABLE body_part (
    id    INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL          -- 1 MiB, the last part what is left
) STRICT;

-- Bodies that no message has: they are being written, or their parts are being deleted.
CREATE TABLE unused_body (
    body     INTEGER PRIMARY KEY,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE consumer_group (
    id           INTEGER PRIMARY KEY,
    topic        INTEGER NOT NULL,
    name         TEXT NOT NULL,
    settings     TEXT NOT NULL,    -- JSON
    floor_offset INTEGER NOT NULL, -- everything below is settled
    handed_out   INTEGER NOT NULL, -- nothing from here on was handed out
    checksum     INTEGER NOT NULL
) STRICT;

-- What a group has settled above its floor. Ranges of a group neither overlap nor touch.
CREATE TABLE settled_range (
    group_id     INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    end_offset   INTEGER NOT NULL,
    checksum     INTEGER NOT NULL,
    PRIMARY KEY (group_id, start_offset)
) STRICT, WITHOUT ROWID;

-- What a group has handed out in vain and not settled.
CREATE TABLE retry (
    group_id       INTEGER NOT NULL,
    message_offset INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    due_at         INTEGER NOT NULL,
    reason         TEXT NOT NULL, -- nacked, lease-expired, consumer-lost, rejected
    checksum       INTEGER NOT NULL,
    PRIMARY KEY (group_id, message_offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE producer (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    last_sequence INTEGER NOT NULL, -- 0: none yet
    seen_at       INTEGER NOT NULL,
    checksum      INTEGER NOT NULL
) STRICT;

-- What follows is made to be asked by a person; docs/queries.md has examples. Names of columns stay.

-- Every message that is still there, with names and times. Key and body are bytes.
CREATE VIEW messages AS
SELECT topic.name AS topic,
       (stretch.number << 32) + (message.id & 0xFFFFFFFF) AS message_offset,
       strftime('%Y-%m-%dT%H:%M:%fZ', message.published_at / 1000.0, 'unixepoch') AS published_at,
       producer.name AS producer, -- NULL: the broker itself, or one that is forgotten
       message.sequence,
       message.key,
       coalesce(message.priority, 0) AS priority,
       strftime('%Y-%m-%dT%H:%M:%fZ', message.deliver_at / 1000.0, 'unixepoch') AS deliver_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', message.expires_at / 1000.0, 'unixepoch') AS expires_at,
       coalesce(
           length(message.body),
           (SELECT bytes FROM large_body WHERE large_body.message = message.id)
       ) AS body_bytes,
       coalesce(message.body, (
           SELECT CAST(group_concat(bytes, '') AS BLOB)
           FROM (
               SELECT body_part.bytes
               FROM large_body
               CROSS JOIN body_part ON body_part.id >= body << 16 AND body_part.id < (body + 1) << 16
               WHERE large_body.message = message.id
               ORDER BY body_part.id
           )
       )) AS body
FROM topic
CROSS JOIN stretch ON stretch.topic = topic.id
CROSS JOIN message ON message.id >= stretch.id << 32 AND message.id < (stretch.id + 1) << 32
LEFT JOIN producer ON producer.id = message.producer
WHERE (stretch.number << 32) + (message.id & 0xFFFFFFFF) >= topic.start_offset
  -- What is removed is deleted a little later: the last range that begins at or before the message does not hold it.
  AND coalesce((
      SELECT removed_range.end_offset
      FROM removed_range
      WHERE removed_range.topic = topic.id
        AND removed_range.start_offset <= (stretch.number << 32) + (message.id & 0xFFFFFFFF)
      ORDER BY removed_range.start_offset DESC
      LIMIT 1
  ), 0) <= (stretch.number << 32) + (message.id & 0xFFFFFFFF);

-- How many messages each topic holds, since when the oldest of them, and which group has come least far: what it has
-- not settled stays.
CREATE VIEW topics AS
SELECT topic.name AS topic,
       topic.end_offset - topic.start_offset - coalesce((
           SELECT sum(removed_range.end_offset - removed_range.start_offset)
           FROM removed_range
           WHERE removed_range.topic = topic.id
       ), 0) AS messages,
       coalesce(behind.consumer_groups, 0) AS consumer_groups,
       CASE WHEN topic.end_offset > topic.start_offset THEN (
           SELECT strftime('%Y-%m-%dT%H:%M:%fZ', message.published_at / 1000.0, 'unixepoch')
           FROM stretch
           JOIN message ON message.id = (stretch.id << 32) + (topic.start_offset & 0xFFFFFFFF)
           WHERE stretch.topic = topic.id AND stretch.number = topic.start_offset >> 32
       ) END AS oldest_since,
       CASE WHEN topic.stored_at > 0 THEN
           strftime('%Y-%m-%dT%H:%M:%fZ', topic.stored_at / 1000.0, 'unixepoch')
       END AS last_published_at,
       behind.name AS held_back_by,
       topic.start_offset,
       topic.end_offset
FROM topic
LEFT JOIN (
    -- The name is that of the group with the least floor.
    SELECT consumer_group.topic, consumer_group.name, min(consumer_group.floor_offset), count(*) AS consumer_groups
    FROM consumer_group
    GROUP BY consumer_group.topic
) AS behind ON behind.topic = topic.id;

-- How many messages wait, for which group, and since when the oldest of them. What is in flight, delayed or between
-- two attempts waits too: nothing durable says what is in flight.
CREATE VIEW backlog AS
SELECT topic,
       consumer_group,
       waiting,
       retrying,
       CASE WHEN waiting > 0 THEN (
           SELECT strftime('%Y-%m-%dT%H:%M:%fZ', message.published_at / 1000.0, 'unixepoch')
           FROM stretch
           JOIN message ON message.id = (stretch.id << 32) + (oldest & 0xFFFFFFFF)
           WHERE stretch.topic = topic_id AND stretch.number = oldest >> 32
       ) END AS oldest_since,
       CASE WHEN waiting > 0 THEN oldest END AS oldest_offset
FROM (
    SELECT topic.id AS topic_id,
           topic.name AS topic,
           consumer_group.name AS consumer_group,
           max(consumer_group.floor_offset, topic.start_offset) AS oldest,
           topic.end_offset - max(consumer_group.floor_offset, topic.start_offset) - coalesce((
               SELECT sum(end_offset - max(start_offset, topic.start_offset))
               FROM settled_range
               WHERE group_id = consumer_group.id AND end_offset > topic.start_offset
           ), 0) AS waiting,
           (SELECT count(*) FROM retry WHERE group_id = consumer_group.id) AS retrying
    FROM consumer_group
    JOIN topic ON topic.id = consumer_group.topic
);

-- Messages that were handed out in vain and wait for another attempt.
CREATE VIEW retries AS
SELECT topic.name AS topic,
       consumer_group.name AS consumer_group,
       retry.message_offset,
       retry.attempts,
       retry.reason,
       strftime('%Y-%m-%dT%H:%M:%fZ', retry.due_at / 1000.0, 'unixepoch') AS due_at
FROM retry
JOIN consumer_group ON consumer_group.id = retry.group_id
JOIN topic ON topic.id = consumer_group.topic;

-- Producers that are remembered, and when each was opened or last published.
CREATE VIEW producers AS
SELECT name AS producer,
       last_sequence,
       strftime('%Y-%m-%dT%H:%M:%fZ', seen_at / 1000.0, 'unixepoch') AS last_seen_at
FROM producer;

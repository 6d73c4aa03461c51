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
-- groups, producers and routes must have.
CREATE TABLE meta (
    id            INTEGER PRIMARY KEY, -- 0
    next_topic    INTEGER NOT NULL,
    next_group    INTEGER NOT NULL,
    next_producer INTEGER NOT NULL,
    next_route    INTEGER NOT NULL,
    topics        INTEGER NOT NULL,
    groups        INTEGER NOT NULL,
    producers     INTEGER NOT NULL,
    routes        INTEGER NOT NULL,
    time          INTEGER NOT NULL,    -- highest store time of what is not in topic.stored_at
    checksum      INTEGER NOT NULL
) STRICT;

-- Topics, and what they are made of: messages of priority 1 to 9 lie in lanes, and what waits for a time in slots. A
-- lane or slot is a topic like any other, with offsets of its own; its name is that of the topic it is a part of. A slot
-- that is empty may be used for other times.
CREATE TABLE topic (
    id             INTEGER PRIMARY KEY,
    name           TEXT NOT NULL,
    kind           TEXT NOT NULL,    -- named, pattern, lane, slot
    part_of        INTEGER,          -- topic.id; NULL: it is no part
    priority       INTEGER,          -- of a lane
    waiting        TEXT,             -- in a slot: delayed (messages) or expiring (notes of messages that are elsewhere)
    due_from       INTEGER,          -- when the first of a slot may be due
    due_until      INTEGER,          -- and when all of it is
    settings       TEXT NOT NULL,    -- JSON; those of a lane or slot mean nothing
    start_offset   INTEGER NOT NULL, -- first message that is still there
    cleared_offset INTEGER NOT NULL, -- rows below are deleted; start_offset runs ahead of it
    end_offset     INTEGER NOT NULL, -- what the next message gets; stays when all messages are gone
    stored_at      INTEGER NOT NULL, -- store time when the topic last got a message; 0: never
    stored_bytes   INTEGER NOT NULL, -- of all messages that it ever got
    checksum       INTEGER NOT NULL
) STRICT;

-- How a topic has grown, as far as is needed to estimate the size and age of parts of it: for some of its messages the
-- offset, the time and the bytes that had come before. In a table of its own because it changes seldom.
CREATE TABLE topic_marks (
    topic    INTEGER PRIMARY KEY,
    marks    TEXT NOT NULL, -- JSON: objects with o, t and b
    checksum INTEGER NOT NULL
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

-- Groups, and their progress in the topic. A group that gets messages of other topics too, those of lanes or of the
-- topics that a pattern stands for, has a part for each of them, with progress of its own.
CREATE TABLE consumer_group (
    id           INTEGER PRIMARY KEY,
    topic        INTEGER NOT NULL,
    name         TEXT NOT NULL,
    part_of      INTEGER,          -- consumer_group.id; NULL: it is no part
    settings     TEXT NOT NULL,    -- JSON; those of a part mean nothing
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

-- What a group has handed out in vain and not settled: ranges of messages of which the same is known. Those of a group
-- do not overlap, and where two touch something else is known of each.
CREATE TABLE retry (
    group_id     INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    end_offset   INTEGER NOT NULL,
    handed_out   INTEGER NOT NULL, -- how often each came back
    failed       INTEGER NOT NULL, -- and how many of these attempts failed
    due_at       INTEGER NOT NULL,
    failures     TEXT NOT NULL,    -- JSON: the last ones, oldest first, each with at, reason and text
    checksum     INTEGER NOT NULL,
    PRIMARY KEY (group_id, start_offset)
) STRICT, WITHOUT ROWID;

-- Rules that pass messages of one topic on to others.
CREATE TABLE route (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    from_topic INTEGER NOT NULL,
    to_topics  TEXT NOT NULL, -- JSON: their ids
    filter     TEXT,          -- which messages; NULL: all
    mode       TEXT NOT NULL, -- copy, or move: the topic itself does not get them
    checksum   INTEGER NOT NULL
) STRICT;

CREATE TABLE producer (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    last_sequence INTEGER NOT NULL, -- 0: none yet
    seen_at       INTEGER NOT NULL,
    checksum      INTEGER NOT NULL
) STRICT;

-- What follows is made to be asked by a person; docs/queries.md has examples. Names of columns stay. Those whose name
-- ends in _part are what the others are made of.

-- Every message that is still there, in whatever topic or part of one. Key and body are bytes.
CREATE VIEW message_part AS
SELECT topic.name AS topic,
       topic.waiting,
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

-- The messages of the topics, those of all priorities. Each priority of a topic has offsets of its own.
CREATE VIEW messages AS
SELECT topic, message_offset, published_at, producer, sequence, key, priority, deliver_at, expires_at, body_bytes, body
FROM message_part
WHERE waiting IS NULL;

-- Messages that are to be delivered later. They get their place in the topic when they are due.
CREATE VIEW delayed AS
SELECT topic, deliver_at, published_at, producer, sequence, key, priority, expires_at, body_bytes, body
FROM message_part
WHERE waiting = 'delayed';

-- What waits for a time, by when it is due: messages that are to be delivered later, and notes of messages that will
-- expire, one for each run of them.
CREATE VIEW scheduled AS
SELECT topic.name AS topic,
       topic.waiting,
       strftime('%Y-%m-%dT%H:%M:%fZ', topic.due_from / 1000.0, 'unixepoch') AS due_from,
       strftime('%Y-%m-%dT%H:%M:%fZ', topic.due_until / 1000.0, 'unixepoch') AS due_until,
       topic_part.messages
FROM topic_part
JOIN topic ON topic.id = topic_part.id
WHERE topic.waiting IS NOT NULL AND topic_part.messages > 0;

-- Each topic and each part of one: how many messages it holds, and when the oldest of them came.
CREATE VIEW topic_part AS
SELECT topic.id,
       coalesce(topic.part_of, topic.id) AS whole,
       topic.waiting,
       topic.end_offset - topic.start_offset - coalesce((
           SELECT sum(removed_range.end_offset - removed_range.start_offset)
           FROM removed_range
           WHERE removed_range.topic = topic.id
       ), 0) AS messages,
       CASE WHEN topic.end_offset > topic.start_offset THEN (
           SELECT message.published_at
           FROM stretch
           JOIN message ON message.id = (stretch.id << 32) + (topic.start_offset & 0xFFFFFFFF)
           WHERE stretch.topic = topic.id AND stretch.number = topic.start_offset >> 32
       ) END AS oldest_at,
       topic.stored_at
FROM topic;

-- How many messages each topic holds, those of all priorities, since when the oldest of them, how many are to be delivered
-- later, and which group has come least far: what it has not settled stays. A pattern holds none itself.
CREATE VIEW topics AS
SELECT whole.name AS topic,
       whole.kind,
       sum(topic_part.messages) FILTER (WHERE topic_part.waiting IS NULL) AS messages,
       coalesce(sum(topic_part.messages) FILTER (WHERE topic_part.waiting = 'delayed'), 0) AS delayed,
       coalesce(behind.consumer_groups, 0) AS consumer_groups,
       strftime(
           '%Y-%m-%dT%H:%M:%fZ',
           min(topic_part.oldest_at) FILTER (WHERE topic_part.waiting IS NULL) / 1000.0,
           'unixepoch'
       ) AS oldest_since,
       strftime('%Y-%m-%dT%H:%M:%fZ', nullif(max(topic_part.stored_at) FILTER (WHERE topic_part.waiting IS NOT 'expiring'), 0) / 1000.0, 'unixepoch')
           AS last_published_at,
       behind.name AS held_back_by,
       whole.start_offset,
       whole.end_offset
FROM topic_part
JOIN topic AS whole ON whole.id = topic_part.whole
LEFT JOIN (
    -- The name is that of the group with the most messages from its floor on.
    SELECT topic, name, max(from_floor), count(*) AS consumer_groups
    FROM (
        SELECT coalesce(topic.part_of, topic.id) AS topic,
               consumer_group.name,
               sum(topic.end_offset - max(consumer_group.floor_offset, topic.start_offset)) AS from_floor
        FROM consumer_group
        JOIN topic ON topic.id = consumer_group.topic
        GROUP BY coalesce(topic.part_of, topic.id), coalesce(consumer_group.part_of, consumer_group.id)
    )
    GROUP BY topic
) AS behind ON behind.topic = whole.id
GROUP BY whole.id;

-- Each group and each part of one: how many messages wait for it, and when the oldest of them came.
CREATE VIEW backlog_part AS
SELECT whole,
       is_whole,
       waiting,
       retrying,
       CASE WHEN waiting > 0 THEN (
           SELECT message.published_at
           FROM stretch
           JOIN message ON message.id = (stretch.id << 32) + (oldest & 0xFFFFFFFF)
           WHERE stretch.topic = topic_id AND stretch.number = oldest >> 32
       ) END AS oldest_at,
       CASE WHEN waiting > 0 THEN oldest END AS oldest
FROM (
    SELECT coalesce(consumer_group.part_of, consumer_group.id) AS whole,
           consumer_group.part_of IS NULL AS is_whole,
           topic.id AS topic_id,
           max(consumer_group.floor_offset, topic.start_offset) AS oldest,
           topic.end_offset - max(consumer_group.floor_offset, topic.start_offset) - coalesce((
               SELECT sum(end_offset - max(start_offset, topic.start_offset))
               FROM settled_range
               WHERE group_id = consumer_group.id AND end_offset > topic.start_offset
           ), 0) AS waiting,
           coalesce((
               SELECT sum(end_offset - start_offset) FROM retry WHERE group_id = consumer_group.id AND failed > 0
           ), 0) AS retrying
    FROM consumer_group
    JOIN topic ON topic.id = consumer_group.topic
);

-- How many messages wait, for which group, and since when the oldest of them. What is in flight or between two attempts
-- waits too: nothing durable says what is in flight. Of those that are retried an attempt has failed; what was given back
-- untouched is not among them. What is to be delivered later does not wait yet. A group of a
-- pattern waits for messages of all topics that the pattern stands for; the offset is one of priority 0 of its topic.
CREATE VIEW backlog AS
SELECT topic.name AS topic,
       whole.name AS consumer_group,
       sum(backlog_part.waiting) AS waiting,
       sum(backlog_part.retrying) AS retrying,
       strftime('%Y-%m-%dT%H:%M:%fZ', min(backlog_part.oldest_at) / 1000.0, 'unixepoch') AS oldest_since,
       max(backlog_part.oldest) FILTER (WHERE backlog_part.is_whole) AS oldest_offset
FROM backlog_part
JOIN consumer_group AS whole ON whole.id = backlog_part.whole
JOIN topic ON topic.id = whole.topic
GROUP BY whole.id;

-- Messages that were handed out in vain and wait to be handed out again, by what is known of them: how often they came
-- back, how many of these attempts failed, and why the last of these did.
CREATE VIEW retries AS
SELECT topic.name AS topic,
       coalesce(topic.priority, 0) AS priority,
       consumer_group.name AS consumer_group,
       retry.start_offset,
       retry.end_offset,
       retry.end_offset - retry.start_offset AS messages,
       retry.handed_out,
       retry.failed,
       retry.failures ->> '$[#-1].reason' AS reason, -- nacked, lease-expired, consumer-lost, rejected
       retry.failures ->> '$[#-1].text' AS said,     -- by the consumer
       strftime('%Y-%m-%dT%H:%M:%fZ', retry.due_at / 1000.0, 'unixepoch') AS due_at,
       retry.failures
FROM retry
JOIN consumer_group ON consumer_group.id = retry.group_id
JOIN topic ON topic.id = consumer_group.topic;

-- Each topic to which a route passes messages on.
CREATE VIEW routes AS
SELECT route.name AS route,
       origin.name AS from_topic,
       target.name AS to_topic,
       route.filter,
       route.mode
FROM route
JOIN topic AS origin ON origin.id = route.from_topic
CROSS JOIN json_each(route.to_topics)
JOIN topic AS target ON target.id = json_each.value;

-- Producers that are remembered, and when each was opened or last published.
CREATE VIEW producers AS
SELECT name AS producer,
       last_sequence,
       strftime('%Y-%m-%dT%H:%M:%fZ', seen_at / 1000.0, 'unixepoch') AS last_seen_at
FROM producer;

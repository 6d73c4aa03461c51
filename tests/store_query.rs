//! `baton store query`: on a store that is served, on one that is dead, and what both refuse.

mod cli_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use batonmq::client::{Client, ClientOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::model::time::Timestamp;
use cli_support::{Answer, PATIENCE, Pair, run, signal, wait_until};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::Value;

/// Never ends by itself.
const ENDLESS: &str =
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";

/// Topics, groups with gaps and retries, producers: something for every example.
fn fill(pair: &Pair) {
    let bodies: Vec<String> = (0..6).map(|n| format!(r#"{{"total": {n}}}"#)).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    pair.run(&[&["publish", "orders", "--producer", "shop", "--key", "blue"], &bodies[..]].concat()).ok();
    pair.run(&["publish", "unread", "x"]).ok();
    publish_later(pair);
    let created = ["group", "create", "orders", "billing", "--max-attempts", "0", "--backoff-initial", "10m"];
    pair.run(&[&created[..], &["--backoff-maximum", "10m"]].concat()).ok();
    for (count, then) in [("2", "nack"), ("2", "ack")] {
        let args = ["consume", "orders", "--group", "billing", "--prefetch", count, "--count", count];
        pair.run(&[&args[..], &["--then", then, "--idle-timeout", "20s"]].concat()).ok();
    }
}

/// A message that is to be delivered in an hour.
fn publish_later(pair: &Pair) {
    let options =
        ClientOptions { servers: pair.servers.clone(), timeout: PATIENCE, ..ClientOptions::default() };
    let in_an_hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3_600);
    let deliver_at = Some(Timestamp(in_an_hour.as_millis() as u64));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(options).await.unwrap();
        let topic = client.topic("orders").await.unwrap();
        let producer = client.producer(ProducerOptions::default()).await.unwrap();
        producer.send(&topic, &Message { deliver_at, ..Message::new("later") }).await.unwrap();
    });
}

fn query_live(pair: &Pair, sql: &str) -> Answer {
    pair.run(&["store", "query", "--json", sql])
}

fn query_dead(store: &Path, sql: &str) -> Answer {
    run(&["store", "query", "--store", store.to_str().unwrap(), "--json", sql])
}

/// Every file below a directory, with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// The database of the store, which its first master made.
fn database(store: &Path) -> PathBuf {
    store.join(format!("baton-{:020}.db", 1))
}

/// The answer of a program that is not Baton, on a copy of the files, as rows of values.
fn query_copy(store: &Path, sql: &str) -> Vec<Vec<rusqlite::types::Value>> {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("copy.db");
    fs::copy(database(store), &path).unwrap();
    fs::copy(database(store).with_extension("db-wal"), path.with_extension("db-wal")).unwrap();
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let count = statement.column_count();
    let rows = statement.query_map([], |row| (0..count).map(|column| row.get(column)).collect()).unwrap();
    rows.map(Result::unwrap).collect()
}

fn matches(json: &Value, value: &rusqlite::types::Value) -> bool {
    use rusqlite::types::Value as V;
    match value {
        V::Null => json.is_null(),
        V::Integer(number) => json.as_i64() == Some(*number),
        V::Real(number) => json.as_f64() == Some(*number),
        V::Text(text) => json.as_str() == Some(text),
        V::Blob(bytes) => json.as_str().map(str::as_bytes) == Some(bytes),
    }
}

#[test]
fn every_example_is_answered_alike_live_dead_and_on_a_copy() {
    let mut pair = Pair::database();
    fill(&pair);
    let document = include_str!("../docs/queries.md");
    let blocks = document.split("```sql\n").skip(1);
    let examples: Vec<&str> = blocks.map(|block| block.split("```").next().unwrap()).collect();
    assert!(examples.len() > 10);
    let live: Vec<Vec<Value>> = examples.iter().map(|sql| query_live(&pair, sql).json()).collect();
    pair.nodes[0].kill().unwrap();
    pair.wait(0);

    let store = pair.path("store");
    let before = contents(&store);
    assert!(before[&database(&store).with_extension("db-wal")].len() > 10_000, "all is in the log");
    for (sql, live) in examples.iter().zip(&live) {
        assert!(!live.is_empty(), "this example finds nothing: {sql}");
        let dead = query_dead(&store, sql).json();
        let copied = query_copy(&store, sql);
        assert_eq!(copied.len(), live.len(), "{sql}");
        if sql.contains("'now'") {
            assert_eq!(dead.len(), live.len(), "{sql}");
            continue;
        }
        assert_eq!(&dead, live, "{sql}");
        for (row, copied) in live.iter().zip(&copied) {
            // An object has its keys in an order of its own: every value must be there.
            let row: Vec<&Value> = row.as_object().unwrap().values().collect();
            assert_eq!(row.len(), copied.len());
            let found = |value| row.iter().any(|json| matches(json, value));
            assert!(copied.iter().all(found), "{sql}: {row:?} is not {copied:?}");
        }
    }
    assert!(contents(&store) == before, "asking a dead store has changed it");
}

#[test]
fn the_views_tell_what_waits_and_what_holds_it() {
    let pair = Pair::database();
    fill(&pair);
    let one = |sql| query_live(&pair, sql).json().remove(0);
    let backlog = one("SELECT *, oldest_since LIKE '20__-__-__T__:__:__.___Z' AS is_time FROM backlog");
    let expected = ["orders", "billing"].map(Value::from);
    assert_eq!([&backlog["topic"], &backlog["consumer_group"]], [&expected[0], &expected[1]]);
    let numbers = ["waiting", "retrying", "oldest_offset", "is_time"].map(|name| backlog[name].as_i64());
    assert_eq!(numbers, [4, 2, 0, 1].map(Some));
    let topic = one("SELECT * FROM topics WHERE topic = 'orders'");
    let numbers =
        ["messages", "consumer_groups", "start_offset", "end_offset"].map(|name| topic[name].as_i64());
    assert_eq!(numbers, [6, 1, 0, 6].map(Some));
    assert_eq!(topic["held_back_by"], "billing");
    let retry = one("SELECT *, sum(messages) OVER () AS together
                     FROM retries WHERE failed > 0 ORDER BY start_offset DESC");
    let told = ["end_offset", "handed_out", "failed", "together"].map(|name| retry[name].as_i64());
    assert_eq!((told, retry["reason"].as_str()), ([2, 1, 1, 2].map(Some), Some("nacked")));
    let scheduled = one("SELECT topic, waiting, messages FROM scheduled");
    assert_eq!(scheduled, serde_json::json!({"topic": "orders", "waiting": "delayed", "messages": 1}));
    let later = one("SELECT body, deliver_at > published_at AS later FROM delayed");
    assert_eq!(later, serde_json::json!({"body": "later", "later": 1}));
    let producer = one("SELECT * FROM producers WHERE producer = 'shop'");
    assert_eq!(producer["last_sequence"], 6);
    let message = one("SELECT * FROM messages WHERE topic = 'orders' AND message_offset = 5");
    assert_eq!((&message["key"], &message["body"]), (&"blue".into(), &r#"{"total": 5}"#.into()));

    let table =
        pair.run(&["store", "query", "SELECT topic, waiting, NULL AS n, x'ff' AS b FROM backlog"]).ok();
    assert_eq!(table, "TOPIC   WAITING  N  B\norders        4     x'ff'\n");
}

#[test]
fn what_is_no_question_is_refused_and_says_why() {
    let mut pair = Pair::database();
    fill(&pair);
    let no_reading = "a query only reads";
    let refused = [
        ("SELECT topic FORM backlog", "near \"backlog\": syntax error, at character 19: backlog"),
        ("SELECT absent FROM topics", "no such column: absent, at character 8: absent FROM topics"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT", "incomplete input"),
        ("", "there is nothing to answer"),
        (" -- a remark", "there is nothing to answer"),
        ("SELECT 1; SELECT 2", "give one statement"),
        ("SELECT 1; DELETE FROM topic", no_reading),
        ("DELETE FROM topic", no_reading),
        ("INSERT INTO message SELECT * FROM message", no_reading),
        ("UPDATE topic SET name = 'x'", no_reading),
        ("REPLACE INTO meta VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0)", no_reading),
        ("WITH x AS (SELECT 1) DELETE FROM topic RETURNING name", no_reading),
        ("DROP TABLE topic", no_reading),
        ("CREATE TEMP TABLE t (x)", no_reading),
        ("CREATE VIEW v AS SELECT 1", no_reading),
        ("PRAGMA journal_mode = delete", no_reading),
        ("PRAGMA user_version", no_reading),
        ("PRAGMA query_only = 0", no_reading),
        ("SELECT * FROM pragma_table_info('topic')", no_reading),
        ("ATTACH 'other.db' AS other", no_reading),
        ("VACUUM", no_reading),
        ("VACUUM INTO 'copy.db'", no_reading),
        ("REINDEX", no_reading),
        ("ANALYZE", no_reading),
        ("BEGIN", no_reading),
        ("BEGIN IMMEDIATE", no_reading),
        ("COMMIT", no_reading),
        ("SAVEPOINT s", no_reading),
        ("SELECT load_extension('x')", "not authorized to use function: load_extension"),
        ("SELECT writefile('x', 'y')", "no such function: writefile"),
        // It took two gigabytes in five seconds.
        ("SELECT json_group_array(name) FROM topic", "not authorized to use function: json_group_array"),
        ("SELECT jsonb_group_object(name, 1) OVER () FROM topic", "not authorized to use function"),
        // One call took more than a minute, and nothing could end it.
        (
            "SELECT hex(zeroblob(500000)) LIKE '%' || hex(zeroblob(24000)) || '1'",
            "the query failed: LIKE or GLOB pattern too complex",
        ),
        ("SELECT json('{')", "the query failed: malformed JSON"),
        (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 10001) SELECT x FROM n",
            "the answer has more than 10000 rows: add LIMIT",
        ),
        (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9) SELECT zeroblob(900000) FROM n",
            "the answer has more than 4194304 bytes: add LIMIT",
        ),
        ("SELECT length(zeroblob(2000000) || '')", "a value is longer than 1048576 bytes"),
        ("SELECT 1 AS a, 2 AS a", "two columns are called a"),
    ];
    let before = query_live(&pair, "SELECT * FROM messages").json();
    let too_long = format!("SELECT '{}'", "x".repeat(70_000));
    let answer = query_live(&pair, &too_long).failed(1);
    assert!(answer.contains("the limit is 65536"), "{answer}");
    for (sql, why) in refused {
        let answer = query_live(&pair, sql).failed(1);
        assert!(answer.contains(why), "{sql}: {answer}");
    }
    assert_eq!(query_live(&pair, "SELECT * FROM messages").json(), before);

    signal(&pair.nodes[0], Signal::TERM);
    assert!(pair.wait(0).success());
    let store = pair.path("store");
    let files = contents(&store);
    for (sql, why) in refused {
        let answer = query_dead(&store, sql).failed(1);
        assert!(answer.contains(why), "{sql}: {answer}");
    }
    assert!(contents(&store) == files, "what was refused has changed the store");
}

/// Commits and confirms go on while a query takes all the time that it may have.
#[test]
fn a_query_that_takes_too_long_is_given_up_and_stops_nobody() {
    let pair = Pair::database();
    pair.run(&["publish", "t", "first"]).ok();
    let asking = pair.command(&["store", "query", ENDLESS]).spawn().unwrap();
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        let started = Instant::now();
        pair.run(&["publish", "t", &n.to_string()]).ok();
        slowest = slowest.max(started.elapsed());
    }
    let answer = asking.wait_with_output().unwrap();
    let said = String::from_utf8(answer.stderr).unwrap();
    assert!(said.contains("no answer within 5s"), "{said}");
    assert!(slowest < Duration::from_secs(4), "a publish took {slowest:?}");
    assert_eq!(query_live(&pair, "SELECT count(*) AS n FROM messages").json()[0]["n"], 21);
}

#[test]
fn a_node_that_is_told_to_stop_does_not_wait_for_a_query() {
    let mut pair = Pair::database();
    let mut asking = pair.command(&["store", "query", "--timeout", "1s", ENDLESS]).spawn().unwrap();
    let log = pair.path("a.log");
    // It is in the hands of the node once a second one waits behind it, which would be answered at once otherwise.
    wait_until(|| pair.run(&["store", "query", "--timeout", "200ms", "SELECT 1"]).code == Some(3));
    let started = Instant::now();
    signal(&pair.nodes[0], Signal::TERM);
    assert!(pair.wait(0).success(), "{}", fs::read_to_string(log).unwrap());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    asking.kill().unwrap();
    asking.wait().unwrap();
}

#[test]
fn the_files_of_a_store_in_use_are_left_alone() {
    let mut pair = Pair::database();
    let store = pair.path("store");
    let refused = query_dead(&store, "SELECT 1").failed(1);
    assert!(refused.contains("a node has the store in ") && refused.contains("--server"), "{refused}");
    signal(&pair.nodes[0], Signal::TERM);
    assert!(pair.wait(0).success());
    assert_eq!(query_dead(&store, "SELECT 1 AS one").json()[0]["one"], 1);
}

#[test]
fn a_dead_store_without_a_log_gets_none() {
    let mut pair = Pair::database();
    pair.run(&["publish", "t", "first"]).ok();
    signal(&pair.nodes[0], Signal::TERM);
    assert!(pair.wait(0).success());
    let store = pair.path("store");
    let odd = pair.path("a store? 100% #1 é");
    fs::remove_file(database(&store).with_extension("db-wal")).unwrap();
    fs::rename(&store, &odd).unwrap();
    let before = contents(&odd);
    assert_eq!(query_dead(&odd, "SELECT count(*) AS n FROM messages").json()[0]["n"], 1);
    assert!(contents(&odd) == before, "asking has changed the store");
}

/// A commit that was synced and cannot be read any more: what was committed before it is not the answer.
#[test]
fn a_dead_store_with_a_damaged_log_is_not_asked() {
    let mut pair = Pair::database();
    fill(&pair);
    pair.nodes[0].kill().unwrap();
    pair.wait(0);
    let store = pair.path("store");
    let log = database(&store).with_extension("db-wal");
    let mut bytes = fs::read(&log).unwrap();
    bytes[32 + 24 + 100] ^= 1;
    fs::write(&log, bytes).unwrap();
    let refused = query_dead(&store, "SELECT 1").failed(1);
    assert!(refused.contains("damaged at byte 32"), "{refused}");
}

#[test]
fn a_store_in_file_mode_says_that_it_cannot_be_asked() {
    let mut pair = Pair::single();
    let refused = query_live(&pair, "SELECT 1").failed(1);
    assert!(refused.contains("it is in file mode"), "{refused}");
    signal(&pair.nodes[0], Signal::TERM);
    assert!(pair.wait(0).success());
    let refused = query_dead(&pair.path("store"), "SELECT 1").failed(1);
    assert!(refused.contains("it is in file mode"), "{refused}");
    let refused = query_dead(&pair.path("nothing"), "SELECT 1").failed(1);
    assert!(refused.contains("does not exist"), "{refused}");
}

//! Commands for dead letters, before and after a takeover.

mod cli_support;

use cli_support::{Pair, wait_until};
use serde_json::Value;

/// Has three messages die in the group `g` of the topic `t`: `a` and `c` were rejected, `b` failed once too often.
fn bury(pair: &Pair) {
    pair.run(&["topic", "create", "t"]).ok();
    pair.run(&["group", "create", "t", "g"]).ok();
    for body in ["a", "b", "c"] {
        pair.run(&["publish", "t", "--key", &format!("key-{body}"), "--header", "from=here", body]).ok();
    }
    let consume = |then: &[&str]| {
        let args = ["consume", "t", "--group", "g", "--count", "1", "--idle-timeout", "20s"];
        pair.run(&[&args, then].concat()).ok()
    };
    assert_eq!(consume(&["--then", "reject", "--reason", "no such customer"]), "a\n");
    pair.run(&["group", "set", "t", "g", "--max-attempts", "1"]).ok();
    assert_eq!(consume(&["--then", "nack", "--reason", "no stock"]), "b\n");
    assert_eq!(consume(&["--then", "reject"]), "c\n");
    wait_until(|| list(pair, &[]).len() == 3);
}

fn list(pair: &Pair, flags: &[&str]) -> Vec<Value> {
    pair.run(&[&["dead-letter", "list", "t", "--json"], flags].concat()).json()
}

/// All that the commands say of the letters.
fn said(pair: &Pair) -> (Vec<Value>, String, Vec<String>) {
    let listed = list(pair, &[]);
    let shown = listed.iter().map(|letter| {
        let offset = letter["offset"].to_string();
        pair.run(&["dead-letter", "show", "t", &offset]).ok()
    });
    (listed.clone(), pair.run(&["dead-letter", "list", "t"]).ok(), shown.collect())
}

fn letters_outlive_a_takeover(mut pair: Pair) {
    bury(&pair);
    let before = said(&pair);
    let bodies: Vec<&str> = before.2.iter().map(|shown| shown.lines().last().unwrap()).collect();
    assert_eq!(bodies, ["a", "b", "c"]);
    pair.take_over();
    assert_eq!(said(&pair), before);
    let offsets = |flags: &[&str]| -> Vec<u64> {
        let letters = list(&pair, flags);
        letters.iter().map(|letter| letter["offset"].as_u64().unwrap()).collect()
    };
    assert_eq!(offsets(&["--reason", "rejected"]), [0, 2]);
    assert_eq!(offsets(&["--key", "key-b"]), [1]);
    assert_eq!(offsets(&["--filter", "\"from\" = 'here'", "--limit", "2"]), [0, 1]);
    let purged = pair.run(&["dead-letter", "purge", "t", "--reason", "nacked"]).ok();
    assert_eq!(purged, "1 dead letter removed\n");
    let (mut listed, _, mut shown) = before;
    listed.remove(1);
    shown.remove(1);
    pair.take_over();
    let after = said(&pair);
    assert_eq!((&after.0, &after.2), (&listed, &shown), "the others stay as they were");
    let gone = pair.run(&["dead-letter", "show", "t", "1"]).failed(1);
    assert!(gone.contains("there is no dead letter at offset 1 for t"), "{gone}");
    assert_eq!(pair.run(&["dead-letter", "purge", "t"]).ok(), "2 dead letters removed\n");
    pair.take_over();
    assert_eq!(list(&pair, &[]), Vec::<Value>::new());
    assert_eq!(pair.run(&["dead-letter", "purge", "t"]).ok(), "0 dead letters removed\n");
}

#[test]
fn letters_outlive_a_takeover_in_file_mode() {
    letters_outlive_a_takeover(Pair::both_in("file"));
}

#[test]
fn letters_outlive_a_takeover_in_database_mode() {
    letters_outlive_a_takeover(Pair::both_in("database"));
}

//! Backups of a master that is at work, through the client library.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use batonmq::client::{Backup, Client, ClientError, ClientOptions, ProducerOptions};
use batonmq::model::message::Message;
use batonmq::protocol::error::ErrorCode;
use batonmq::store::archive::Reader;
use cli_support::{PATIENCE, Pair};

async fn client(pair: &Pair) -> Client {
    let options =
        ClientOptions { servers: pair.servers.clone(), timeout: PATIENCE, ..ClientOptions::default() };
    Client::connect(options).await.unwrap()
}

async fn received(mut backup: Backup) -> Vec<u8> {
    let mut archive = Vec::new();
    while let Some(part) = backup.next_part().await.unwrap() {
        archive.extend_from_slice(&part);
    }
    archive
}

/// The bodies in an archive of one topic, which must be the first so many messages.
fn count(archive: &[u8]) -> u64 {
    let mut reader = Reader::open(archive).unwrap();
    let mut next = 0;
    while let Some((_, chunk)) = reader.next_messages().unwrap() {
        for index in 0..chunk.block.count() {
            let body = chunk.block.message(index).unwrap().body;
            assert_eq!(body.as_ref(), format!("{next:0900}").as_bytes());
            next += 1;
        }
    }
    let producer = reader.snapshot().producers.values().next().unwrap();
    assert_eq!(producer.last.0, next, "the producer's sequence is of the same moment");
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_has_what_was_confirmed_before_it_and_no_half_of_what_came_later() {
    const MESSAGES_MAX: u64 = 20_000;
    let pair = Pair::single();
    let publisher = client(&pair).await;
    let (confirmed, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (confirmed, sent, stop) = (Arc::clone(&confirmed), Arc::clone(&sent), Arc::clone(&stop));
        async move {
            let topic = publisher.topic("t").await.unwrap();
            let producer = publisher.producer(ProducerOptions::default()).await.unwrap();
            for number in 0..MESSAGES_MAX {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                sent.store(number + 1, Ordering::SeqCst);
                producer.send(&topic, &Message::new(format!("{number:0900}"))).await.unwrap();
                confirmed.store(number + 1, Ordering::SeqCst);
            }
        }
    });
    let begun = std::time::Instant::now();
    while confirmed.load(Ordering::SeqCst) < 200 {
        assert!(begun.elapsed() < PATIENCE, "nothing is published");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let asking = client(&pair).await;
    for _ in 0..4 {
        let before = confirmed.load(Ordering::SeqCst);
        let archive = received(asking.backup().await.unwrap()).await;
        let after = sent.load(Ordering::SeqCst);
        let found = count(&archive);
        assert!((before..=after).contains(&found), "{found} of {before} to {after}");
    }
    stop.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
}

/// Fills a topic with more than one part of a backup.
async fn publish_much(pair: &Pair) {
    let publisher = client(pair).await;
    let topic = publisher.topic("t").await.unwrap();
    let producer = publisher.producer(ProducerOptions::default()).await.unwrap();
    for _ in 0..4 {
        producer.send(&topic, &Message::new(vec![7; 1 << 20])).await.unwrap();
    }
    publisher.close().await;
}

fn is_refused(error: &ClientError, code: ErrorCode) -> bool {
    matches!(error, ClientError::Refused(refusal) if refusal.code == code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_backups_are_under_way_and_one_ends_with_its_connection() {
    let pair = Pair::single();
    publish_much(&pair).await;
    let (first, second, third) = (client(&pair).await, client(&pair).await, client(&pair).await);
    let (mut one, mut two) = (first.backup().await.unwrap(), second.backup().await.unwrap());
    one.next_part().await.unwrap().unwrap();
    two.next_part().await.unwrap().unwrap();
    let refused = third.backup().await.unwrap().next_part().await.unwrap_err();
    assert!(is_refused(&refused, ErrorCode::Limit), "{refused}");
    // A new one on the same connection takes the place of the old one, which cannot go on.
    let again = first.backup().await.unwrap();
    assert!(received(again).await.len() > 4 << 20);
    let refused = one.next_part().await.unwrap_err();
    assert!(is_refused(&refused, ErrorCode::Invalid), "{refused}");
    drop(two);
    second.close().await;
    let begun = std::time::Instant::now();
    loop {
        match third.backup().await.unwrap().next_part().await {
            Ok(_) => break,
            Err(error) if is_refused(&error, ErrorCode::Limit) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

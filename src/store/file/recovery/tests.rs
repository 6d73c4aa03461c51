//! A recovery beside an old master that still writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::model::id::{Offset, TopicId};
use crate::model::message::{Message, MessageBlock};
use crate::model::name::Name;
use crate::model::record::{Published, Record, Source};
use crate::model::settings::TopicSettings;
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::store::file::open_file;
use crate::store::{self, Predecessor, Predecessors, Store};

fn options(dir: &Path, epoch: u64) -> OpenOptions {
    let lower = (1..epoch).map(|lower| (Epoch(lower), Predecessor::MayWrite));
    OpenOptions {
        dir: dir.to_owned(),
        mode: Mode::File,
        epoch: Epoch(epoch),
        predecessors: Predecessors::new(lower.collect()),
        segment_bytes: 64 << 10,
    }
}

/// A takeover may die between its manifest and its first segment: then nothing is missing, unless its epoch had begun.
#[test]
fn a_journal_that_is_not_there_is_missed_only_where_its_epoch_had_begun() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_file(&options(dir.path(), 1)).unwrap());
    recover(&options(dir.path(), 2)).unwrap().manifest.write(dir.path()).unwrap();
    let open = |begun| {
        let options = options(dir.path(), 3);
        let predecessors = options.predecessors.clone().begun_up_to(Epoch(begun));
        store::check::check(dir.path(), &predecessors)?;
        store::open(&OpenOptions { predecessors, ..options }, &mut || Ok(())).map(drop)
    };
    let missing = SegmentId { epoch: Epoch(2), number: 1 }.path(&dir.path().join("journal"));
    assert!(matches!(open(2), Err(StoreError::Missing { path }) if path == missing));
    // Where a successor has taken over meanwhile, it may have removed it.
    let options = options(dir.path(), 3);
    let predecessors = options.predecessors.clone().begun_up_to(Epoch(2));
    let mut checks = 0;
    let opened = store::open(&OpenOptions { predecessors, ..options }, &mut || {
        checks += 1;
        if checks == 1 { Ok(()) } else { Err(Fenced::Superseded(Epoch(4))) }
    });
    assert!(matches!(opened.map(drop), Err(StoreError::Fenced(Fenced::Superseded(Epoch(4))))));
    open(1).unwrap();
}

/// A paused master woke up while the next one read its journal, and wrote two entries before it checked the fence:
/// one where the reader had just found the end, one behind it. The reader took the gap for damage and refused to
/// serve, so that nobody did.
#[test]
fn an_old_master_that_still_writes_is_not_taken_for_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open_file(&options(dir.path(), 1)).unwrap();
    let topic = TopicId(0);
    let name = Name::new("t").unwrap();
    store
        .commit(&[Record::TopicCreated {
            topic,
            name,
            kind: TopicKind::Named,
            settings: TopicSettings::default(),
        }])
        .unwrap();
    let over = AtomicBool::new(false);
    let recovered = std::thread::scope(|scope| {
        scope.spawn(|| {
            for offset in 0.. {
                let block = MessageBlock::encode(&[Message::new(vec![7; 300])]);
                let targets = vec![(topic, Offset(offset))];
                let published = Published { targets, source: Source::Broker, at: Timestamp(1), block };
                store.commit(&[Record::Published(published)]).unwrap();
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let started = Instant::now();
        let during = std::iter::from_fn(|| {
            (started.elapsed() < Duration::from_secs(1)).then(|| recover(&options(dir.path(), 2)))
        });
        let recovered: Vec<_> = during.collect();
        over.store(true, Ordering::Relaxed);
        recovered
    });
    let ends: Vec<_> = recovered.into_iter().map(|recovered| recovered.unwrap().end).collect();
    assert!(ends.is_sorted(), "{ends:?}");
}

//! A broker between a store and clients that live in memory, watched by a naive model.
//!
//! The model knows every message of every group by itself: who has it, how often it failed, when it is due. Whatever
//! the broker puts out is checked against it, record by record and message by message, and the fold of the records
//! against the broker's own snapshot after each cycle.

#![allow(dead_code, reason = "each test uses a part of it")]

mod amounts;
mod asking;
mod deliveries;
pub mod explain;
mod order;
mod records;
mod transact;

use std::collections::{BTreeMap, BTreeSet};

use batonmq::broker::{AutoCreate, Broker, Output, Read};
use batonmq::model::chunk::{Chunk, Origin, Stamp};
use batonmq::model::id::{GroupId, Offset, OffsetRange, ProducerId, Sequence, SessionId, TopicId};
use batonmq::model::limits::Limits;
use batonmq::model::message::{Message, MessageBlock};
use batonmq::model::record::Record;
use batonmq::model::retry::ReturnReason;
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::protocol::error::{ErrorCode, Refusal};
use batonmq::protocol::request::*;
use batonmq::protocol::response::Reply;
use order::Order;

/// Messages that say who publishes them, and as which of its messages.
fn told_apart(session: SessionId, handle: Handle, sequence: u64, count: u32) -> Vec<Message> {
    (0..u64::from(count))
        .map(|index| Message::new(format!("{:>8}:{handle:>4}:{:>6}", session.0, sequence + index)))
        .collect()
}

/// A message as the store has it.
#[derive(Clone)]
pub struct Stored {
    pub message: Message,
    pub published_at: Timestamp,
    pub origin: Option<Origin>,
}

/// A message as a group knows it.
#[derive(Clone, Default)]
pub struct Known {
    /// Attempts that failed.
    pub attempts: u32,
    /// Hand-overs that came back.
    pub returns: u32,
    pub due_at: Timestamp,
    pub holder: Option<(SessionId, Handle)>,
    pub deadline: Timestamp,
    /// Handed out by any broker so far.
    pub handed: bool,
    pub rejected: bool,
}

#[derive(Default)]
pub struct Client {
    pub producers: BTreeMap<Handle, ProducerId>,
    pub consumers: BTreeMap<Handle, GroupId>,
    /// The topic of each consumer's group.
    pub topics: BTreeMap<Handle, TopicId>,
    pub windows: BTreeMap<Handle, Window>,
    /// Pulls that were not answered yet, with what each has got.
    pub pulls: BTreeMap<RequestId, (Handle, Window, u32, u64)>,
    /// How often what a consumer had of a topic was recalled.
    pub generations: BTreeMap<(Handle, TopicId), u32>,
    pub full: bool,
}

/// A question for the messages of a topic from an offset on.
pub fn browse(topic: &str, from: u64, messages_max: u32) -> AdminCommand {
    AdminCommand::Browse {
        topic: topic.into(),
        group: None,
        from: BrowseFrom::Position(Offset(from).into()),
        since: Timestamp(0),
        filter: None,
        messages_max,
    }
}

pub struct World {
    pub broker: Broker,
    pub limits: Limits,
    pub creation: AutoCreate,
    /// Bytes for which there is memory on their way to consumers.
    pub output_max: u64,
    pub now: Timestamp,
    pub fold: Snapshot,
    pub store: BTreeMap<TopicId, BTreeMap<u64, Stored>>,
    /// Messages that the store cannot read for now, and those that it ever could not.
    pub unread: BTreeSet<(TopicId, u64)>,
    pub was_unread: BTreeSet<(TopicId, u64)>,
    /// Whether the store says of each message alone that it cannot be read, and not of all around it.
    pub tells_singly: bool,
    /// The sizes that messages of each topic have ever had.
    sizes: BTreeMap<TopicId, BTreeSet<u64>>,
    pub groups: BTreeMap<GroupId, BTreeMap<u64, Known>>,
    /// Up to where each group may have handed out before the broker was started anew.
    pub fresh_from: BTreeMap<GroupId, u64>,
    pub clients: BTreeMap<SessionId, Client>,
    pub owners: BTreeMap<ProducerId, (SessionId, Handle)>,
    pub reads: Vec<Read>,
    pub out: Output,
    /// Acked in this cycle: must become known in it.
    acked: BTreeSet<(GroupId, u64)>,
    /// Returned in this cycle: must be recorded in it. Why it failed, if it did, and the wait that was asked for.
    returned: BTreeMap<(GroupId, u64), (Option<ReturnReason>, Option<u64>)>,
    /// To be confirmed in this cycle.
    confirms: BTreeMap<(SessionId, Handle), Sequence>,
    /// What an administrator wants taken out of topics.
    pub taken_out: BTreeSet<(TopicId, u64)>,
    /// Whether dead letters are replayed for the groups in which they died only.
    pub replays_to_group: bool,
    /// What the commit that is looked at removes. A commit takes effect as one, whatever the order of its records.
    removed_now: BTreeSet<(TopicId, u64)>,
    /// Dead letters so far.
    pub dead: BTreeSet<(GroupId, u64)>,
    next_request: RequestId,
    pub replies: Vec<(SessionId, RequestId, Result<Reply, Refusal>)>,
    pub refused: Vec<(SessionId, Handle, ErrorCode, Sequence)>,
    /// Deliveries of the last cycle: who, group, offset, whether it was new to the group.
    pub delivered: Vec<(SessionId, Handle, GroupId, u64, bool)>,
    /// Producers that were told that there is room, so far.
    pub ready: Vec<(SessionId, Handle)>,
    /// Topics purged in this cycle, groups ever set to another place.
    pub purged: BTreeSet<TopicId>,
    pub sought: BTreeSet<GroupId>,
    pub checks_bytes: bool,
    pub order: Order,
    /// Topics that consumers were told the names of.
    pub named: BTreeSet<(SessionId, Handle, TopicId)>,
    /// Groups that somebody has deleted, or whose topic, in this cycle.
    deleting: bool,
    /// Filters that groups may have, and what each of them is. Others are not checked.
    pub filters: BTreeMap<String, fn(&Message) -> bool>,
    filters_had: BTreeMap<GroupId, BTreeSet<String>>,
    /// Slots that were over when the broker last rested: they are to be used before others are made.
    spares: BTreeSet<TopicId>,
}

impl World {
    pub fn new(limits: Limits, creation: AutoCreate) -> Self {
        Self {
            broker: Broker::new(Snapshot::default(), limits.clone(), creation),
            limits,
            creation,
            output_max: u64::MAX,
            now: Timestamp(1_000_000),
            fold: Snapshot::default(),
            store: BTreeMap::new(),
            unread: BTreeSet::new(),
            was_unread: BTreeSet::new(),
            tells_singly: false,
            sizes: BTreeMap::new(),
            groups: BTreeMap::new(),
            fresh_from: BTreeMap::new(),
            clients: BTreeMap::new(),
            owners: BTreeMap::new(),
            reads: Vec::new(),
            out: Output::default(),
            acked: BTreeSet::new(),
            returned: BTreeMap::new(),
            confirms: BTreeMap::new(),
            taken_out: BTreeSet::new(),
            replays_to_group: false,
            removed_now: BTreeSet::new(),
            dead: BTreeSet::new(),
            next_request: 1,
            replies: Vec::new(),
            refused: Vec::new(),
            delivered: Vec::new(),
            ready: Vec::new(),
            purged: BTreeSet::new(),
            sought: BTreeSet::new(),
            checks_bytes: true,
            order: Order::default(),
            named: BTreeSet::new(),
            deleting: false,
            filters: BTreeMap::new(),
            filters_had: BTreeMap::new(),
            spares: BTreeSet::new(),
        }
    }

    /// Ends the cycle and checks all of it.
    pub fn finish(&mut self) {
        self.collect_replies();
        self.broker.limit_output(self.output_max);
        self.broker.finish(self.now, &mut self.out);
        self.delivered.clear();
        let mut dead_now = BTreeSet::new();
        let records = std::mem::take(&mut self.out.records);
        self.note_removed(&records);
        self.check_slots_stay(&records);
        for record in records {
            self.check_record(&record, &mut dead_now);
            self.check_lifetime(&record);
            self.fold.apply(&record).expect("every record fits");
            if let Record::GroupDeleted { group } = record {
                self.groups.remove(&group);
                self.acked.retain(|(id, _)| *id != group);
                self.returned.retain(|(id, _), _| *id != group);
            }
        }
        assert!(self.acked.is_empty(), "acked, but not recorded: {:?}", self.acked);
        assert!(self.returned.is_empty(), "returned, but not recorded: {:?}", self.returned);
        assert!(dead_now.is_empty(), "dead letters of messages that are not settled: {dead_now:?}");
        assert_eq!(self.broker.snapshot(), self.fold, "the snapshot is the fold of the records");
        for effect in std::mem::take(&mut self.out.effects) {
            self.check_effect(effect.session, effect.content);
        }
        let untold = self.named.iter().find(|(_, _, topic)| !self.fold.topics.contains_key(topic));
        assert_eq!(untold, None, "a consumer is told of the end of a topic");
        self.deleting = false;
        self.check_roles();
        let unanswered: Vec<_> = self.confirms.keys().collect();
        assert!(unanswered.is_empty(), "published, but neither confirmed nor refused: {unanswered:?}");
        self.reads.append(&mut self.out.reads);
        self.purged.clear();
        self.check_bounds();
        self.check_kept();
    }

    /// Answers a read.
    pub fn answer(&mut self, index: usize) {
        let read = self.reads.remove(index);
        if let Some(range) = self.unread_at(read.topic, read.from.0) {
            self.broker.could_not_read(self.now, read, range, "damaged", &mut self.out);
            return;
        }
        let mut messages = Vec::new();
        let mut bytes = 0;
        let stored = self.store.get(&read.topic);
        while let Some(stored) = stored.and_then(|stored| stored.get(&(read.from.0 + messages.len() as u64)))
        {
            bytes += stored.message.encoded_len();
            let at = read.from.0 + messages.len() as u64;
            let fits = bytes <= read.bytes_max && !self.unread.contains(&(read.topic, at));
            if !fits && !messages.is_empty() {
                break;
            }
            messages.push(stored.clone());
        }
        let chunk = (!messages.is_empty()).then(|| Chunk {
            first: read.from,
            block: MessageBlock::encode(messages.iter().map(|stored| &stored.message)),
            stamps: messages
                .iter()
                .map(|stored| Stamp { count: 1, published_at: stored.published_at, origin: stored.origin })
                .collect(),
        });
        self.broker.loaded(self.now, read, chunk, &mut self.out);
    }

    pub fn answer_all(&mut self) {
        while !self.reads.is_empty() {
            self.answer(0);
        }
    }

    /// Has so many messages of a topic unreadable from now on. Numbers pick among what there is. An even number of them the
    /// store tells one by one.
    pub fn damage(&mut self, topic: usize, from: usize, count: usize) {
        self.tells_singly = count.is_multiple_of(2);
        let topics: Vec<_> = self.store.iter().filter(|(_, stored)| !stored.is_empty()).collect();
        let Some((id, stored)) = topics.get(topic % topics.len().max(1)) else { return };
        let places = stored.keys().skip(from % stored.len()).take(count).map(|offset| (**id, *offset));
        self.unread.extend(places);
        self.was_unread.extend(&self.unread);
    }

    /// All can be read again.
    pub fn heal(&mut self) {
        self.unread.clear();
    }

    /// The messages around this one that cannot be read, if it is there and cannot.
    fn unread_at(&self, topic: TopicId, offset: u64) -> Option<OffsetRange> {
        let is_unread = |offset: u64| self.unread.contains(&(topic, offset));
        self.store.get(&topic)?.get(&offset).filter(|_| is_unread(offset))?;
        if self.tells_singly {
            return Some(OffsetRange::one(Offset(offset)));
        }
        let start = (0..offset).rev().take_while(|at| is_unread(*at)).last().unwrap_or(offset);
        let end = (offset..).take_while(|at| is_unread(*at)).last().unwrap_or(offset) + 1;
        Some(OffsetRange::new(start, end))
    }

    /// The process ends, and another broker goes on from what is durable. What this cycle has done is gone.
    pub fn restart(&mut self) {
        self.out = Output::default();
        self.acked.clear();
        self.returned.clear();
        let Self { groups, fold, .. } = self;
        groups.retain(|id, _| fold.groups.contains_key(id));
        self.reads.clear();
        self.spares.clear();
        self.clients.clear();
        self.owners.clear();
        self.confirms.clear();
        self.named.clear();
        self.order = Order::default();
        for (id, messages) in &mut self.groups {
            let state = &self.fold.groups[id];
            let end = self.fold.topics[&state.topic].end;
            let fresh_from = state.handed_out.min(end).0;
            self.fresh_from.insert(*id, fresh_from);
            for (offset, known) in messages {
                assert!(!known.handed || *offset < fresh_from, "handed out, but not marked as such");
                known.holder = None;
            }
        }
        self.broker = Broker::new(self.fold.clone(), self.limits.clone(), self.creation);
    }
}

//! What was promised to clients, and whether a store keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use batonmq::model::chunk::Chunk;
use batonmq::model::id::{Epoch, Offset, TopicId};
use batonmq::model::message::Message;
use batonmq::model::snapshot::Snapshot;
use batonmq::store::StoreError;
use batonmq::store::image::{look, walk};
use batonmq::store::manifest::Manifest;
use batonmq::store::survey::survey;

/// The topic of messages that stay.
pub const KEPT: &str = "kept";
/// The topic whose messages go once they are acked.
pub const QUEUE: &str = "queue";
/// The group of that topic.
pub const GROUP: &str = "group";

/// Which message: of which producer, its number.
pub type MessageId = (usize, u64);

/// What clients were told.
#[derive(Debug, Default)]
pub struct History {
    /// The last message of each producer that was confirmed.
    pub confirmed: BTreeMap<usize, u64>,
    /// Messages of which an ack was sent, told or not.
    pub ack_sent: BTreeSet<MessageId>,
    /// Messages whose ack was confirmed, and in which epoch.
    pub acked: BTreeMap<MessageId, u64>,
    /// Messages to the topic of those that stay; all others went to the queue.
    pub kept: BTreeSet<MessageId>,
}

/// The text of a message that says which one it is.
pub fn body(id: MessageId, bytes: u64) -> Vec<u8> {
    let mut text = format!("{}:{}:", id.0, id.1).into_bytes();
    let fill = (id.1 as u8).wrapping_mul(31).wrapping_add(id.0 as u8);
    text.resize(text.len().max(bytes as usize), fill);
    text
}

/// Which message a body is, if it is as it was written.
pub fn identify(text: &[u8]) -> Option<MessageId> {
    let mut parts = text.splitn(3, |&byte| byte == b':');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let id = (number()? as usize, number()?);
    (body(id, text.len() as u64) == text).then_some(id)
}

/// Checks that a survey of the store at `dir` finds nothing wrong, but for files of which `is_known` says that they are
/// damaged.
pub fn verify(dir: &Path, is_known: impl Fn(&Path) -> bool) -> Result<(), String> {
    let error = |error: StoreError| format!("the store cannot be surveyed: {error}");
    let Some(manifest) = Manifest::newest(dir, Epoch(u64::MAX)).map_err(error)? else { return Ok(()) };
    let survey = survey(dir, &manifest, &mut |_| ()).map_err(error)?;
    match survey.damages.iter().find(|damage| !is_known(&damage.path)) {
        Some(damage) => Err(format!("a survey finds {}: {}", damage.path.display(), damage.what)),
        None => Ok(()),
    }
}

impl History {
    /// Checks what the store at `dir` holds, as one reads it who sees what is on the disk.
    pub fn check(&self, dir: &Path) -> Result<(), String> {
        let error = |error: StoreError| format!("the store cannot be read: {error}");
        let manifest = match Manifest::newest(dir, Epoch(u64::MAX)).map_err(error)? {
            Some(manifest) => manifest,
            None if self.confirmed.is_empty() => return Ok(()),
            None => return Err("messages were confirmed, and there is no manifest".to_owned()),
        };
        let mut image = look(dir, &manifest).map_err(error)?;
        let snapshot = image.snapshot().clone();
        let mut found = Found::default();
        let walked = walk(image.as_mut(), |topic, chunk| {
            found.take(&snapshot, topic, chunk);
            Ok::<(), StoreError>(())
        });
        walked.map_err(error)?;
        if let Some(wrong) = found.wrong {
            return Err(wrong);
        }
        self.compare(&snapshot, &found.messages)
    }

    fn compare(
        &self,
        snapshot: &Snapshot,
        found: &BTreeMap<MessageId, (TopicId, Offset)>,
    ) -> Result<(), String> {
        for (&producer, &confirmed) in &self.confirmed {
            for number in 1..=confirmed {
                let id = (producer, number);
                let is_gone = !self.kept.contains(&id) && self.ack_sent.contains(&id);
                if !is_gone && !found.contains_key(&id) {
                    return Err(format!("message {number} of producer {producer} was confirmed and is lost"));
                }
            }
        }
        for id in self.acked.keys() {
            let Some(&(topic, offset)) = found.get(id) else { continue };
            let group = snapshot.groups.values().find(|group| group.topic == topic);
            let is_settled =
                group.is_some_and(|group| offset < group.floor || group.settled.contains(offset));
            if !is_settled {
                return Err(format!(
                    "the ack of message {} of producer {} was confirmed and is lost",
                    id.1, id.0
                ));
            }
        }
        Ok(())
    }
}

/// The messages of a store.
#[derive(Default)]
struct Found {
    messages: BTreeMap<MessageId, (TopicId, Offset)>,
    last: BTreeMap<(TopicId, usize), u64>,
    wrong: Option<String>,
}

impl Found {
    fn take(&mut self, snapshot: &Snapshot, topic: TopicId, chunk: &Chunk) {
        for (encoded, offset) in chunk.block.iter().zip(chunk.first.0..) {
            let message = Message::decode(&encoded).ok();
            let Some(id) = message.and_then(|message| identify(&message.body)) else {
                self.wrong
                    .get_or_insert(format!("message {offset} of topic {topic} is not what was published"));
                continue;
            };
            let before = self.last.insert((topic, id.0), id.1).unwrap_or(0);
            if id.1 <= before {
                let name = snapshot.topics.get(&topic).map_or("?", |topic| topic.name.as_str());
                let what =
                    format!("{name} has message {} of producer {} behind its message {before}", id.1, id.0);
                self.wrong.get_or_insert(what);
            }
            self.messages.insert(id, (topic, Offset(offset)));
        }
    }
}

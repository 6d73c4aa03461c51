//! Dead letters: where a message goes after its last attempt or when it is rejected.
//!
//! The copy in the dead-letter topic and the settlement in the group are one commit, so a message is in one of both
//! places, never in none and never in both. The copy keeps key, headers and body and has the headers of [`HEADERS`] and
//! perhaps [`PATTERN`] and [`PRIORITY`], texts all of them; from a message that dies again the older values become a line
//! of `baton.dead.history`, the last [`HISTORY_LINES`] of which are kept. The limits on headers do not apply to these.
//! Letters have no priority of their own: they lie in the order in which they died.
//!
//! The topic is the one that the group's settings name, or the topic's own name with `.dead-letter` behind it. It is
//! created when it is needed, even where topics are not created by using them. Where it cannot be, or there is no space
//! for the copies, the messages wait.
//! There are no dead letters of dead letters: in a topic whose name ends in `.dead-letter`, and in one that a group is told
//! to use for those of its own, nothing dies unless the settings name another topic. What fails there is tried again with the
//! back-off, whatever `max_attempts` says, and so is what is rejected there.

use super::machine::Broker;
use super::pattern::stands_for;
use super::reading::{READ_BYTES, READ_ONE_BYTES, RETRY_READS_MAX, Want};
use super::topic::stored_bytes;
use super::{Output, refusals};
use crate::model::chunk::Origin;
use crate::model::id::{GroupId, Offset, OffsetRange, TopicId};
use crate::model::limits::{NAME_BYTES_MAX, PRIORITY_MAX};
use crate::model::message::{Message, MessageBlock};
use crate::model::name::Name;
use crate::model::position::Position;
use crate::model::record::Source;
use crate::model::retry::{Failure, Retry, ReturnReason};
use crate::model::settings::{GroupSettings, TopicSettings};
use crate::model::time::Timestamp;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::Refusal;

/// What the name of a dead-letter topic ends with.
pub const DEAD_LETTER_SUFFIX: &str = ".dead-letter";
/// The headers that a dead message gets, in this order: topic, offset and group that it comes from, failed attempts,
/// what ended the last of them, when it was published, when it died, how often it was handed out, and a line for each
/// of the last failures with its time, its reason and what the consumer said.
pub const HEADERS: [&str; 9] = [
    "baton.dead.topic",
    "baton.dead.offset",
    "baton.dead.group",
    "baton.dead.attempts",
    "baton.dead.reason",
    "baton.dead.published-at",
    "baton.dead.at",
    "baton.dead.deliveries",
    "baton.dead.failures",
];
/// The pattern that the group is a group of, where it is not one of the topic itself: both may have a group of that name.
pub const PATTERN: &str = "baton.dead.pattern";
/// The priority that it had, where that is not 0.
pub const PRIORITY: &str = "baton.dead.priority";
/// The header with what the others said before: a line for each earlier death, the oldest first.
pub const HISTORY: &str = "baton.dead.history";
/// Lines of history that are kept.
pub const HISTORY_LINES: usize = 16;

/// Messages and bytes that a group moves in one cycle.
const MOVED_PER_CYCLE: usize = 256;
const MOVED_BYTES_PER_CYCLE: usize = 1 << 20;
/// Milliseconds until a move that had no topic or no space is tried again.
const TRY_AGAIN_MS: u64 = 1_000;

/// Where dead messages of a group go; `None` where nothing dies.
pub(super) fn target(topic: &Name, settings: &GroupSettings) -> Option<Name> {
    if let Some(name) = &settings.dead_letter {
        return (name != topic).then(|| name.clone());
    }
    if topic.as_str().ends_with(DEAD_LETTER_SUFFIX) {
        return None;
    }
    // A name is ASCII; one that is too long loses its end, and the headers tell where the messages come from.
    let kept = topic.as_str().len().min(NAME_BYTES_MAX - DEAD_LETTER_SUFFIX.len());
    Name::new(&format!("{}{DEAD_LETTER_SUFFIX}", &topic.as_str()[..kept])).ok()
}

/// Whether somebody may tell a group of a topic, or of a pattern, to use these settings: its dead letters must not come
/// back to it.
///
/// # Errors
/// Where they would.
pub fn check_target(topic: &str, settings: &GroupSettings) -> Result<(), Refusal> {
    let Some(target) = &settings.dead_letter else { return Ok(()) };
    let comes_back = match Name::pattern(topic) {
        Ok(pattern) => stands_for(&pattern, target),
        Err(_) => target.as_str() == topic,
    };
    if comes_back {
        let text = format!(
            "dead letters of a group of {topic} cannot go to {target}: the group would get them again; name another \
             topic, or set max_attempts to 0 for a group in which nothing dies"
        );
        return Err(refusals::invalid(&text));
    }
    Ok(())
}

/// What is said of a death.
struct Death {
    /// The values of [`HEADERS`].
    values: [String; 9],
    /// The value of [`PATTERN`].
    pattern: Option<String>,
}

/// The message as it stands in the dead-letter topic.
fn dead_message(mut message: Message, death: Death) -> Message {
    let history = take_history(&mut message, "");
    // There it neither waits for a time nor goes by itself.
    (message.deliver_at, message.expires_at) = (None, None);
    let priority = std::mem::take(&mut message.priority);
    let values = death.values.map(bytes::Bytes::from);
    message.headers.extend(HEADERS.map(str::to_owned).into_iter().zip(values));
    message.headers.extend(death.pattern.map(|pattern| (PATTERN.to_owned(), pattern.into())));
    message.headers.extend((priority > 0).then(|| (PRIORITY.to_owned(), priority.to_string().into())));
    message.headers.extend(history);
    message
}

/// A dead letter as it stands where it is replayed to.
pub(super) struct Revived {
    /// The topic that it comes from.
    pub topic: String,
    /// The group in which it died, of that topic or of a pattern.
    pub group: Option<String>,
    pub pattern: Option<String>,
    /// Alive, its death a line of its history.
    pub message: Message,
}

impl Revived {
    /// What becomes of a letter; `None` where it is none.
    pub fn of(mut message: Message, now: Timestamp) -> Option<Self> {
        let topic = text_of(&message, HEADERS[0])?;
        let (group, pattern) = (text_of(&message, HEADERS[2]), text_of(&message, PATTERN));
        // Only the node sets it; what makes no sense is no priority.
        let priority = text_of(&message, PRIORITY).and_then(|text| text.parse().ok());
        message.priority = priority.filter(|priority| *priority <= PRIORITY_MAX).unwrap_or(0);
        let history = take_history(&mut message, &format!(" replayed-at={now}"));
        message.headers.extend(history);
        Some(Self { topic, group, pattern, message })
    }
}

fn text_of(message: &Message, header: &str) -> Option<String> {
    message.header(header).map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Takes what says of deaths out of a message. Answers the header with the history, the last death in it, with
/// `addition` behind it.
fn take_history(message: &mut Message, addition: &str) -> Option<(String, bytes::Bytes)> {
    let text = |name| text_of(message, name);
    let mut history: Vec<String> =
        text(HISTORY).map(|lines| lines.lines().map(str::to_owned).collect()).unwrap_or_default();
    if text(HEADERS[0]).is_some() {
        let older = HEADERS.map(|name| text(name).unwrap_or_else(|| "?".to_owned()));
        let [topic, offset, group, attempts, reason, published_at, at, ..] = older;
        let pattern = text(PATTERN).map_or_else(String::new, |pattern| format!(" pattern={pattern}"));
        history.push(format!(
            "{at} topic={topic} offset={offset} group={group}{pattern} attempts={attempts} reason={reason} \
             published-at={published_at}{addition}"
        ));
    }
    let of_death =
        |name: &str| name == HISTORY || name == PATTERN || name == PRIORITY || HEADERS.contains(&name);
    message.headers.retain(|(name, _)| !of_death(name));
    let kept = history.len().saturating_sub(HISTORY_LINES);
    (!history.is_empty()).then(|| (HISTORY.to_owned(), history[kept..].join("\n").into()))
}

/// The last failures of a message, a line for each.
fn failures(retry: &Retry) -> String {
    let lines = retry.failures.iter().map(|Failure { at, reason, text }| {
        let text = text.as_deref().map(|text| format!(" {}", text.replace(['\n', '\r'], " ")));
        format!("{at} {}{}", reason.word(), text.unwrap_or_default())
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl Broker {
    /// Moves what is dying to the dead letters, as far as it is in memory; the rest is read.
    pub(super) fn move_dead(&mut self, out: &mut Output) {
        let dying: Vec<(GroupId, TopicId)> = self.dying.iter().copied().collect();
        for (id, topic) in dying {
            self.move_dead_of(id, topic, out);
            let part = self.groups.get(&id).and_then(|group| group.parts.get(&topic));
            if part.is_none_or(|part| part.redelivery.dying.is_empty()) {
                self.dying.remove(&(id, topic));
            }
        }
    }

    fn move_dead_of(&mut self, id: GroupId, topic_id: TopicId, out: &mut Output) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(topic) = self.topics.get(&topic_id) else { return };
        let target = target(&topic.state.name, &group.settings);
        let Some(part) = group.parts.get_mut(&topic_id) else { return };
        // What was dying may be settled meanwhile, or gone.
        if part.redelivery.dying.is_empty() || part.dying_not_before.is_some_and(|at| at > now) {
            return;
        }
        part.dying_not_before = None;
        self.cycle.mark(group, topic_id);
        let Some(target) = target else { return };
        let Some(to) = self.dead_letter_topic(target, out) else {
            self.put_off_dying(id, topic_id);
            return;
        };
        let Dead { messages, offsets, origins } = self.take_dead(id, topic_id, out);
        if messages.is_empty() {
            return;
        }
        let block = MessageBlock::encode(&messages);
        let Some(left) = self.space.checked_sub(stored_bytes(&block)) else {
            self.put_off_dying(id, topic_id);
            return;
        };
        self.space = left;
        self.append(to, block, Source::Mixed(origins), out);
        let group = self.groups.get_mut(&id);
        let Some(part) = group.and_then(|group| group.parts.get_mut(&topic_id)) else { return };
        for offset in offsets {
            part.redelivery.dying.remove(&offset);
            part.settle(OffsetRange::one(offset));
        }
    }

    /// Leaves the dying messages that a group has of a topic where they are for a while.
    fn put_off_dying(&mut self, id: GroupId, topic: TopicId) {
        let at = Timestamp(self.now.0.saturating_add(TRY_AGAIN_MS));
        if let Some(part) = self.groups.get_mut(&id).and_then(|group| group.parts.get_mut(&topic)) {
            part.dying_not_before = Some(at);
        }
    }

    fn dead_letter_topic(&mut self, name: Name, out: &mut Output) -> Option<TopicId> {
        match self.topic_names.get(&name) {
            Some(id) => Some(*id),
            None => self.create_topic(name, TopicSettings::default(), out).ok(),
        }
    }

    /// The dead messages that a group has of a topic and that are in memory, a cycle's worth.
    fn take_dead(&mut self, id: GroupId, topic_id: TopicId, out: &mut Output) -> Dead {
        let mut dead = Dead::default();
        let Some(group) = self.groups.get_mut(&id) else { return dead };
        let name = group.main().map_or_else(String::new, |main| main.state.name.to_string());
        let own = self.topics.get(&group.topic).filter(|own| own.state.kind == TopicKind::Pattern);
        let pattern = own.map(|own| own.state.name.to_string());
        let Some(topic) = self.topics.get(&topic_id) else { return dead };
        let Some(part) = group.parts.get_mut(&topic_id) else { return dead };
        let cached = self.cache.topic(topic_id);
        let (mut bytes, mut missing) = (0, Vec::new());
        let mut from = Offset(0);
        while let Some(&offset) = part.redelivery.dying.range(from..).next() {
            from = offset.next();
            if dead.messages.len() >= MOVED_PER_CYCLE || bytes >= MOVED_BYTES_PER_CYCLE {
                self.work_left = true;
                break;
            }
            let Some(chunk) = cached.and_then(|cached| cached.at(offset)) else {
                if let Some(end) = self.unreadable.held_to(topic_id, offset, self.now) {
                    from = end;
                    continue;
                }
                missing.push(offset);
                if missing.len() >= RETRY_READS_MAX {
                    break;
                }
                continue;
            };
            let index = (offset.0 - chunk.first.0) as usize;
            let encoded = chunk.block.slice(index, index + 1);
            bytes += encoded.len();
            // What cannot be read goes as it is: a store may hold what a later version wrote.
            let message = Message::decode(&encoded).unwrap_or_else(|_| Message::new(encoded));
            let retry = part.state.retries.get(offset).cloned().unwrap_or_default();
            let reason = retry.last_failure().map_or(ReturnReason::Rejected, |failure| failure.reason);
            let source = chunk.source(index);
            let values = [
                topic.state.name.to_string(),
                Position { priority: part.priority, offset }.to_string(),
                name.clone(),
                retry.failed.to_string(),
                reason.word().to_owned(),
                source.published_at.to_string(),
                self.now.to_string(),
                retry.handed_out.to_string(),
                failures(&retry),
            ];
            dead.messages.push(dead_message(message, Death { values, pattern: pattern.clone() }));
            dead.offsets.push(offset);
            dead.origins.push((1, source.origin));
        }
        for offset in missing {
            if part.wants.not_before.is_none()
                && part.wants.retries.len() < RETRY_READS_MAX
                && part.wants.retries.insert(offset)
            {
                let neighbour = part.redelivery.dying.contains(&offset.next());
                let bytes = if neighbour { READ_BYTES } else { READ_ONE_BYTES };
                let want = Want { topic: topic_id, from: offset, bytes, group: id };
                self.reads.want(want, &mut out.reads);
            }
        }
        dead
    }
}

/// Messages on their way to the dead letters.
#[derive(Default)]
struct Dead {
    messages: Vec<Message>,
    /// Where each was.
    offsets: Vec<Offset>,
    origins: Vec<(u32, Option<Origin>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(topic: &str) -> Death {
        let values = [topic, "7", "g", "3", "nacked", "then", "now", "4", "now nacked"].map(str::to_owned);
        Death { values, pattern: None }
    }

    #[test]
    fn a_dead_message_keeps_what_it_had_and_says_where_it_comes_from() {
        let message = Message {
            key: Some("k".into()),
            headers: vec![("mine".into(), "1".into()), ("mine".into(), "2".into())],
            body: "body".into(),
            ..Message::default()
        };
        let dead = dead_message(message.clone(), death("orders"));
        assert_eq!((&dead.key, &dead.body), (&message.key, &message.body));
        assert_eq!(dead.headers[..2], message.headers[..]);
        assert_eq!(dead.header("baton.dead.topic").unwrap(), "orders");
        assert_eq!(dead.header("baton.dead.at").unwrap(), "now");
        assert_eq!(dead.header(HISTORY), None);
        assert_eq!(dead.headers.len(), 2 + HEADERS.len());
    }

    #[test]
    fn a_message_that_dies_again_has_its_earlier_deaths_in_order() {
        let mut message = Message::new("body");
        for round in 0..20 {
            message = dead_message(message, death(&format!("t{round}")));
        }
        assert_eq!(message.header("baton.dead.topic").unwrap(), "t19");
        let history = String::from_utf8(message.header(HISTORY).unwrap().to_vec()).unwrap();
        let lines: Vec<&str> = history.lines().collect();
        assert_eq!(lines.len(), HISTORY_LINES);
        let line = "now topic=t18 offset=7 group=g attempts=3 reason=nacked published-at=then";
        assert_eq!(lines.last(), Some(&line));
        assert!(lines[0].contains("topic=t3 "));
        assert_eq!(message.headers.len(), HEADERS.len() + 1);
    }

    #[test]
    fn a_replayed_message_is_not_dead_and_remembers_that_it_was() {
        let message = Message { key: Some("k".into()), priority: 3, ..Message::new("body") };
        let message = Message { headers: vec![("mine".into(), "1".into())], ..message };
        let first = dead_message(message.clone(), death("first"));
        assert_eq!((first.priority, &first.header(PRIORITY).unwrap()[..]), (0, &b"3"[..]));
        let Revived { topic, group, pattern, message: alive } = Revived::of(first, Timestamp(0)).unwrap();
        assert_eq!((topic.as_str(), group.as_deref(), pattern), ("first", Some("g"), None));
        let line = "now topic=first offset=7 group=g attempts=3 reason=nacked published-at=then \
                    replayed-at=1970-01-01T00:00:00.000Z";
        assert_eq!(alive.header(HISTORY).unwrap(), line);
        assert_eq!(Message { headers: alive.headers[..1].to_vec(), ..alive.clone() }, message);
        assert_eq!(alive.headers.len(), 2);
        assert!(Revived::of(alive.clone(), Timestamp(0)).is_none(), "it is no dead letter any more");
        // It dies again: its first death is told once.
        let again = dead_message(alive, death("second"));
        assert_eq!(again.header(HISTORY).unwrap(), line);
        assert_eq!(again.header(HEADERS[0]).unwrap(), "second");
    }

    #[test]
    fn a_letter_of_a_group_of_a_pattern_says_which_one() {
        let pattern = Some("orders.#".to_owned());
        let dead =
            dead_message(Message::new("body"), Death { pattern: pattern.clone(), ..death("orders.eu") });
        assert_eq!(dead.header(PATTERN).unwrap(), "orders.#");
        let alive = Revived::of(dead, Timestamp(0)).unwrap();
        assert_eq!(alive.pattern, pattern);
        assert_eq!(alive.message.headers.len(), 1);
        let history = String::from_utf8(alive.message.header(HISTORY).unwrap().to_vec()).unwrap();
        assert!(history.contains(" group=g pattern=orders.# attempts=3 "), "{history}");
    }

    #[test]
    fn dead_letters_go_to_a_valid_name_and_never_to_where_they_come_from() {
        let name = |text: &str| Name::new(text).unwrap();
        let settings = |dead_letter: Option<&str>| GroupSettings {
            dead_letter: dead_letter.map(name),
            ..GroupSettings::default()
        };
        assert_eq!(target(&name("orders"), &settings(None)), Some(name("orders.dead-letter")));
        assert_eq!(target(&name("orders"), &settings(Some("lost"))), Some(name("lost")));
        assert_eq!(target(&name("lost"), &settings(Some("lost"))), None);
        for (topic, dead_letter, may_be) in [
            ("lost", Some("lost"), false),
            ("orders", Some("lost"), true),
            ("orders", None, true),
            ("orders.#", Some("orders.lost"), false),
            ("#", Some("lost"), false),
            ("orders.*", Some("orders.eu.lost"), true),
            ("orders.#", Some("orders.dead-letter"), true),
            ("#.dead-letter", Some("orders.dead-letter"), false),
        ] {
            let checked = check_target(topic, &settings(dead_letter));
            assert_eq!(checked.is_ok(), may_be, "{topic} {dead_letter:?}");
        }
        assert_eq!(target(&name("orders.dead-letter"), &settings(None)), None);
        assert_eq!(target(&name("orders.dead-letter"), &settings(Some("lost"))), Some(name("lost")));
        let long = target(&name(&"x".repeat(NAME_BYTES_MAX)), &settings(None)).unwrap();
        assert_eq!(long.as_str().len(), NAME_BYTES_MAX);
        assert!(long.as_str().ends_with(DEAD_LETTER_SUFFIX));
    }
}

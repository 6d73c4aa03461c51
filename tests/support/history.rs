//! What clients saw, and the checker that says whether it may be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use batonmq::model::id::Offset;

/// Keys of each publisher.
const KEYS: u64 = 16;

/// A message as its publisher made it: which publisher, and the how-manieth of its messages, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    pub publisher: u32,
    pub number: u64,
}

impl Token {
    pub fn body(self) -> String {
        format!("{}:{}", self.publisher, self.number)
    }

    /// The key of a message where messages have keys: the messages of a publisher take turns with them.
    pub fn key(self) -> u64 {
        self.number % KEYS
    }

    pub fn parse(body: &[u8]) -> Self {
        let text = std::str::from_utf8(body).expect("a body that a publisher made");
        let (publisher, rest) = text.split_once(':').expect("a body that a publisher made");
        let number = rest.split(' ').next().unwrap_or(rest);
        Self { publisher: publisher.parse().unwrap(), number: number.parse().unwrap() }
    }
}

/// Something that a client saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker has confirmed all messages of a publisher up to this one.
    Confirmed(Token),
    /// The broker has confirmed something by which this message alone is in the topic.
    Stored(Token),
    /// A message came to a consumer of a group.
    Delivered { group: &'static str, offset: Offset, token: Token },
    /// The broker has confirmed the ack of a message.
    Acked { group: &'static str, offset: Offset },
    /// A message came to a consumer of a group so long before its time.
    Early { group: &'static str, token: Token, milliseconds: u64 },
    /// A publisher was told of less than had been confirmed to it.
    WentBack { publisher: u32 },
}

impl Event {
    /// Whether it is about what a violation is about.
    fn concerns(&self, violation: &Violation) -> bool {
        let (token, place) = violation.about();
        match *self {
            Self::Confirmed(up_to) => {
                token.is_some_and(|token| token.publisher == up_to.publisher && token.number <= up_to.number)
            }
            Self::Stored(stored) => token == Some(stored),
            Self::Delivered { offset, token: came, .. } => token == Some(came) || place == Some(offset.0),
            Self::Acked { offset, .. } => place == Some(offset.0),
            Self::Early { token: early, .. } => token == Some(early),
            Self::WentBack { publisher } => token.is_some_and(|token| token.publisher == publisher),
        }
    }
}

/// The events in the order in which clients saw them.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Event>>>);

impl History {
    pub fn add(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub fn add_all(&self, events: impl IntoIterator<Item = Event>) {
        self.0.lock().unwrap().extend(events);
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// Takes all events out, so that there are none.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A confirmed message never came to a group.
    Lost { group: &'static str, token: Token },
    /// A message is in the store under two offsets.
    StoredTwice { token: Token, offsets: (u64, u64) },
    /// An offset had two different messages.
    Rewritten { offset: u64, tokens: (Token, Token) },
    /// A message came to a group for the first time after a later one of the same publisher.
    OutOfOrder { group: &'static str, token: Token, after: u64 },
    /// A message came although its ack had been confirmed.
    AfterAck { group: &'static str, offset: u64 },
    /// A message came to a group for the first time after a later one of the same publisher and key.
    KeyOutOfOrder { group: &'static str, token: Token, after: u64 },
    /// A message came to a group that had settled it, and everything else, before this history began.
    Again { group: &'static str, token: Token },
    /// A delayed message came before its time.
    Early { group: &'static str, token: Token, milliseconds: u64 },
    /// The store forgot what it had confirmed to a publisher.
    WentBack { publisher: u32 },
}

impl Violation {
    /// The events that have to do with it, the last `max` of them. Of the confirms, the first one that counts.
    pub fn around(&self, events: &[Event], max: usize) -> Vec<Event> {
        let mut confirmed = false;
        let concerns = |event: &&Event| {
            event.concerns(self)
                && (!matches!(event, Event::Confirmed(_)) || !std::mem::replace(&mut confirmed, true))
        };
        let around: Vec<Event> = events.iter().filter(concerns).cloned().collect();
        around[around.len().saturating_sub(max)..].to_vec()
    }

    /// The message and the offset that it is about, where it is about such.
    fn about(&self) -> (Option<Token>, Option<u64>) {
        match *self {
            Self::Lost { token, .. }
            | Self::OutOfOrder { token, .. }
            | Self::KeyOutOfOrder { token, .. }
            | Self::Again { token, .. }
            | Self::Early { token, .. }
            | Self::StoredTwice { token, .. } => (Some(token), None),
            Self::Rewritten { offset, .. } | Self::AfterAck { offset, .. } => (None, Some(offset)),
            Self::WentBack { publisher } => (Some(Token { publisher, number: u64::MAX }), None),
        }
    }
}

/// The groups of a topic, by what may be said about the order in which they get its messages for the first time.
#[derive(Clone, Copy)]
pub struct Groups {
    /// In the order of each publisher. What a consumer has acked does not come to it again.
    pub ordered: &'static [&'static str],
    /// In the order of each publisher's messages that have the same key.
    pub keyed: &'static [&'static str],
    /// In any order, by one consumer. What it has acked does not come to it again.
    pub alone: &'static [&'static str],
    /// In any order, by several.
    pub shared: &'static [&'static str],
}

/// The last message of each publisher that all groups had settled before a history began.
pub type Before = BTreeMap<u32, u64>;

/// Everything that is wrong with a history. The load has ended: what is not delivered by now is lost.
pub fn check(events: &[Event], groups: &Groups) -> Vec<Violation> {
    check_after(&Before::new(), events, groups)
}

/// Everything that is wrong with a history that goes on where another one has ended.
pub fn check_after(before: &Before, events: &[Event], groups: &Groups) -> Vec<Violation> {
    let done = |publisher: u32| before.get(&publisher).copied().unwrap_or_default();
    let mut violations = Vec::new();
    let mut confirmed: BTreeMap<u32, u64> = BTreeMap::new();
    let mut offsets: HashMap<Token, Offset> = HashMap::new();
    let mut tokens: HashMap<Offset, Token> = HashMap::new();
    let mut seen: HashMap<&str, BTreeSet<Token>> = HashMap::new();
    let mut latest: HashMap<(&str, u32), u64> = HashMap::new();
    let mut latest_of_key: HashMap<(&str, u32, u64), u64> = HashMap::new();
    let mut stored: BTreeSet<Token> = BTreeSet::new();
    let mut acked: HashMap<&str, BTreeSet<Offset>> = HashMap::new();
    for event in events {
        match *event {
            Event::Confirmed(token) => {
                let last = confirmed.entry(token.publisher).or_default();
                *last = (*last).max(token.number);
            }
            Event::Stored(token) => drop(stored.insert(token)),
            Event::Early { group, token, milliseconds } => {
                violations.push(Violation::Early { group, token, milliseconds });
            }
            Event::WentBack { publisher } => violations.push(Violation::WentBack { publisher }),
            Event::Acked { group, offset } => {
                acked.entry(group).or_default().insert(offset);
            }
            Event::Delivered { group, offset, token } => {
                let known = *offsets.entry(token).or_insert(offset);
                if known != offset {
                    violations.push(Violation::StoredTwice { token, offsets: (known.0, offset.0) });
                }
                let there = *tokens.entry(offset).or_insert(token);
                if there != token {
                    violations.push(Violation::Rewritten { offset: offset.0, tokens: (there, token) });
                }
                if token.number <= done(token.publisher) {
                    violations.push(Violation::Again { group, token });
                }
                let first = seen.entry(group).or_default().insert(token);
                if groups.keyed.contains(&group) {
                    let after = latest_of_key.entry((group, token.publisher, token.key())).or_default();
                    if first && token.number < *after {
                        violations.push(Violation::KeyOutOfOrder { group, token, after: *after });
                    }
                    *after = (*after).max(token.number);
                }
                if groups.ordered.contains(&group) || groups.alone.contains(&group) {
                    // Only here: with several consumers, what one sees late may have been sent before the other's ack.
                    if acked.get(group).is_some_and(|acked| acked.contains(&offset)) {
                        violations.push(Violation::AfterAck { group, offset: offset.0 });
                    }
                }
                if groups.ordered.contains(&group) {
                    let after = latest.entry((group, token.publisher)).or_default();
                    if first && token.number < *after {
                        violations.push(Violation::OutOfOrder { group, token, after: *after });
                    }
                    *after = (*after).max(token.number);
                }
            }
        }
    }
    let Groups { ordered, keyed, alone, shared } = groups;
    for &group in ordered.iter().chain(*keyed).chain(*alone).chain(*shared) {
        let seen = seen.remove(group).unwrap_or_default();
        let up_to = confirmed.iter().flat_map(|(&publisher, &last)| {
            (done(publisher) + 1..=last).map(move |number| Token { publisher, number })
        });
        let missing = up_to.chain(stored.iter().copied()).filter(|token| !seen.contains(token));
        violations.extend(missing.map(|token| Violation::Lost { group, token }));
    }
    violations.sort();
    violations.dedup();
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Groups = Groups { ordered: &[], keyed: &[], alone: &[], shared: &[] };
    const GROUPS: Groups = Groups { ordered: &["solo"], ..NONE };
    const KEYED: Groups = Groups { keyed: &["solo"], ..NONE };
    const ALONE: Groups = Groups { alone: &["solo"], ..NONE };

    fn token(number: u64) -> Token {
        Token { publisher: 1, number }
    }

    fn delivered(offset: u64, number: u64) -> Event {
        Event::Delivered { group: "solo", offset: Offset(offset), token: token(number) }
    }

    fn acked(offset: u64) -> Event {
        Event::Acked { group: "solo", offset: Offset(offset) }
    }

    #[test]
    fn repeated_deliveries_before_the_ack_are_fine() {
        let events =
            [delivered(0, 1), delivered(1, 2), delivered(0, 1), acked(0), Event::Confirmed(token(2))];
        assert_eq!(check(&events, &GROUPS), []);
    }

    #[test]
    fn messages_of_one_key_have_an_order_and_others_have_none() {
        let events = [delivered(1, 2), delivered(0, 1), delivered(1 + KEYS, 2 + KEYS)];
        assert_eq!(check(&events, &KEYED), []);
        let events = [delivered(KEYS, 1 + KEYS), delivered(0, 1), delivered(1, 2)];
        let expected = Violation::KeyOutOfOrder { group: "solo", token: token(1), after: 1 + KEYS };
        assert_eq!(check(&events, &KEYED), [expected]);
    }

    #[test]
    fn who_is_alone_gets_nothing_after_its_ack_and_has_no_order() {
        let events = [delivered(1, 2), delivered(0, 1), acked(0), delivered(0, 1)];
        assert_eq!(check(&events, &ALONE), [Violation::AfterAck { group: "solo", offset: 0 }]);
    }

    #[test]
    fn what_was_done_before_need_not_come_and_must_not() {
        let before = Before::from([(1, 2)]);
        let events = [delivered(2, 3), Event::Confirmed(token(3))];
        assert_eq!(check_after(&before, &events, &GROUPS), []);
        let again = Violation::Again { group: "solo", token: token(2) };
        assert_eq!(check_after(&before, &[delivered(1, 2)], &GROUPS), [again]);
    }

    #[test]
    fn each_violation_is_found() {
        for (events, expected) in [
            (
                vec![delivered(0, 1), Event::Confirmed(token(2))],
                Violation::Lost { group: "solo", token: token(2) },
            ),
            (
                vec![delivered(0, 1), delivered(1, 1)],
                Violation::StoredTwice { token: token(1), offsets: (0, 1) },
            ),
            (
                vec![delivered(0, 1), delivered(0, 2)],
                Violation::Rewritten { offset: 0, tokens: (token(1), token(2)) },
            ),
            (
                vec![delivered(1, 2), delivered(0, 1)],
                Violation::OutOfOrder { group: "solo", token: token(1), after: 2 },
            ),
            (
                vec![delivered(0, 1), acked(0), delivered(0, 1)],
                Violation::AfterAck { group: "solo", offset: 0 },
            ),
            (vec![Event::Stored(token(7))], Violation::Lost { group: "solo", token: token(7) }),
            (
                vec![delivered(0, 1), Event::Early { group: "solo", token: token(1), milliseconds: 5 }],
                Violation::Early { group: "solo", token: token(1), milliseconds: 5 },
            ),
            // The publisher sends again what is gone, so that nothing is missing at the end.
            (
                vec![Event::WentBack { publisher: 1 }, delivered(0, 1), Event::Confirmed(token(1))],
                Violation::WentBack { publisher: 1 },
            ),
        ] {
            assert_ne!(expected.around(&events, 5), [], "{expected:?}");
            assert_eq!(check(&events, &GROUPS), [expected]);
        }
    }
}

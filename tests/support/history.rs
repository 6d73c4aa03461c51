//! What clients saw, and the checker that says whether it may be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use batonmq::model::id::Offset;

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
    /// A message came to a consumer of a group.
    Delivered { group: &'static str, offset: Offset, token: Token },
    /// The broker has confirmed the ack of a message.
    Acked { group: &'static str, offset: Offset },
    /// A publisher was told of less than had been confirmed to it.
    WentBack { publisher: u32 },
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
    /// The store forgot what it had confirmed to a publisher.
    WentBack { publisher: u32 },
}

/// Which groups are read by one consumer at a time, and which are read by several.
pub struct Groups {
    pub ordered: &'static [&'static str],
    pub shared: &'static [&'static str],
}

/// Everything that is wrong with a history. The load has ended: what is not delivered by now is lost.
pub fn check(events: &[Event], groups: &Groups) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut confirmed: BTreeMap<u32, u64> = BTreeMap::new();
    let mut offsets: HashMap<Token, Offset> = HashMap::new();
    let mut tokens: HashMap<Offset, Token> = HashMap::new();
    let mut seen: HashMap<&str, BTreeSet<Token>> = HashMap::new();
    let mut latest: HashMap<(&str, u32), u64> = HashMap::new();
    let mut acked: HashMap<&str, BTreeSet<Offset>> = HashMap::new();
    for event in events {
        match *event {
            Event::Confirmed(token) => {
                let last = confirmed.entry(token.publisher).or_default();
                *last = (*last).max(token.number);
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
                let first = seen.entry(group).or_default().insert(token);
                if groups.ordered.contains(&group) {
                    // Only here: with several consumers, what one sees late may have been sent before the other's ack.
                    if acked.get(group).is_some_and(|acked| acked.contains(&offset)) {
                        violations.push(Violation::AfterAck { group, offset: offset.0 });
                    }
                    let after = latest.entry((group, token.publisher)).or_default();
                    if first && token.number < *after {
                        violations.push(Violation::OutOfOrder { group, token, after: *after });
                    }
                    *after = (*after).max(token.number);
                }
            }
        }
    }
    for &group in groups.ordered.iter().chain(groups.shared) {
        let seen = seen.remove(group).unwrap_or_default();
        for (&publisher, &last) in &confirmed {
            let all = (1..=last).map(|number| Token { publisher, number });
            violations
                .extend(all.filter(|t| !seen.contains(t)).map(|token| Violation::Lost { group, token }));
        }
    }
    violations.sort();
    violations.dedup();
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: Groups = Groups { ordered: &["solo"], shared: &[] };

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
            // The publisher sends again what is gone, so that nothing is missing at the end.
            (
                vec![Event::WentBack { publisher: 1 }, delivered(0, 1), Event::Confirmed(token(1))],
                Violation::WentBack { publisher: 1 },
            ),
        ] {
            assert_eq!(check(&events, &GROUPS), [expected]);
        }
    }
}

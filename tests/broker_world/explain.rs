//! Why a message is, or is not, being delivered: what the broker says, against what the model knows.

use batonmq::model::id::{GroupId, Offset, TopicId};
use batonmq::model::position::Position;
use batonmq::model::settings::Policy;
use batonmq::protocol::request::AdminCommand;
use batonmq::protocol::response::{Explanation, MessageState, Reply};

use super::{Known, World};

/// Cycles after which a broker that still has something to do is taken to be busy.
const ROUNDS: usize = 200;

impl World {
    /// Asks about a message when all that can be done now is done, and checks the answer. Nobody is asked where there
    /// is no such topic or group, or no session to ask from.
    pub fn explain(&mut self, topic: &str, group: &str, offset: u64) -> Option<Explanation> {
        let rests = self.rest();
        let session = *self.clients.keys().next()?;
        let id = self.topic_named(topic)?;
        let (topic, group) = (topic.to_owned(), group.to_owned());
        let asked = AdminCommand::Explain {
            topic,
            position: Position { priority: 0, offset: Offset(offset) },
            group: group.clone(),
        };
        let request = self.admin(session.0, asked);
        while !self.is_answered(request) {
            self.reads.append(&mut self.out.reads);
            assert!(!self.reads.is_empty(), "a question that nothing is read for is answered at once");
            self.answer_all();
            self.collect_replies();
        }
        let (_, _, answer) = self.replies.iter().find(|(_, known, _)| *known == request)?;
        let Ok(Reply::Explanation(explanation)) = answer.clone() else {
            let has_none = !self.fold.groups.values().any(|state| state.name.as_str() == group);
            let part = self.fold.groups.values().filter(|state| state.name.as_str() == group);
            let has_no_part = part.clone().all(|state| state.topic != id);
            assert!(has_none || has_no_part, "{answer:?}");
            return None;
        };
        let of_group = |(_, state): &(&GroupId, &batonmq::model::snapshot::GroupState)| {
            state.topic == id && state.name.as_str() == group
        };
        let part = self.fold.groups.iter().find(of_group).map(|(part, _)| *part).expect("it has the topic");
        self.check_explanation(id, part, offset, &explanation, rests);
        Some(explanation)
    }

    fn is_answered(&self, request: batonmq::protocol::request::RequestId) -> bool {
        self.replies.iter().any(|(_, known, _)| *known == request)
    }

    /// Goes on until nothing is left to be done now. Answers whether that came to be.
    fn rest(&mut self) -> bool {
        for _ in 0..ROUNDS {
            self.answer_all();
            self.finish();
            let due = self.broker.next_timeout().is_some_and(|at| at <= self.now);
            if self.reads.is_empty() && !due {
                return true;
            }
        }
        false
    }

    fn check_explanation(&self, topic: TopicId, part: GroupId, offset: u64, said: &Explanation, rests: bool) {
        use MessageState::*;
        let known = self.groups[&part].get(&offset).cloned().unwrap_or_default();
        if said.state == Unreadable {
            assert!(self.unread.contains(&(topic, offset)), "{offset}: {}", said.text);
            assert!(!self.is_settled(part, offset), "{offset}: {}", said.text);
            return;
        }
        if let Some(state) = self.certain_state(topic, part, offset, &known) {
            assert_eq!(said.state, state, "{offset}: {}", said.text);
            if let Some((session, handle)) = known.holder.filter(|_| state == InFlight) {
                let who = format!("consumer {handle} of connection {session} ");
                assert!(said.text.starts_with(&who), "{}", said.text);
            }
            return;
        }
        let settings = &self.fold.groups[&self.whole(part)].settings;
        match said.state {
            Dying => assert!(known.rejected || known.attempts >= settings.max_attempts, "{}", said.text),
            BehindKey => {
                assert_eq!(settings.policy, Policy::Key);
                let first = number_in(&said.text);
                // A consumer may have one that its topic has dropped.
                if let Some(stored) = self.store[&topic].get(&first) {
                    assert_eq!(stored.message.key, self.store[&topic][&offset].message.key, "{}", said.text);
                }
                assert!(!self.is_settled(part, first) && first != offset, "{}", said.text);
            }
            NoCredit => self.check_no_credit(part, &said.text),
            Limited => {}
            Waiting if said.text.contains("exclusive") => {
                assert_eq!(settings.policy, Policy::Exclusive);
                let first = number_in(&said.text);
                assert!(!self.is_settled(part, first) && first < offset, "{}", said.text);
            }
            Waiting if said.text.contains("policy of the group was changed") => {}
            Waiting if said.text.contains("cannot be read") => {
                assert_ne!(settings.policy, Policy::RoundRobin);
                assert_ne!(settings.policy, Policy::Fair);
                let first = number_in(&said.text);
                assert!(self.was_unread.contains(&(topic, first)) && first < offset, "{}", said.text);
            }
            Waiting | Ready => {
                // It is asked for again later, and what waits for it is not handed out before that.
                let mut before = self.was_unread.range((topic, 0)..=(topic, offset));
                assert!(!rests || before.next().is_some(), "nobody hands it out: {}", said.text);
            }
            state => panic!("{state:?} is wrong: {}", said.text),
        }
    }

    /// What there is no doubt about.
    fn certain_state(
        &self,
        topic: TopicId,
        part: GroupId,
        offset: u64,
        known: &Known,
    ) -> Option<MessageState> {
        use MessageState::*;
        let state = &self.fold.groups[&part];
        let settings = &self.fold.groups[&self.whole(part)].settings;
        let own = self.fold.groups[&self.whole(part)].topic;
        let waits = state.retries.get(Offset(offset)).is_some_and(|retry| retry.due_at > self.now);
        // There are no dead letters of dead letters.
        let is_mortal = !self.fold.topics[&topic].name.as_str().ends_with(".dead-letter");
        let is_dying = is_mortal
            && (known.rejected || (settings.max_attempts > 0 && known.attempts >= settings.max_attempts));
        if offset >= self.fold.topics[&topic].end.0 {
            Some(NotPublished)
        } else if !self.store[&topic].contains_key(&offset) {
            Some(Gone)
        } else if self.is_settled(part, offset) {
            Some(if self.is_filtered(part, topic, offset) { Filtered } else { Settled })
        } else if known.holder.is_some() {
            Some(InFlight)
        } else if is_dying {
            None
        } else if waits {
            Some(Delayed)
        } else if [topic, own].iter().any(|topic| self.fold.topics[topic].settings.paused) || settings.paused
        {
            Some(Paused)
        } else {
            None
        }
    }

    fn is_filtered(&self, part: GroupId, topic: TopicId, offset: u64) -> bool {
        let filter = self.fold.groups[&self.whole(part)].settings.filter.as_ref();
        let filter = filter.and_then(|text| self.filters.get(text));
        filter.is_some_and(|matches| !matches(&self.store[&topic][&offset].message))
    }

    /// Where nobody is said to have credit, nobody has.
    fn check_no_credit(&self, part: GroupId, text: &str) {
        let group = self.whole(part);
        let policy = self.fold.groups[&group].settings.policy;
        let of_group = self.order.members.iter().filter(|(_, member)| member.group == group);
        if text.starts_with("no consumer") {
            assert_eq!(of_group.count(), 0, "{text}");
            return;
        }
        if !matches!(policy, Policy::RoundRobin | Policy::Fair) {
            return;
        }
        for ((session, handle), _) in of_group {
            let client = &self.clients[session];
            let parts = self.parts(group);
            let held = parts.iter().flat_map(|part| self.groups[part].values());
            let held = held.filter(|known| known.holder == Some((*session, *handle))).count() as u32;
            let window = client.windows[handle];
            let can_take = !client.full && window.messages > held && window.bytes == u64::MAX;
            assert!(!can_take, "{session}:{handle} can take more: {text}");
        }
    }
}

/// The first number in a text.
fn number_in(text: &str) -> u64 {
    let digits = text.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
    digits.and_then(|digits| digits.parse().ok()).expect("a number")
}

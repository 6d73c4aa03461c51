//! Producers that wait for room in a topic: one line, in the order in which they came.
//!
//! Whoever comes while others wait goes to the end. When there is room, as many are called as it is enough for, and for
//! each of them the room is kept until it has published, has left, or has let its time pass. Knows no topics.

use std::collections::BTreeMap;
use std::time::Duration;

use super::holdings::Holdings;
use crate::model::id::ProducerId;
use crate::model::time::Timestamp;

/// How long room is kept for a producer that was called: what it sends is on its way.
const CALLED: Duration = Duration::from_secs(2);

/// Where a producer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the line, behind all lower numbers.
    Waiting(i64),
    /// It was called, and room is kept for it until then.
    Called(Timestamp),
}

/// The line of a topic. A producer is in it once.
#[derive(Debug, Default)]
pub(super) struct WaitingLine {
    places: BTreeMap<ProducerId, (Place, Holdings)>,
    line: BTreeMap<i64, ProducerId>,
    called: BTreeMap<ProducerId, Holdings>,
    next_number: i64,
}

impl WaitingLine {
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a producer would have to wait behind others.
    pub fn is_behind(&self, producer: ProducerId) -> bool {
        !self.line.is_empty() && !self.called.contains_key(&producer)
    }

    /// Puts a producer in that found no room for `wanted`. One that was called and waits again is at the front, one
    /// that waits keeps its place.
    pub fn join(&mut self, producer: ProducerId, wanted: Holdings) {
        let number = match self.places.get(&producer) {
            Some((Place::Waiting(number), _)) => *number,
            Some((Place::Called(_), _)) => {
                self.called.remove(&producer);
                self.line.first_key_value().map_or(self.next_number, |(first, _)| first - 1)
            }
            None => self.next_number,
        };
        self.next_number = self.next_number.max(number + 1);
        self.line.insert(number, producer);
        self.places.insert(producer, (Place::Waiting(number), wanted));
    }

    /// Takes a producer out: it has published, or does not want to any more.
    pub fn leave(&mut self, producer: ProducerId) {
        match self.places.remove(&producer) {
            Some((Place::Waiting(number), _)) => {
                self.line.remove(&number);
            }
            Some((Place::Called(_), _)) => {
                self.called.remove(&producer);
            }
            None => {}
        }
    }

    /// Calls those at the front for which `room` is enough; the last may want more than is left. Answers whom.
    pub fn call(&mut self, room: Holdings, now: Timestamp) -> Vec<ProducerId> {
        let places = &mut self.places;
        self.called.retain(|producer, _| {
            let late = matches!(places.get(producer), Some((Place::Called(until), _)) if *until <= now);
            if late {
                places.remove(producer);
            }
            !late
        });
        let kept = self.called.values().fold(Holdings::default(), |kept, wanted| kept.plus(*wanted));
        let mut room = room.minus(kept);
        let mut called = Vec::new();
        while room.messages > 0
            && room.bytes > 0
            && let Some((_, producer)) = self.line.pop_first()
        {
            let Some((place, wanted)) = self.places.get_mut(&producer) else { continue };
            *place = Place::Called(now.after(CALLED));
            room = room.minus(*wanted);
            self.called.insert(producer, *wanted);
            called.push(producer);
        }
        called
    }

    /// When room that is kept is given to others, if others wait.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        if self.line.is_empty() {
            return None;
        }
        let until = |producer| match self.places.get(producer) {
            Some((Place::Called(until), _)) => Some(*until),
            _ => None,
        };
        self.called.keys().filter_map(until).min()
    }

    /// Empties it. Answers who was in it.
    pub fn clear(&mut self) -> Vec<ProducerId> {
        std::mem::take(self).places.into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [u64; 0] = [];
    const NOW: Timestamp = Timestamp(1_000);
    const ONE: Holdings = Holdings { messages: 1, bytes: 10 };

    fn room(messages: u64) -> Holdings {
        Holdings { messages, bytes: u64::MAX }
    }

    fn line(count: u64) -> WaitingLine {
        let mut line = WaitingLine::default();
        (1..=count).for_each(|id| line.join(ProducerId(id), ONE));
        line
    }

    fn ids(called: Vec<ProducerId>) -> Vec<u64> {
        called.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn as_many_are_called_as_there_is_room_for() {
        let mut line = line(5);
        assert_eq!(ids(line.call(room(0), NOW)), NOBODY);
        assert_eq!(ids(line.call(room(2), NOW)), [1, 2]);
        assert_eq!(ids(line.call(room(2), NOW)), NOBODY, "kept for those two");
        line.leave(ProducerId(1));
        assert_eq!(ids(line.call(room(1), NOW)), NOBODY);
        assert_eq!(ids(line.call(room(2), NOW)), [3]);
        assert_eq!(ids(line.call(Holdings { messages: 9, bytes: 21 }, NOW)), [4]);
    }

    #[test]
    fn who_was_called_and_finds_no_room_is_first_again() {
        let mut line = line(3);
        assert_eq!(ids(line.call(room(1), NOW)), [1]);
        assert!(
            !line.is_behind(ProducerId(1)) && line.is_behind(ProducerId(2)) && line.is_behind(ProducerId(9))
        );
        line.join(ProducerId(1), ONE);
        line.join(ProducerId(4), ONE);
        line.join(ProducerId(2), ONE);
        assert_eq!(ids(line.call(room(4), NOW)), [1, 2, 3, 4]);
    }

    #[test]
    fn room_is_kept_for_a_while() {
        let mut line = line(2);
        assert_eq!(ids(line.call(room(1), NOW)), [1]);
        let until = line.next_timeout().unwrap();
        assert_eq!(until, NOW.after(CALLED));
        assert_eq!(ids(line.call(room(1), Timestamp(until.0 - 1))), NOBODY);
        assert_eq!(ids(line.call(room(1), until)), [2]);
        assert_eq!(line.next_timeout(), None);
        assert_eq!(ids(line.clear()), [2]);
        assert!(line.is_empty());
    }
}

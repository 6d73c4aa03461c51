//! Where messages go: a topic, or one priority of it, with a history of its own.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::support::history::{Before, Event, Groups, History, Violation, check_after};

/// The topic that keeps last values. It has no history: what is in it is compared.
pub const TABLE: &str = "table";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// What is published plainly.
    Load,
    /// What was rejected of it.
    Dead,
    /// Three priorities of one topic.
    Lowest,
    Middle,
    Highest,
    /// What is delayed.
    Later,
    /// What is consumed, and what is made of it in two topics, in transactions.
    Input,
    Output,
    Audit,
}

pub const LANES: [Lane; 9] = [
    Lane::Load,
    Lane::Dead,
    Lane::Lowest,
    Lane::Middle,
    Lane::Highest,
    Lane::Later,
    Lane::Input,
    Lane::Output,
    Lane::Audit,
];

/// Groups of which nothing is said about order: after a connection was lost, what it had comes again behind others.
const fn unordered(alone: &'static [&'static str], shared: &'static [&'static str]) -> Groups {
    Groups { ordered: &[], keyed: &[], alone, shared }
}

impl Lane {
    pub const fn topic(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Dead => "load.dead-letter",
            Self::Lowest | Self::Middle | Self::Highest => "urgent",
            Self::Later => "later",
            Self::Input => "in",
            Self::Output => "out",
            Self::Audit => "audit",
        }
    }

    pub const fn priority(self) -> u8 {
        match self {
            Self::Middle => 4,
            Self::Highest => 9,
            _ => 0,
        }
    }

    /// That of a message.
    pub fn of(topic: &str, priority: u8) -> Option<Self> {
        LANES.into_iter().find(|lane| lane.topic() == topic && lane.priority() == priority)
    }

    const fn groups(self) -> Groups {
        match self {
            Self::Load => Groups {
                ordered: &["exclusive"],
                keyed: &["keyed"],
                alone: &["solo", "pull"],
                shared: &["shared"],
            },
            Self::Dead => unordered(&[], &["undertaker"]),
            Self::Lowest | Self::Middle | Self::Highest => unordered(&["first"], &[]),
            Self::Later => unordered(&[], &["punctual"]),
            Self::Input => unordered(&[], &["transformers"]),
            Self::Output | Self::Audit => unordered(&[], &["reader"]),
        }
    }
}

/// The histories of all lanes.
#[derive(Default)]
pub struct Lanes {
    histories: [History; LANES.len()],
    /// What earlier windows have settled, of each lane.
    before: Mutex<BTreeMap<Lane, Before>>,
    /// What this window will have settled.
    done: Mutex<BTreeMap<Lane, Before>>,
}

/// What must not be, in a lane, with the events that have to do with it.
pub struct Found {
    pub lane: Lane,
    pub violation: Violation,
    pub around: Vec<Event>,
}

/// What came of a window.
#[derive(Default)]
pub struct Checked {
    pub found: Vec<Found>,
    pub events: u64,
    /// Messages that had to come to the dead letters.
    pub dead_letters: u64,
}

/// Events of a violation that are shown.
const AROUND_MAX: usize = 20;

impl Lanes {
    pub fn history(&self, lane: Lane) -> &History {
        &self.histories[lane as usize]
    }

    /// When this window is over a publisher has published so many messages, over all windows.
    pub fn note_done(&self, lane: Lane, publisher: u32, last: u64) {
        self.done.lock().unwrap().entry(lane).or_default().insert(publisher, last);
    }

    /// Checks the window that is over.
    pub fn check(&self) -> Checked {
        let mut checked = Checked::default();
        let mut before = self.before.lock().unwrap();
        for lane in LANES {
            let events = self.history(lane).take();
            checked.events += events.len() as u64;
            checked.dead_letters +=
                events.iter().filter(|event| matches!(event, Event::Stored(_))).count() as u64;
            let before = before.entry(lane).or_default();
            for violation in check_after(before, &events, &lane.groups()) {
                let around = violation.around(&events, AROUND_MAX);
                checked.found.push(Found { lane, violation, around });
            }
        }
        for (lane, done) in std::mem::take(&mut *self.done.lock().unwrap()) {
            before.entry(lane).or_default().extend(done);
        }
        checked
    }
}

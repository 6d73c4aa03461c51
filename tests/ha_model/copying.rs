//! A model of its own for the step `Copy`: a database is copied that its old master still writes.
//!
//! The database has two pages, and each commit changes both. The old master appends commits to its log, writes the log
//! back page by page, and starts the log over once all of it is written back: first the header with another salt, then
//! frames over the old ones. The copier reads page by page and frame by frame. Either may pause anywhere.
//!
//! What must hold of a copy that counts: it has a whole commit, and none older than the last one when it was begun.

use stateright::{Checker, HasDiscoveries, Model, Property};

const PAGES: usize = 2;
/// Frames of two commits.
const FRAMES: usize = 2 * PAGES;
const COMMITS: u8 = 3;

/// The rules of a copy, or the rules with one of them broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// Log, database, log again; from the start if the log was started over meanwhile.
    AsWritten,
    DatabaseBeforeLog,
    /// The log is read before the database, and not again.
    LogOnce,
    /// The copy counts, whatever became of the log.
    NoComparison,
    /// Both readings are compared, and not what is there after them.
    NoLastLook,
}

/// A page in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Frame {
    salt: u8,
    /// The commit that wrote it.
    commit: u8,
}

/// A log, or a reading of it: page n of a commit is in every frame whose number is n modulo [`PAGES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Log {
    salt: u8,
    frames: [Frame; FRAMES],
}

impl Log {
    /// The last whole commit of those that belong to the header.
    fn last_commit(&self) -> Option<u8> {
        let valid = self.frames.iter().take_while(|frame| frame.salt == self.salt).count();
        (valid >= PAGES).then(|| self.frames[valid - valid % PAGES - 1].commit)
    }
}

/// What the old master does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Master {
    Idle,
    /// It has a frame of a commit to append.
    Appends(usize),
    /// It has a page of this commit to write back.
    WritesBack(usize, u8),
}

/// What the copier reads next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Copier {
    FirstHeader,
    FirstFrame(usize),
    Page(usize),
    SecondHeader,
    SecondFrame(usize),
    LastLook,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    database: [u8; PAGES],
    log: Log,
    /// Where the next frame goes.
    end: usize,
    commits: u8,
    /// All of the log is in the database.
    is_written_back: bool,
    master: Master,
    copier: Copier,
    /// The last commit when the copy was begun.
    begun_at: u8,
    earlier: Log,
    copy: [u8; PAGES],
    later: Log,
}

impl State {
    /// What the copy has of each page, once its log is written back.
    fn recovered(&self) -> [u8; PAGES] {
        self.later.last_commit().map_or(self.copy, |commit| [commit; PAGES])
    }

    fn go_on_writing(&mut self) {
        self.master = match self.master {
            Master::Idle => Master::Idle,
            Master::Appends(page) => {
                self.log.frames[self.end] = Frame { salt: self.log.salt, commit: self.commits + 1 };
                self.end += 1;
                self.is_written_back = false;
                if page + 1 < PAGES {
                    Master::Appends(page + 1)
                } else {
                    self.commits += 1;
                    Master::Idle
                }
            }
            Master::WritesBack(page, commit) => {
                self.database[page] = commit;
                if page + 1 < PAGES {
                    Master::WritesBack(page + 1, commit)
                } else {
                    self.is_written_back = true;
                    Master::Idle
                }
            }
        };
    }

    /// Begins a commit, in a log that is started over where that can be.
    fn begin_commit(&mut self) {
        if self.is_written_back {
            (self.log.salt, self.end) = (self.log.salt + 1, 0);
        }
        self.master = Master::Appends(0);
    }

    fn go_on_copying(&mut self, rules: Rules) {
        self.copier = match self.copier {
            Copier::FirstHeader => {
                self.begun_at = self.commits;
                if rules == Rules::DatabaseBeforeLog {
                    self.copy[0] = self.database[0];
                    Copier::Page(1)
                } else {
                    self.earlier.salt = self.log.salt;
                    Copier::FirstFrame(0)
                }
            }
            Copier::FirstFrame(frame) => {
                self.earlier.frames[frame] = self.log.frames[frame];
                if frame + 1 < FRAMES { Copier::FirstFrame(frame + 1) } else { Copier::Page(0) }
            }
            Copier::Page(page) => {
                self.copy[page] = self.database[page];
                match rules {
                    _ if page + 1 < PAGES => Copier::Page(page + 1),
                    Rules::LogOnce => {
                        self.later = self.earlier;
                        Copier::Done
                    }
                    _ => Copier::SecondHeader,
                }
            }
            Copier::SecondHeader => {
                self.later.salt = self.log.salt;
                Copier::SecondFrame(0)
            }
            Copier::SecondFrame(frame) => {
                self.later.frames[frame] = self.log.frames[frame];
                match rules {
                    _ if frame + 1 < FRAMES => Copier::SecondFrame(frame + 1),
                    Rules::DatabaseBeforeLog | Rules::NoComparison => Copier::Done,
                    _ => Copier::LastLook,
                }
            }
            Copier::LastLook => {
                let is_there = rules == Rules::NoLastLook || self.log.salt == self.later.salt;
                if is_there && self.earlier.salt == self.later.salt {
                    Copier::Done
                } else {
                    // The second reading is the first one of the next attempt.
                    self.earlier = std::mem::take(&mut self.later);
                    Copier::Page(0)
                }
            }
            Copier::Done => Copier::Done,
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    BeginCommit,
    BeginWritingBack,
    GoOnWriting,
    GoOnCopying,
}

struct Copying(Rules);

impl Model for Copying {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            database: [0; PAGES],
            log: Log { salt: 1, frames: [Frame::default(); FRAMES] },
            end: 0,
            commits: 0,
            is_written_back: false,
            master: Master::Idle,
            copier: Copier::FirstHeader,
            begun_at: 0,
            earlier: Log::default(),
            copy: [0; PAGES],
            later: Log::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.copier == Copier::Done {
            return;
        }
        actions.push(Action::GoOnCopying);
        if state.master != Master::Idle {
            actions.push(Action::GoOnWriting);
            return;
        }
        if state.commits < COMMITS && (state.is_written_back || state.end < FRAMES) {
            actions.push(Action::BeginCommit);
        }
        if !state.is_written_back && state.commits > 0 {
            actions.push(Action::BeginWritingBack);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        match action {
            Action::BeginCommit => state.begin_commit(),
            Action::BeginWritingBack => state.master = Master::WritesBack(0, state.commits),
            Action::GoOnWriting => state.go_on_writing(),
            Action::GoOnCopying => state.go_on_copying(self.0),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(IS_WHOLE, |_, state: &State| {
                let [first, second] = state.recovered();
                state.copier != Copier::Done || (first == second && first >= state.begun_at)
            }),
            Property::sometimes("the copied database has a commit in part", |_, state: &State| {
                state.copier == Copier::Done && state.copy[0] != state.copy[1]
            }),
            Property::sometimes("the log was started over during the copy", |_, state: &State| {
                state.copier == Copier::LastLook && state.log.salt != state.earlier.salt
            }),
        ]
    }
}

const IS_WHOLE: &str = "a copy has a whole commit, and all that were there when it was begun";

#[test]
fn a_copy_that_counts_is_whole() {
    let checker = Copying(Rules::AsWritten).checker().spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

fn breaks(rules: Rules) {
    let wanted = HasDiscoveries::AllOf([IS_WHOLE].into());
    let checker = Copying(rules).checker().finish_when(wanted).spawn_bfs().join();
    assert!(checker.discovery(IS_WHOLE).is_some(), "{rules:?}: {} states", checker.state_count());
}

#[test]
fn a_database_copied_before_its_log_is_broken() {
    breaks(Rules::DatabaseBeforeLog);
}

#[test]
fn a_database_copied_after_its_log_needs_the_log_again() {
    breaks(Rules::LogOnce);
}

#[test]
fn a_log_that_was_started_over_does_not_go_with_the_copy() {
    breaks(Rules::NoComparison);
}

#[test]
fn a_log_that_is_started_over_while_it_is_read_is_found_only_by_a_last_look() {
    breaks(Rules::NoLastLook);
}

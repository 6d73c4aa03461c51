//! The fence as a model: every order of the steps of a master and of those who take over from it, each paused or dead
//! anywhere, checked exhaustively.
//!
//! # What stands in it
//!
//! | fault | in the model |
//! | --- | --- |
//! | a pause, a stall, a dead host | a process takes no step, before any of them, for as long as the others like |
//! | late control, seal, unlink, checkpoint, release, confirm | the next step of a process that was paused |
//! | death beside the next master | [`Action::Die`](takeover::Action): the next one may recover in place |
//! | a lock that gets lost, or never excluded | [`Locks`](setting::Locks) |
//! | a power loss of what was not synced | whoever reads finds any number of these records |
//! | stale reads of an incoherent client cache | rules of their own, that the code avoids by [`disk`](batonmq::disk) |
//! | duplicates answered from memory | [`Step::Confirm`](process::Step), of what was recovered too |
//!
//! Both modes of the store, since they differ in what is sealed. The copying of a database that is still written has a
//! model of its own, in [`copying`]; here it is one step.
//!
//! A step that the code makes safer by an early end (a check before it opens the store, the look for a higher manifest
//! after its own) is taken here without: what holds without it holds with it. The first record of a master settles
//! everything before it, so that a checkpoint behind it lets the files of older epochs go. An epoch has one segment.
//!
//! # How it is used
//!
//! The rules [as written](setting::Rules::AsWritten) must keep every [property](properties), and each of the others
//! must be found to break one: so each rule is needed, and the model can see. What must be reached in some state shows
//! that the model comes to the late steps at all. The table in `docs/architecture.md` says which function of the code
//! takes which step; that it is complete is checked here.
//!
//! `BATON_MODEL=full` explores larger worlds: minutes, and only with optimisation.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod copying;
mod disk;
mod document;
mod epochs;
mod exploring;
mod process;
mod properties;
mod setting;
mod spare;
mod state;
mod steps;
mod takeover;
mod wrong;

use exploring::{assert_holds, is_full};
use setting::{Locks, Mode, Size};

const MODES: [Mode; 2] = [Mode::File, Mode::Database];

/// Two takers, and a record for each epoch.
const SMALL: Size = Size { takers: 2, records: [0, 1, 1, 1, 0] };

/// The worlds to be explored.
fn sizes() -> Vec<Size> {
    let mut sizes = vec![SMALL];
    if is_full() {
        sizes.push(Size { takers: 2, records: [0, 3, 2, 1, 0] });
        sizes.push(Size { takers: 3, records: [0, 1, 1, 0, 0] });
    }
    sizes
}

#[test]
fn nothing_is_lost_in_files_where_locks_lie() {
    for size in sizes() {
        assert_holds(Mode::File, Locks::Lie, size);
    }
}

#[test]
fn nothing_is_lost_in_databases_where_locks_lie() {
    for size in sizes() {
        assert_holds(Mode::Database, Locks::Lie, size);
    }
}

#[test]
fn nothing_is_lost_where_locks_exclude() {
    for mode in MODES {
        assert_holds(mode, Locks::Exclude, Size { records: [0, 2, 1, 1, 0], ..SMALL });
    }
}

/// A lock that gets lost late gives no order that one which always lies does not; so a smaller world is enough.
#[test]
fn nothing_is_lost_where_locks_get_lost() {
    assert_holds(Mode::File, Locks::GetLost, Size { records: [0, 1, 1, 0, 0], ..SMALL });
    if is_full() {
        assert_holds(Mode::Database, Locks::GetLost, SMALL);
    }
}

//! Which operation fails, and how.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};

use fuser::Errno;

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
    Rename,
    Create,
    Remove,
    /// Where the mount asks for locks at all.
    Lock,
}

/// What happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It answers with an error, and does nothing. A sync that answers so loses what was to be synced.
    Fails(Errno),
    /// Half of it is written.
    IsShort,
    /// It reads what the first one that was struck has read there.
    IsStale,
    /// It waits until [`Faults::clear`], and is done then.
    Stalls,
}

/// For how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// Only the n-th.
    Once,
    /// The n-th and all after it, until [`Faults::clear`].
    Always,
}

/// A fault that is planned.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub operation: Operation,
    pub effect: Effect,
    pub lasting: Lasting,
    /// Counts only files whose path has this in it.
    pub path: &'static str,
    /// Which one of them from now on, from 1.
    pub nth: u64,
}

/// What is planned, and what came of it.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    /// Operations counted since the fault was planned.
    counted: u64,
    /// Where it has hit.
    hits: Vec<PathBuf>,
}

impl Faults {
    /// Plans a fault, the only one from now on.
    pub fn plan(&self, fault: Fault) {
        *self.lock() = State { fault: Some(fault), ..State::default() };
    }

    /// Lets every operation of a kind on such files wait, until what this answers is dropped.
    pub fn stall(&self, operation: Operation, path: &'static str) -> Stall<'_> {
        self.plan(Fault { operation, effect: Effect::Stalls, lasting: Lasting::Always, path, nth: 1 });
        Stall(self)
    }

    /// From now on nothing fails, and what waits goes on.
    pub fn clear(&self) {
        self.lock().fault = None;
        self.changed.notify_all();
    }

    /// The files that were hit since the fault was planned, one for each operation.
    pub fn hits(&self) -> Vec<PathBuf> {
        self.lock().hits.clone()
    }

    /// How many operations of its kind there were since the fault was planned and before it was cleared.
    pub fn counted(&self) -> u64 {
        self.lock().counted
    }

    /// What happens to an operation on the file at `path`; `None` where it is to be done.
    pub(super) fn strike(&self, operation: Operation, path: &Path) -> Option<Effect> {
        let mut state = self.lock();
        let fault = state
            .fault
            .filter(|fault| fault.operation == operation && path.to_string_lossy().contains(fault.path))?;
        state.counted += 1;
        let is_hit = match fault.lasting {
            Lasting::Once => state.counted == fault.nth,
            Lasting::Always => state.counted >= fault.nth,
        };
        if !is_hit {
            return None;
        }
        state.hits.push(path.to_owned());
        if fault.effect != Effect::Stalls {
            return Some(fault.effect);
        }
        while state.fault.is_some() {
            state = self.changed.wait(state).unwrap();
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A disk on which something waits. Not even a process that is killed ends while it waits for it.
pub struct Stall<'a>(&'a Faults);

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

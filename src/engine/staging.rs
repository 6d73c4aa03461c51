//! Sessions that wait while the store writes a large block of theirs ahead of its commit.
//!
//! Such a commit is then as short as any other, and other sessions go on meanwhile. What the session itself wants
//! next waits behind its block, in order; its budget is held for as long, so it sends no more than that allows.

use std::collections::{HashMap, VecDeque};

use super::inbox::{Held, Input};
use crate::broker::Command;
use crate::model::id::SessionId;
use crate::model::message::MessageBlock;
use crate::store::STAGED_BYTES_MIN;

/// What is left of the commands that a session has sent together.
#[derive(Debug)]
pub(super) struct Batch {
    pub commands: std::vec::IntoIter<Command>,
    pub held: Held,
}

/// The messages that come with a command.
fn block(command: &Command) -> Option<&MessageBlock> {
    match command {
        Command::Publish(_, block) | Command::Transact(_, block) => Some(block),
        _ => None,
    }
}

/// What a session waits with.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The command whose block is written.
    pub command: Command,
    /// That block.
    pub block: MessageBlock,
    /// What stands behind it.
    pub batches: VecDeque<Batch>,
}

/// The sessions that wait.
#[derive(Debug)]
pub(super) struct Staging {
    waiting: HashMap<SessionId, Waiting>,
    admission: Admission,
}

/// Whether further blocks are staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Open,
    /// The engine stops: what is left is committed as it is.
    Closed,
}

impl Staging {
    /// Nobody waits.
    pub(super) fn new() -> Self {
        Self { waiting: HashMap::new(), admission: Admission::Open }
    }

    /// The block of a command, where it is to be staged first. One for which there is no space will be refused.
    pub(super) fn wanted(&self, command: &Command, space: u64) -> Option<MessageBlock> {
        let block = block(command)?;
        let bytes = block.bytes().len() as u64;
        let wanted = bytes >= STAGED_BYTES_MIN && bytes <= space && self.admission == Admission::Open;
        wanted.then(|| block.clone())
    }

    /// Puts a batch behind what its session waits with, or answers it where the session does not wait.
    pub(super) fn put_behind(&mut self, session: SessionId, batch: Batch) -> Option<Batch> {
        match self.waiting.get_mut(&session) {
            Some(waiting) => {
                waiting.batches.push_back(batch);
                None
            }
            None => Some(batch),
        }
    }

    /// A session waits from now on.
    pub(super) fn wait(&mut self, session: SessionId, waiting: Waiting) {
        self.waiting.insert(session, waiting);
    }

    /// A session waits no longer.
    pub(super) fn take(&mut self, session: SessionId) -> Option<Waiting> {
        self.waiting.remove(&session)
    }

    /// Nobody waits any more, now or later. Answers what they waited with, for each session the last one first.
    pub(super) fn close(&mut self) -> Vec<Input> {
        self.admission = Admission::Closed;
        let mut inputs = Vec::new();
        let mut waiting: Vec<(SessionId, Waiting)> = self.waiting.drain().collect();
        waiting.sort_unstable_by_key(|(session, _)| *session);
        for (session, Waiting { command, mut batches, .. }) in waiting {
            let mut first = Some(command);
            let start = inputs.len();
            while let Some(batch) = batches.pop_front() {
                let commands = first.take().into_iter().chain(batch.commands).collect();
                inputs.push(Input::Commands(session, commands, batch.held));
            }
            inputs[start..].reverse();
        }
        inputs
    }
}

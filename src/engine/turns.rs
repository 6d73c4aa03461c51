//! An engine that goes round on the thread of whoever has it, one turn at a time: for a simulation, which decides when
//! that is. What it does in a turn, and in which order, is what the engine's own thread does.

use std::fmt::{self, Debug, Formatter};
use std::time::Instant;

use super::EngineError;
use super::cycle::{Course, Cycle, Patience};

/// The turns of an engine.
pub struct Turns(Cycle);

impl Debug for Turns {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turns").finish_non_exhaustive()
    }
}

impl Turns {
    pub(super) const fn of(cycle: Cycle) -> Self {
        Self(cycle)
    }

    /// Takes a turn with what has arrived, be that nothing.
    ///
    /// # Errors
    /// As those with which an engine ends. The process must end at once.
    pub fn take(&mut self) -> Result<Course, EngineError> {
        self.0.take(Patience::None);
        self.0.turn()
    }

    /// When the next turn is due though nothing arrives.
    pub fn due_at(&mut self) -> Instant {
        self.0.due_at()
    }

    /// Ends an engine that has [drained](Course::Drained), or failed with this error: as after a drain where that is
    /// what it comes to.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub fn end(self, failed: Option<EngineError>) -> Result<(), EngineError> {
        match failed {
            None => self.0.end(),
            Some(error) => self.0.fail(error),
        }
    }
}

//! How the epochs before one ended: what `ha` finds out, and a store has to know when it is opened.

use super::id::Epoch;

/// How the epoch before this one ended, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// There was none: the store is new.
    None,
    /// It released its epoch, or its process is known to be dead, or the storage lets it write no more: nothing of it can
    /// still be written.
    Gone,
    /// It may still be running somewhere, and late writes of it may still arrive.
    MayWrite,
}

/// How every epoch below the one that opens the store ended: those that may ever have written, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predecessors {
    ends: Vec<(Epoch, Predecessor)>,
    begun: Epoch,
}

impl Predecessors {
    /// The ends of these epochs, lowest first.
    #[must_use]
    pub const fn new(ends: Vec<(Epoch, Predecessor)>) -> Self {
        Self { ends, begun: Epoch(0) }
    }

    /// The same, where `begun` is the highest epoch that is known to have begun: its manifest and, in file mode, the first
    /// segment of its journal were durable before anything of it was confirmed. 0 where none is known.
    #[must_use]
    pub fn begun_up_to(self, begun: Epoch) -> Self {
        Self { begun, ..self }
    }

    /// The highest epoch that is known to have begun; 0 where there is none.
    #[must_use]
    pub const fn begun(&self) -> Epoch {
        self.begun
    }

    /// How all of them ended: the worst, since the last may have died half-way through its takeover, with the one
    /// before it still alive.
    #[must_use]
    pub fn all(&self) -> Predecessor {
        Self::worst(&self.ends)
    }

    /// How the epochs from `first` on ended: the worst of them.
    ///
    /// `first` is the epoch that made the file which is to be recovered; those before it never write that file.
    #[must_use]
    pub fn since(&self, first: Epoch) -> Predecessor {
        match self.ends.binary_search_by_key(&first, |&(epoch, _)| epoch) {
            Ok(at) => Self::worst(&self.ends[at..]),
            // It made a file, so it was there: nothing is certain.
            Err(_) => Predecessor::MayWrite,
        }
    }

    /// How `epoch` ended. One that is not known may write.
    #[must_use]
    pub fn of(&self, epoch: Epoch) -> Predecessor {
        match self.ends.binary_search_by_key(&epoch, |&(epoch, _)| epoch) {
            Ok(at) => self.ends[at].1,
            Err(_) => Predecessor::MayWrite,
        }
    }

    fn worst(ends: &[(Epoch, Predecessor)]) -> Predecessor {
        if ends.is_empty() {
            Predecessor::None
        } else if ends.iter().any(|&(_, end)| end == Predecessor::MayWrite) {
            Predecessor::MayWrite
        } else {
            Predecessor::Gone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_predecessor_that_may_write_counts_until_a_later_epoch_made_the_file() {
        let ends = [(1, Predecessor::Gone), (3, Predecessor::MayWrite), (4, Predecessor::Gone)];
        let all = Predecessors::new(ends.map(|(epoch, end)| (Epoch(epoch), end)).to_vec());
        assert_eq!(all.all(), Predecessor::MayWrite);
        assert_eq!(all.since(Epoch(3)), Predecessor::MayWrite);
        assert_eq!(all.since(Epoch(4)), Predecessor::Gone);
        assert_eq!(all.since(Epoch(2)), Predecessor::MayWrite, "an epoch that is not known");
        assert_eq!(
            [1, 2, 3, 4].map(|epoch| all.of(Epoch(epoch)) == Predecessor::Gone),
            [true, false, false, true]
        );
        assert_eq!(Predecessors::default().all(), Predecessor::None);
    }
}

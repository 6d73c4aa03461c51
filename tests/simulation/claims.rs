//! The epochs that were claimed: by which process, and which lower ones each claim has found.
//!
//! Of two claims that succeed, the higher one has found the block of the lower one. Otherwise it would take it for that
//! of an epoch that never served and never will, as `src/ha/view.rs` says, and what it wrote for what nobody writes.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub struct Claims(BTreeMap<u64, Claim>);

#[derive(Debug)]
struct Claim {
    process: u64,
    /// Lower epochs whose blocks it found.
    found: BTreeSet<u64>,
}

impl Claims {
    /// Notes a claim that has succeeded. Answers what must not be about it.
    pub fn add(&mut self, epoch: u64, process: u64, found: BTreeSet<u64>) -> Result<(), String> {
        for (&other, claim) in &self.0 {
            let (lower, higher, found) =
                if other < epoch { (other, epoch, &found) } else { (epoch, other, &claim.found) };
            if lower == higher {
                return Err(format!("epoch {epoch} has two owners, {} and {process}", claim.process));
            }
            if !found.contains(&lower) {
                return Err(format!("epoch {lower} is a master that the claim of {higher} has not found"));
            }
        }
        self.0.insert(epoch, Claim { process, found });
        Ok(())
    }

    /// Whether a claim of a higher epoch has succeeded.
    pub fn has_higher(&self, epoch: u64) -> bool {
        self.0.last_key_value().is_some_and(|(&highest, _)| highest > epoch)
    }
}

//! The engine's way to ask whether this process is still master.

use std::sync::Arc;

use super::service_manager::Watchdog;
use crate::engine::Guard;
use crate::ha::claim::Mastership;
use crate::ha::fence::{Fence, FenceError};
use crate::store::Fenced;

/// Asks the fence of a mastership, and its lock. While the fence holds, the service manager hears that the node is alive.
pub(super) struct MastershipGuard {
    mastership: Arc<Mastership>,
    fence: Fence,
    watchdog: Watchdog,
}

impl MastershipGuard {
    pub(super) fn new(mastership: Arc<Mastership>, fence: Fence) -> Self {
        Self { mastership, fence, watchdog: Watchdog::new() }
    }
}

impl Guard for MastershipGuard {
    fn check(&mut self) -> Result<(), Fenced> {
        self.fence.check().map_err(|error| match error {
            FenceError::Superseded(epoch) => Fenced::Superseded(epoch),
            other => Fenced::Unknown(other.to_string()),
        })?;
        self.watchdog.feed();
        Ok(())
    }

    fn check_lock(&mut self) -> Result<(), Fenced> {
        self.mastership.lock().verify().map_err(|error| Fenced::Unknown(error.to_string()))?;
        self.check()
    }
}

//! What of the work of the keeper fails, and saying so: when it begins, once in a while, and when nothing fails any more.

use std::time::Instant;

use super::AddressError;
use super::keeper::WARN_INTERVAL;

/// A task of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Extend,
    Ask,
    Tell,
}

/// What fails.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    failing: Vec<Task>,
    said_at: Option<Instant>,
}

/// What to say of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Failing,
    Over,
}

impl Trouble {
    /// Notes how a task has ended.
    pub(super) fn note(&mut self, task: Task, result: Result<(), AddressError>, now: Instant) {
        match (self.judge(task, &result, now), result) {
            (Said::Failing, Err(error)) => tracing::warn!(
                %error,
                "a floating address cannot be kept; the node serves, and tries again each second"
            ),
            (Said::Over, _) => tracing::info!("the floating addresses can be kept again"),
            _ => {}
        }
    }

    fn judge<E>(&mut self, task: Task, result: &Result<(), E>, now: Instant) -> Said {
        self.failing.retain(|other| *other != task);
        if result.is_err() {
            self.failing.push(task);
            let is_said = self.said_at.is_some_and(|at| now < at + WARN_INTERVAL);
            if !is_said {
                self.said_at = Some(now);
                return Said::Failing;
            }
        } else if self.failing.is_empty() && self.said_at.take().is_some() {
            return Said::Over;
        }
        Said::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The interface was gone: extending failed each second, telling nobody succeeded, and the log said by turns that all
    /// was well and that nothing was.
    #[test]
    fn it_is_over_when_nothing_fails_any_more() {
        let start = Instant::now();
        let mut trouble = Trouble::default();
        let (well, badly) = (Ok(()), Err(()));
        let mut at =
            |seconds, task, result| trouble.judge(task, &result, start + Duration::from_secs(seconds));
        assert_eq!(at(0, Task::Tell, well), Said::Nothing);
        assert_eq!(at(1, Task::Extend, badly), Said::Failing);
        assert_eq!(at(1, Task::Tell, well), Said::Nothing);
        assert_eq!(at(2, Task::Extend, badly), Said::Nothing);
        assert_eq!(at(2, Task::Tell, badly), Said::Nothing);
        assert_eq!(at(3, Task::Extend, well), Said::Nothing);
        assert_eq!(at(62, Task::Tell, badly), Said::Failing);
        assert_eq!(at(63, Task::Tell, well), Said::Over);
        assert_eq!(at(64, Task::Extend, badly), Said::Failing);
    }
}

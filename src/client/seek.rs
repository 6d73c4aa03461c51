//! Finding the master: all known addresses are tried at the same time, again and again, until one is master.
//!
//! At the same time, because a host without power does not answer and must not hold up the attempt to the other
//! one. A node that is not master may name the master: that address is tried at once. A master whose epoch is lower
//! than one seen before, or that serves another store, is no master.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::error::AttemptError;
use super::handshake::{Answer, Greeted, Greeting, greet, objection};
use super::options::ClientOptions;
use super::wait::by_chance;
use crate::protocol::response::Welcome;

/// What is known from before.
#[derive(Clone, Debug)]
pub(super) struct Seek<'a> {
    pub(super) options: &'a ClientOptions,
    pub(super) greeting: Greeting,
    pub(super) store_id: Option<String>,
    /// A node that would greet as a master and is better not used: the others are tried first.
    pub(super) last_resort: Option<String>,
}

/// One attempt that has come to an end.
struct Attempt {
    address: String,
    /// The wait before it.
    waited: Duration,
    result: Result<Greeted, AttemptError>,
}

impl Seek<'_> {
    /// Looks until a master is found; `on_error` learns why each attempt failed. Dropping the future ends all
    /// attempts.
    pub(super) async fn master(self, mut on_error: impl FnMut(AttemptError)) -> (Greeted, Welcome) {
        let began = Instant::now();
        let mut attempts = JoinSet::new();
        let mut hints = HashSet::new();
        for server in &self.options.servers {
            let last = self.last_resort.as_ref() == Some(server);
            let wait = if last { self.options.backoff.maximum } else { Duration::ZERO };
            self.attempt(&mut attempts, server.clone(), wait);
        }
        loop {
            // Attempts neither panic nor are aborted while this waits for them, and there is always one.
            let Some(Ok(attempt)) = attempts.join_next().await else {
                for server in &self.options.servers {
                    self.attempt(&mut attempts, server.clone(), self.options.backoff.maximum);
                }
                continue;
            };
            hints.remove(&attempt.address);
            let error = match attempt.result {
                Ok(greeted) => match self.judge(greeted) {
                    Ok(found) => return found,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let AttemptError::NotMaster { master: Some(hint), .. } = &error
                && !self.options.servers.contains(hint)
                && hints.len() < self.options.servers.len()
                && hints.insert(hint.clone())
            {
                self.attempt(&mut attempts, hint.clone(), Duration::ZERO);
            }
            on_error(error);
            if self.options.servers.contains(&attempt.address) {
                let wait = self.options.backoff.wait(began.elapsed(), attempt.waited);
                self.attempt(&mut attempts, attempt.address, by_chance(wait));
            }
        }
    }

    fn attempt(&self, attempts: &mut JoinSet<Attempt>, address: String, wait: Duration) {
        let greeting = self.greeting.clone();
        let within = self.options.attempt_timeout;
        attempts.spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let result = greet(&address, &greeting, within).await;
            Attempt { address, waited: wait, result }
        });
    }

    fn judge(&self, greeted: Greeted) -> Result<(Greeted, Welcome), AttemptError> {
        match &greeted.answer {
            Answer::NotMaster(not_master) => Err(AttemptError::NotMaster {
                address: greeted.address,
                role: not_master.role,
                master: not_master.master.clone(),
            }),
            Answer::Welcome(welcome) => {
                let seen = self.greeting.epoch_seen;
                match objection(&greeted.address, welcome, seen, self.store_id.as_deref()) {
                    Some(error) => Err(error),
                    None => {
                        let welcome = welcome.clone();
                        Ok((greeted, welcome))
                    }
                }
            }
        }
    }
}

//! Finding the master: all known addresses are tried at the same time, again and again, until one is master.
//!
//! At the same time, because a host without power does not answer and must not hold up the attempt to the other
//! one; so are all addresses of a name that has several, which is looked up again before each attempt. A node that is not
//! master may name the master: that address is tried at once. A master whose epoch is lower than one seen before, or
//! that serves another store, is no master.
//!
//! The first attempt of a search goes out at once, unless the connection before came to nothing ([`Pace`]): a node that
//! lets clients in and drops them is not asked faster than one that is no master.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::error::AttemptError;
use super::handshake::{Answer, Greeted, Greeting, greet, objection};
use super::options::{ClientOptions, ReconnectBackoff};
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
    /// The wait before the first attempt, before chance.
    pub(super) first_wait: Duration,
}

/// Whether another attempt may meet something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It may.
    Open,
    /// All nodes at all addresses refuse this client in a way that trying again does not change.
    Hopeless,
}

/// How soon a search begins after a connection has ended.
#[derive(Debug, Default)]
pub(super) struct Pace {
    wait: Duration,
}

impl Pace {
    /// The wait before the first attempt of the next search.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Notes what a connection came to.
    pub(super) fn note(&mut self, came_to: CameTo, backoff: &ReconnectBackoff) {
        self.wait = match came_to {
            CameTo::Something => Duration::ZERO,
            CameTo::Nothing => backoff.longer(self.wait),
        };
    }
}

/// What a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CameTo {
    /// The node did something for the client, or kept it for a while.
    Something,
    /// It let the client in, and that was all.
    Nothing,
}

/// A server of the options, by its number, or an address that a node has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Server(usize),
    Hint,
}

/// One attempt that has come to an end.
struct Attempt {
    origin: Origin,
    /// The address as it is called.
    name: String,
    /// The same, of an attempt at a server.
    address: Option<SocketAddr>,
    result: Result<Greeted, AttemptError>,
}

/// What a task of a search ends with.
enum Step {
    LookedUp { server: usize, found: Result<Vec<SocketAddr>, AttemptError> },
    Tried(Box<Attempt>),
}

/// Whether an address is being tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    Running,
    Over,
}

/// What is known of an address of a server.
#[derive(Clone, Copy, Debug)]
struct Course {
    trial: Trial,
    /// What the last trial that is over has left.
    outlook: Outlook,
}

/// A server of the options in a search.
#[derive(Default)]
struct Server {
    /// Whether its addresses are being looked up, or will be after a wait.
    is_next: bool,
    /// The wait before that, before chance.
    wait: Duration,
    addresses: BTreeMap<SocketAddr, Course>,
}

/// One search.
struct Search<'a> {
    seek: Seek<'a>,
    began: Instant,
    servers: Vec<Server>,
    hints: HashSet<String>,
    steps: JoinSet<Step>,
}

impl Seek<'_> {
    /// Looks until a master is found; `on_error` learns why each attempt failed, and what that leaves. Dropping the
    /// future ends all attempts.
    pub(super) async fn master(self, mut on_error: impl FnMut(AttemptError, Outlook)) -> (Greeted, Welcome) {
        let first_wait = self.first_wait;
        let mut search = Search::begin(self, first_wait);
        loop {
            let failed = match search.steps.join_next().await {
                Some(Ok(Step::LookedUp { server, found })) => search.looked_up(server, found),
                Some(Ok(Step::Tried(attempt))) => match search.tried(*attempt) {
                    Ok(found) => return found,
                    Err(error) => Some(error),
                },
                // Steps neither panic nor are aborted while this waits for them, and there is always one.
                _ => {
                    let wait = search.seek.options.backoff.maximum;
                    search = Search::begin(search.seek, wait);
                    None
                }
            };
            if let Some(error) = failed {
                on_error(error, search.outlook());
            }
        }
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

impl<'a> Search<'a> {
    fn begin(seek: Seek<'a>, wait: Duration) -> Self {
        let servers = seek.options.servers.iter().map(|_| Server { wait, ..Server::default() }).collect();
        let mut search =
            Self { seek, began: Instant::now(), servers, hints: HashSet::new(), steps: JoinSet::new() };
        for server in 0..search.servers.len() {
            search.look_up(server, by_chance(wait));
        }
        search
    }

    /// Looks up the addresses of a server, after a wait.
    fn look_up(&mut self, server: usize, wait: Duration) {
        self.servers[server].is_next = true;
        let name = self.seek.options.servers[server].clone();
        let within = self.seek.options.attempt_timeout;
        self.steps.spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let looking = async { lookup_host(&name).await.map(Iterator::collect) };
            let found = match timeout(within, looking).await {
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(source)) => {
                    Err(AttemptError::Io { address: name, action: "look up", source: Arc::new(source) })
                }
                Err(_) => Err(AttemptError::Silent { address: name, within }),
            };
            Step::LookedUp { server, found }
        });
    }

    /// Tries the addresses of a server that are not being tried. One that does not answer holds up no other.
    fn looked_up(
        &mut self,
        server: usize,
        found: Result<Vec<SocketAddr>, AttemptError>,
    ) -> Option<AttemptError> {
        self.servers[server].is_next = false;
        let (found, failed) = match found {
            Ok(found) => (found, None),
            // Whoever answers for names may be gone with a host: what it said before is as good.
            Err(error) => (self.servers[server].addresses.keys().copied().collect(), Some(error)),
        };
        let known = &mut self.servers[server].addresses;
        known.retain(|address, course| course.trial == Trial::Running || found.contains(address));
        let is_one = known.keys().chain(&found).all(|address| found.first() == Some(address));
        for address in &found {
            let first = Course { trial: Trial::Over, outlook: Outlook::Open };
            let course = self.servers[server].addresses.entry(*address).or_insert(first);
            if course.trial == Trial::Over {
                course.trial = Trial::Running;
                let name =
                    if is_one { self.seek.options.servers[server].clone() } else { address.to_string() };
                self.attempt(Origin::Server(server), name, Some(*address));
            }
        }
        if found.is_empty() {
            self.again(server);
        }
        failed
    }

    fn attempt(&mut self, origin: Origin, name: String, address: Option<SocketAddr>) {
        let (greeting, within) = (self.seek.greeting.clone(), self.seek.options.attempt_timeout);
        let is_last = self.seek.last_resort.as_ref() == Some(&name);
        let wait = if is_last { self.seek.options.backoff.maximum } else { Duration::ZERO };
        if is_last {
            self.seek.last_resort = None;
        }
        self.steps.spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let result = match address {
                Some(address) => greet(&name, address, &greeting, within).await,
                None => greet(&name, name.as_str(), &greeting, within).await,
            };
            Step::Tried(Box::new(Attempt { origin, name, address, result }))
        });
    }

    /// What an attempt has led to.
    fn tried(&mut self, attempt: Attempt) -> Result<(Greeted, Welcome), AttemptError> {
        let error = match attempt.result.and_then(|greeted| self.seek.judge(greeted)) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        match (attempt.origin, attempt.address) {
            (Origin::Server(server), Some(address)) => {
                let outlook = if error.is_lasting() { Outlook::Hopeless } else { Outlook::Open };
                self.servers[server].addresses.insert(address, Course { trial: Trial::Over, outlook });
                self.again(server);
            }
            _ => {
                self.hints.remove(&attempt.name);
            }
        }
        if let AttemptError::NotMaster { master: Some(hint), .. } = &error
            && !self.seek.options.servers.contains(hint)
            && self.hints.len() < self.seek.options.servers.len()
            && self.hints.insert(hint.clone())
        {
            self.attempt(Origin::Hint, hint.clone(), None);
        }
        Err(error)
    }

    /// Has a server tried again after a wait, where that is not to happen anyhow.
    fn again(&mut self, server: usize) {
        if self.servers[server].is_next {
            return;
        }
        let wait = self.seek.options.backoff.wait(self.began.elapsed(), self.servers[server].wait);
        self.servers[server].wait = wait;
        self.look_up(server, by_chance(wait));
    }

    fn outlook(&self) -> Outlook {
        let is_hopeless = |server: &Server| {
            let mut courses = server.addresses.values();
            !server.addresses.is_empty() && courses.all(|course| course.outlook == Outlook::Hopeless)
        };
        if self.servers.iter().all(is_hopeless) { Outlook::Hopeless } else { Outlook::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_while_a_takeover_is_likely_and_then_grow_to_the_longest() {
        let backoff = ReconnectBackoff::default();
        let (mut since, mut wait, mut waits) = (Duration::ZERO, Duration::ZERO, Vec::new());
        while since < Duration::from_secs(4) {
            wait = backoff.wait(since, wait);
            since += wait;
            waits.push(wait.as_millis());
        }
        let (eager, rest) = waits.split_at(100);
        assert!(eager.iter().all(|wait| *wait == 10), "{eager:?}");
        assert_eq!(rest, [20, 40, 80, 160, 320, 500, 500, 500, 500, 500]);
    }

    #[test]
    fn connections_that_come_to_nothing_follow_each_other_more_and_more_slowly() {
        let (backoff, mut pace) = (ReconnectBackoff::default(), Pace::default());
        assert_eq!(pace.wait(), Duration::ZERO);
        let mut after = |came_to| {
            pace.note(came_to, &backoff);
            pace.wait().as_millis()
        };
        let waits: Vec<_> = (0..8).map(|_| after(CameTo::Nothing)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(after(CameTo::Something), 0);
        assert_eq!(after(CameTo::Nothing), 10);
    }
}

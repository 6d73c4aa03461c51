//! The thread that has the floating addresses for as long as the node is master.
//!
//! ```text
//! away --the node has the lock--> looking --it serves--> keeping --it hands over--> away
//! ```
//!
//! *Looking*: it asks the neighbours who has the addresses. The answer decides nothing. A conflict of addresses is, to a
//! host that configures itself, a sign that another one was there first and has the better right (RFC 5227, 2.4). Here
//! the right is decided before, by the lock and the claim: whoever else has the address is a master that is
//! paused or cut off, or a stranger. The first must not keep the pair from serving. To the second nothing is owed, since
//! the address was given to the pair, and a stranger that could stop the pair by an answer would be a hole. So it is
//! said in the log who it is, the address is taken, and the neighbours are told again and again. Who still has it when
//! the loan of the last master has run out is a stranger, and a warning.
//!
//! *Keeping*: each second the lifetimes are extended; what is missing is added again, also when the interface comes
//! back. Neighbours are told when an address is added, a few times more in the seconds after that (packets get lost, and
//! old kernels ignore what contradicts an entry of the last second), then in the configured interval, and at once when
//! another host says that it has the address. All of that depends on how sure the node is ([`Confidence`]): a master
//! that wakes up after a pause would else add and announce what another one has by now.
//!
//! *Handing over*: the addresses stay until the next master has told that it has them. A client that comes meanwhile is
//! told at once that this node is none. Were they taken away before, its first packet would be lost, and the next
//! one come a second later.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::host_lock::HostLock;
use super::interface::Interface;
use super::left_over;
use super::link::Link;
use super::packet::Claim;
use super::rivals::{Rival, Rivals};
use super::table::{LIFETIME_MAX, Table};
use super::telling::Telling;
use super::trouble::{Task, Trouble};
use super::{AddressError, Here, Holdings, RIGHT_TO_CHANGE};
use crate::config::floating::{FloatingAddress, FloatingSettings};

/// For how long the kernel keeps an address that nobody extends.
pub const LIFETIME: Duration = Duration::from_secs(10);
const _: () = assert!(LIFETIME.as_secs() <= LIFETIME_MAX.as_secs());
/// How often it is extended.
pub(super) const EXTEND_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether there is something to do.
const TICK: Duration = Duration::from_millis(50);
/// Least time between two warnings of the same kind.
pub(super) const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// How long an address stays when it is handed over and nobody announces it.
pub const HAND_OVER_MAX: Duration = Duration::from_millis(500);
/// How long the thread may take for it.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// How sure a node is that it is master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// It has just made sure.
    Fresh,
    /// It has made sure a while ago: it was paused, or the storage stalls. What is here stays, and nothing is added or
    /// announced.
    Stale,
    /// It cannot make sure, and is no master to clients: the addresses go until it can.
    Lost,
}

/// What the thread is told.
enum Order {
    Look,
    Keep,
    HandOver(oneshot::Sender<()>),
}

/// The floating addresses of a node.
#[derive(Debug)]
pub struct Keeper {
    orders: Sender<Order>,
}

impl Keeper {
    /// Makes sure that the addresses can be had, removes what a killed process has left of them, and starts the thread.
    /// It has them while the node keeps them, as far as `confidence` allows.
    ///
    /// # Errors
    /// Where the interface does not exist, a right is missing, or an address is configured otherwise or in other
    /// hands.
    pub fn start(
        settings: FloatingSettings,
        holdings: Arc<Holdings>,
        confidence: impl Fn() -> Confidence + Send + 'static,
    ) -> Result<Self, AddressError> {
        let lock = HostLock::take(&settings.addresses)?;
        let interface = Interface::find(&settings.interface)?;
        let mut table = left_over::open()?;
        for &address in &settings.addresses {
            if left_over::remove(&mut table, &interface, address)? {
                let interface = interface.name();
                tracing::warn!(%address, interface, "a process that was killed had left a floating address: removed");
            }
        }
        // For the right to; it is opened when there is something to hear.
        drop(Link::open(interface, &settings.addresses)?);
        for address in &settings.addresses {
            let interface = &settings.interface;
            tracing::info!(%address, interface, "floating address: this node has it while it is master");
        }
        let now = Instant::now();
        let work = Work {
            telling: Telling::new(now, settings.announce_interval),
            settings,
            holdings,
            confidence: Box::new(confidence),
            table,
            link: None,
            extend_at: now,
            trouble: Trouble::default(),
            rivals: Rivals::new(now),
            _lock: lock,
        };
        let (orders, received) = channel();
        let thread = Builder::new().name("address".to_owned()).spawn(move || work.run(&received));
        thread.map_err(|source| AddressError::System { action: "start a thread", source })?;
        Ok(Self { orders })
    }

    /// The node is about to be master: neighbours are asked who has the addresses.
    pub fn look(&self) {
        self.order(Order::Look);
    }

    /// The node serves: the addresses are to be here.
    pub fn keep(&self) {
        self.order(Order::Keep);
    }

    /// The node is master no more: the addresses go as soon as another host has announced them, or in a moment. Answers
    /// what waits until they are gone, and at most for a moment.
    pub fn hand_over(&self) -> impl Future<Output = ()> + use<> {
        let (done, gone) = oneshot::channel();
        self.order(Order::HandOver(done));
        async move {
            if tokio::time::timeout(HAND_OVER_PATIENCE, gone).await.is_err() {
                tracing::warn!(
                    "the floating addresses are not removed in time: they go by themselves within {LIFETIME:?}"
                );
            }
        }
    }

    fn order(&self, order: Order) {
        // The thread ends with this alone.
        let _ = self.orders.send(order);
    }
}

/// What became of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extended {
    Kept,
    Added,
    /// It is not here, and may not be added.
    Missing,
}

/// What the thread is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Away,
    Looking,
    Keeping,
}

/// The thread.
struct Work {
    settings: FloatingSettings,
    holdings: Arc<Holdings>,
    confidence: Box<dyn Fn() -> Confidence + Send>,
    table: Table,
    /// Open while there is something to hear.
    link: Option<Link>,
    telling: Telling,
    extend_at: Instant,
    trouble: Trouble,
    rivals: Rivals,
    _lock: HostLock,
}

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut stage = Stage::Away;
        loop {
            let order = match stage {
                Stage::Away => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Stage::Looking | Stage::Keeping => orders.recv_timeout(TICK),
            };
            match order {
                Ok(Order::Look) => {
                    stage = Stage::Looking;
                    let looked = self.look();
                    self.trouble.note(Task::Ask, looked, Instant::now());
                }
                Ok(Order::Keep) => {
                    stage = Stage::Keeping;
                    self.extend_at = Instant::now();
                    self.rivals.begin(self.extend_at);
                }
                Ok(Order::HandOver(done)) => {
                    stage = Stage::Away;
                    self.hand_over();
                    // Nobody waits any more where it took too long.
                    let _ = done.send(());
                    self.link = None;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            match stage {
                Stage::Away => {}
                Stage::Looking => self.say(now, &self.heard()),
                Stage::Keeping => self.keep(now, &self.heard()),
            }
        }
    }

    fn look(&mut self) -> Result<(), AddressError> {
        self.rivals = Rivals::new(Instant::now());
        self.link = Some(Link::open(Interface::find(&self.settings.interface)?, &self.settings.addresses)?);
        self.ask()
    }

    fn ask(&self) -> Result<(), AddressError> {
        let Some(link) = &self.link else { return Ok(()) };
        self.settings.addresses.iter().try_for_each(|address| link.probe(*address))
    }

    /// Sees to it that the addresses are here, or not, and that the neighbours know.
    fn keep(&mut self, now: Instant, heard: &[Claim]) {
        let confidence = (self.confidence)();
        if confidence == Confidence::Lost {
            if self.holdings.iter().any(|(_, here)| here) {
                tracing::warn!(
                    "the node cannot make sure that it is still master: its floating addresses go until it can"
                );
                self.remove();
            }
            self.extend_at = now;
            return;
        }
        if now >= self.extend_at + EXTEND_INTERVAL {
            // It was paused. What is here may be another one's by now: the node finds that out first, and ends.
            self.extend_at = now + EXTEND_INTERVAL;
        } else if now >= self.extend_at {
            self.extend_at = now + EXTEND_INTERVAL;
            let extended = self.extend(now, confidence);
            self.trouble.note(Task::Extend, extended, now);
        }
        if confidence == Confidence::Stale {
            return;
        }
        self.say(now, heard);
        if self.rivals.is_to_ask(now) {
            self.trouble.note(Task::Ask, self.ask(), now);
        }
        if self.telling.is_due(now, heard) {
            self.trouble.note(Task::Tell, self.tell(), now);
        }
    }

    /// Adds what is missing, if it may, and extends the rest.
    fn extend(&mut self, now: Instant, confidence: Confidence) -> Result<(), AddressError> {
        let interface = match Interface::find(&self.settings.interface) {
            Ok(interface) => interface,
            Err(error) => {
                self.holdings.none_here();
                return Err(error);
            }
        };
        if self.link.as_ref().is_none_or(|link| *link.interface() != interface) {
            self.link = Some(Link::open(interface.clone(), &self.settings.addresses)?);
            self.telling.begin(now);
        }
        let mut first = Ok(());
        for address in self.settings.addresses.clone() {
            match self.extend_one(&interface, address, confidence) {
                Ok(Extended::Kept | Extended::Missing) => {}
                Ok(Extended::Added) => self.telling.begin(now),
                Err(error) => {
                    self.holdings.note(address, Here::No);
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    fn extend_one(
        &mut self,
        interface: &Interface,
        address: FloatingAddress,
        confidence: Confidence,
    ) -> Result<Extended, AddressError> {
        let is_new = left_over::find(&mut self.table, interface, address)?.is_none();
        if is_new && confidence != Confidence::Fresh {
            self.holdings.note(address, Here::No);
            return Ok(Extended::Missing);
        }
        self.table
            .put(interface.index(), address, LIFETIME)
            .map_err(AddressError::of("add a floating address", RIGHT_TO_CHANGE))?;
        let was_here = self.holdings.note(address, Here::Yes);
        if !is_new {
            return Ok(Extended::Kept);
        }
        let name = interface.name();
        if was_here {
            tracing::warn!(%address, interface = name, "a floating address was gone: added again");
        } else {
            tracing::info!(%address, interface = name, "floating address added");
        }
        Ok(Extended::Added)
    }

    fn tell(&self) -> Result<(), AddressError> {
        let Some(link) = &self.link else { return Ok(()) };
        let here = self.holdings.iter().filter(|(_, here)| *here);
        here.map(|(address, _)| link.announce(address)).fold(Ok(()), Result::and)
    }

    /// Who else says that he has the addresses.
    fn heard(&self) -> Vec<Claim> {
        self.link.as_ref().map(|link| link.heard(&self.settings.addresses)).unwrap_or_default()
    }

    /// Says in the log who else has the addresses.
    fn say(&mut self, now: Instant, heard: &[Claim]) {
        let Some(Claim { ip, mac }) = heard.first() else { return };
        match self.rivals.judge(now) {
            Rival::Predecessor => tracing::info!(
                address = %ip,
                "the host with the Ethernet address {mac} still has the floating address: it is taken over from it"
            ),
            Rival::Stranger => tracing::warn!(
                address = %ip,
                "the host with the Ethernet address {mac} says that it has the floating address, and it is no master \
                 that had it before: the neighbours are told again that it is here; take it away from that host, or \
                 give the pair another one"
            ),
            Rival::Known => {}
        }
    }

    fn hand_over(&mut self) {
        let here: Vec<FloatingAddress> =
            self.holdings.iter().filter(|(_, here)| *here).map(|(address, _)| address).collect();
        if let Some(link) = self.link.as_ref().filter(|_| !here.is_empty()) {
            left_over::wait_for_successor(link, &here, HAND_OVER_MAX);
        }
        self.remove();
    }

    fn remove(&mut self) {
        let removed = Interface::find(&self.settings.interface).and_then(|interface| {
            for address in self.settings.addresses.clone() {
                if left_over::remove(&mut self.table, &interface, address)? {
                    tracing::info!(%address, interface = interface.name(), "floating address removed");
                }
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "a floating address could not be removed: it goes by itself within {LIFETIME:?}");
        }
        self.holdings.none_here();
    }
}

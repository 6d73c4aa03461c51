//! What the parts of a client share: the connection's state, who waits for which answer, producers and consumers.
//!
//! Lock order: the state of one producer or consumer, then the link, then the registry. No lock is held across an
//! `.await`, and whoever waits for a confirm, a delivery or an answer is woken when all are released.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::consumer_core::ConsumerCore;
use super::error::{AttemptError, ClientError, LastAttempts};
use super::link::{Link, Session, Written};
use super::options::ClientOptions;
use super::producer_core::ProducerCore;
use super::seek::Outlook;
use super::topic::TopicCore;
use super::wait::{RETRY_WAIT, by_chance};
use crate::model::id::{Epoch, TopicId};
use crate::model::limits::Limits;
use crate::model::name::Name;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{FindTopic, Handle, Request, RequestId};
use crate::protocol::response::{Reply, Response, Welcome};

/// Addresses of which it is remembered why the last attempt failed, at least: a name may stand for several.
const ATTEMPTS_KEPT_MIN: usize = 8;
/// A wait that no program sees the end of: some 30 years.
const NEVER: Duration = Duration::from_secs(1_000_000_000);

/// Locks. A panic of another holder is no reason to panic here too: every critical section leaves its state whole.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The moment `wait` after another. A wait beyond what the clock can say, `Duration::MAX` for example, never ends.
pub(super) fn after(begin: Instant, wait: Duration) -> Instant {
    begin.checked_add(wait).unwrap_or_else(|| begin + NEVER)
}

/// The master that the client is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its address.
    pub address: String,
    /// How it introduced itself.
    pub welcome: Welcome,
    /// The limits that it applies to messages.
    pub(super) limits: Limits,
}

/// State of the connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Number of the connection; 0 while there is none.
    pub(super) session: Session,
    pub(super) master: Option<Arc<Master>>,
    /// Since when it is as it is.
    pub(super) since: Instant,
    /// Why there is none.
    pub(super) last: LastAttempts,
    /// Whether there may be one again.
    pub(super) outlook: Outlook,
    pub(super) closed: bool,
}

impl Connection {
    /// Whether all nodes refuse this client for good.
    fn is_unusable(&self) -> bool {
        self.session == 0 && self.outlook == Outlook::Hopeless
    }
}

/// Who waits for the answer to a request.
#[derive(Debug)]
pub(super) enum Waiting {
    Call(oneshot::Sender<Result<Reply, Refusal>>),
    Producer(Arc<ProducerCore>),
    Consumer(Arc<ConsumerCore>),
    /// Settlements of so many messages.
    Settlement(Arc<ConsumerCore>, u64),
}

/// Everything that is called by a number.
#[derive(Debug, Default)]
pub(super) struct Registry {
    last_request: RequestId,
    last_handle: Handle,
    waiting: HashMap<RequestId, Waiting>,
    pub(super) producers: HashMap<Handle, Arc<ProducerCore>>,
    pub(super) consumers: HashMap<Handle, Arc<ConsumerCore>>,
    topics: HashMap<TopicId, Weak<TopicCore>>,
}

impl Registry {
    /// A number that no producer or consumer of this client has had.
    pub(super) fn next_handle(&mut self) -> Handle {
        self.last_handle += 1;
        self.last_handle
    }

    /// A number for a request, under which the answer will find who waits for it.
    pub(super) fn expect(&mut self, waiting: Waiting) -> RequestId {
        loop {
            self.last_request = self.last_request.wrapping_add(1);
            if self.last_request != 0 && !self.waiting.contains_key(&self.last_request) {
                self.waiting.insert(self.last_request, waiting);
                return self.last_request;
            }
        }
    }

    /// Who waits for this answer.
    pub(super) fn answered(&mut self, request: RequestId) -> Option<Waiting> {
        self.waiting.remove(&request)
    }

    /// A number for a request whose answer nobody wants.
    pub(super) fn unanswered(&mut self) -> RequestId {
        loop {
            self.last_request = self.last_request.wrapping_add(1);
            if self.last_request != 0 && !self.waiting.contains_key(&self.last_request) {
                return self.last_request;
            }
        }
    }

    /// Forgets all requests: the connection is gone.
    pub(super) fn forget_requests(&mut self) -> HashMap<RequestId, Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// The handle of a topic that somebody still has.
    pub(super) fn topic(&self, id: TopicId) -> Option<Arc<TopicCore>> {
        self.topics.get(&id).and_then(Weak::upgrade)
    }

    /// Remembers a topic for as long as somebody has it.
    pub(super) fn remember_topic(&mut self, id: TopicId, topic: &Arc<TopicCore>) {
        self.topics.retain(|_, topic| topic.strong_count() > 0);
        self.topics.insert(id, Arc::downgrade(topic));
    }
}

/// Whether a request may be made again when the connection was lost before its answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Made twice, it has the effect of once.
    Harmless,
    /// It must not be made twice unknowingly.
    Never,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: ClientOptions,
    pub(super) registry: Mutex<Registry>,
    pub(super) link: Mutex<Link>,
    pub(super) connection: watch::Sender<Connection>,
    /// Wakes the writer task.
    pub(super) writer: Notify,
    /// Asks the driver to say goodbye and end.
    pub(super) closing: Notify,
    epoch_seen: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: ClientOptions) -> Self {
        let connection = Connection {
            session: 0,
            master: None,
            since: Instant::now(),
            last: LastAttempts::default(),
            outlook: Outlook::Open,
            closed: false,
        };
        Self {
            options,
            registry: Mutex::default(),
            link: Mutex::default(),
            connection: watch::Sender::new(connection),
            writer: Notify::new(),
            closing: Notify::new(),
            epoch_seen: AtomicU64::new(0),
        }
    }

    /// The highest epoch that any node has named.
    pub(super) fn epoch_seen(&self) -> Epoch {
        Epoch(self.epoch_seen.load(Ordering::Relaxed))
    }

    pub(super) fn see_epoch(&self, epoch: Epoch) {
        self.epoch_seen.fetch_max(epoch.0, Ordering::Relaxed);
    }

    /// Number of the current connection; 0 while there is none.
    pub(super) fn session(&self) -> Session {
        locked(&self.link).session
    }

    /// Writes what waits in the link, in this task as far as the socket takes it.
    pub(super) fn write(&self) {
        let written = locked(&self.link).write();
        if written == Written::Blocked {
            self.writer.notify_one();
        }
    }

    /// Puts a request into the link and writes it. `false` where the connection is not that one any more.
    pub(super) fn send(&self, session: Session, request: &Request) -> bool {
        let written = {
            let mut link = locked(&self.link);
            if session == 0 || link.session != session {
                return false;
            }
            link.put(request);
            link.write()
        };
        if written == Written::Blocked {
            self.writer.notify_one();
        }
        true
    }

    /// Waits until there is a connection later than `after`, at most until `deadline`.
    pub(super) async fn connected(
        &self,
        after: Session,
        deadline: Instant,
    ) -> Result<(Session, Arc<Master>), ClientError> {
        let mut watch = self.connection.subscribe();
        loop {
            {
                let connection = watch.borrow_and_update();
                if connection.closed {
                    return Err(ClientError::Closed);
                }
                if let Some(master) = &connection.master
                    && connection.session > after
                {
                    return Ok((connection.session, master.clone()));
                }
            }
            match timeout_at(deadline, watch.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ClientError::Closed),
                Err(_) => return Err(self.no_master(&self.connection.borrow())),
            }
        }
    }

    /// Ends when there was no connection for the client's timeout, or the client was closed.
    pub(super) async fn given_up(&self) -> ClientError {
        let mut watch = self.connection.subscribe();
        let began = Instant::now();
        loop {
            let connection = watch.borrow_and_update().clone();
            if connection.closed {
                return ClientError::Closed;
            }
            let changed = if connection.session > 0 {
                watch.changed().await
            } else {
                let deadline = after(began.max(connection.since), self.options.timeout);
                match timeout_at(deadline, watch.changed()).await {
                    Ok(changed) => changed,
                    Err(_) => return self.no_master(&self.connection.borrow()),
                }
            };
            if changed.is_err() {
                return ClientError::Closed;
            }
        }
    }

    /// What a call says that found no connection in time.
    pub(super) fn no_master(&self, connection: &Connection) -> ClientError {
        ClientError::NoMaster {
            servers: self.options.servers.join(", "),
            within: self.options.timeout,
            last: connection.last.clone(),
        }
    }

    /// Remembers why an attempt to connect failed, or why a connection ended, for whoever gives up waiting.
    pub(super) fn note(&self, error: AttemptError, outlook: Outlook) {
        // The servers, and as many that they have named.
        let max = (2 * self.options.servers.len()).max(ATTEMPTS_KEPT_MIN);
        self.connection.send_if_modified(|connection| {
            connection.last.note(error, max);
            connection.outlook = outlook;
            connection.is_unusable()
        });
    }

    /// Waits until all nodes refuse this client for good.
    pub(super) async fn unusable(&self) -> ClientError {
        let mut watch = self.connection.subscribe();
        match watch.wait_for(Connection::is_unusable).await {
            Ok(connection) => ClientError::Unusable(connection.last.clone()),
            Err(_) => ClientError::Closed,
        }
    }

    /// What a call says that was not answered in time.
    pub(super) fn no_answer(&self) -> ClientError {
        let connection = self.connection.borrow();
        match &connection.master {
            Some(master) => {
                ClientError::NoAnswer { node: master.address.clone(), within: self.options.timeout }
            }
            None => self.no_master(&connection),
        }
    }

    /// When a call that begins now gives up.
    pub(super) fn deadline(&self) -> Instant {
        after(Instant::now(), self.options.timeout)
    }

    /// Makes a request of the master and waits for the answer; over several connections, where that is harmless.
    pub(super) async fn call(
        &self,
        repeat: Repeat,
        make: impl Fn(RequestId) -> Request,
    ) -> Result<Reply, ClientError> {
        self.call_until(self.deadline(), repeat, make).await
    }

    pub(super) async fn call_until(
        &self,
        deadline: Instant,
        repeat: Repeat,
        make: impl Fn(RequestId) -> Request,
    ) -> Result<Reply, ClientError> {
        loop {
            let (session, _) = self.connected(0, deadline).await?;
            let Some(asked) = self.ask(session, &make) else {
                // The connection was lost meanwhile; its end will be announced.
                tokio::task::yield_now().await;
                continue;
            };
            match asked.answer(deadline).await {
                Err(ClientError::ConnectionLost) if repeat == Repeat::Harmless => {}
                Err(ClientError::Refused(refusal))
                    if matches!(refusal.code, ErrorCode::NotMaster | ErrorCode::Draining)
                        && Instant::now() + RETRY_WAIT < deadline =>
                {
                    tokio::time::sleep(by_chance(RETRY_WAIT)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Makes a request on one connection and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`] where the connection is gone, before the request or before its answer.
    pub(super) async fn call_on(
        &self,
        session: Session,
        deadline: Instant,
        make: impl Fn(RequestId) -> Request,
    ) -> Result<Reply, ClientError> {
        match self.ask(session, &make) {
            Some(asked) => asked.answer(deadline).await,
            None => Err(ClientError::ConnectionLost),
        }
    }

    /// Sends a request; `None` where the connection is not that one any more.
    fn ask(&self, session: Session, make: &impl Fn(RequestId) -> Request) -> Option<Asked<'_>> {
        let (sender, answer) = oneshot::channel();
        let request = locked(&self.registry).expect(Waiting::Call(sender));
        let asked = Asked { shared: self, request, answer };
        self.send(session, &make(request)).then_some(asked)
    }

    /// Asks for the id of a topic.
    pub(super) async fn find_topic(&self, name: &Name) -> Result<TopicId, ClientError> {
        let name = name.as_str().to_owned();
        let make = |request| Request::FindTopic(FindTopic { request, name: name.clone() });
        match self.call(Repeat::Harmless, make).await? {
            Reply::Topic { id } => Ok(id),
            other => Err(unexpected(&other)),
        }
    }
}

/// An answer that does not fit the question.
pub(super) fn unexpected(reply: &Reply) -> ClientError {
    let text = format!("{reply:?}");
    ClientError::UnexpectedReply(text.split([' ', '(', '{']).next().unwrap_or_default().to_owned())
}

/// Text for a response that has no place at this point, for the log.
pub(super) fn out_of_place(response: &Response) -> String {
    let text = format!("{response:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// A request that was sent. When it is dropped, nobody waits for the answer any more.
struct Asked<'a> {
    shared: &'a Shared,
    request: RequestId,
    answer: oneshot::Receiver<Result<Reply, Refusal>>,
}

impl Asked<'_> {
    async fn answer(mut self, deadline: Instant) -> Result<Reply, ClientError> {
        match timeout_at(deadline, &mut self.answer).await {
            Err(_) => Err(self.shared.no_answer()),
            Ok(Err(_)) => Err(ClientError::ConnectionLost),
            Ok(Ok(answer)) => Ok(answer?),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        locked(&self.shared.registry).answered(self.request);
    }
}

//! The standby's connection to the master: to poll the lock at once when the master is gone, and not to claim while
//! a healthy master answers.
//!
//! Nothing here makes a node master, and nothing here is needed for safety: without any answer the lock and the
//! claim decide. An answer with a recent fence check only shows that a lock which was just taken does not lock.
//!
//! A node that has claimed and still recovers is as good as a master: were it unseated, its successor would have to
//! begin with the same recovery, and be unseated in turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::model::id::Epoch;
use crate::model::time::{Sighting, Timestamp};
use crate::protocol::frame::RawFrame;
use crate::protocol::preface::{self, PREFACE_BYTES};
use crate::protocol::request::{Hello, Purpose, Request};
use crate::protocol::response::{Heartbeat, NotMaster, Response, Role};

/// Longest frame that is taken from a master here.
const FRAME_BYTES_MAX: u64 = 64 << 10;
/// How long a master may take to accept a connection and say what it is.
const CONNECT_MAX: Duration = Duration::from_millis(300);
/// Bounds of the time between two signs of life: no node sends them more often, and where the lock is polled rarely, a
/// master whose host is lost is not to be taken for a healthy one for minutes.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);
const HEARTBEAT_MAX: Duration = Duration::from_secs(1);
/// Intervals without a sign of life before the master counts as silent.
const SILENT_INTERVALS: u32 = 3;
/// A fence check that is older than this does not make a master healthy; three of its intervals, where they are longer.
const FENCE_AGE_MAX: Duration = Duration::from_secs(1);
/// How long a recovery may get on without a fence check: longer than the steps take between which it checks, and than
/// the storage stalls.
const RECOVERY_STEP_MAX: Duration = Duration::from_secs(60);

/// What is known of a master by asking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SignOfLife {
    epoch: Epoch,
    heard_at: Instant,
    fence_age: Duration,
    /// The highest age of a healthy one.
    fence_age_max: Duration,
}

/// Whether a master was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Yes,
    No,
}

/// A connection to a node that has claimed.
struct Connection {
    stream: TcpStream,
    input: BytesMut,
    role: Role,
}

/// The watch over one master after the other.
#[derive(Debug)]
pub(super) struct Watch {
    /// How often the node looks at the lock, and an idle master makes sure that it is one.
    poll_interval: Duration,
    /// How often a master says that it is there.
    heartbeat: Duration,
    last: Mutex<Option<SignOfLife>>,
    /// The store time of the last master that was greeted. It stays when that is gone.
    seen: Mutex<Option<Sighting>>,
    /// Told when a master that answered does so no more.
    pub(super) lost: Notify,
}

impl Watch {
    pub(super) fn new(poll_interval: Duration) -> Arc<Self> {
        let heartbeat = poll_interval.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        Arc::new(Self {
            poll_interval,
            heartbeat,
            last: Mutex::new(None),
            seen: Mutex::new(None),
            lost: Notify::new(),
        })
    }

    /// What store time it was when a master was last greeted.
    pub(super) fn seen(&self) -> Option<Sighting> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node that has claimed has said something a moment ago, well or not.
    pub(super) fn hears(&self) -> Heard {
        let silent = self.heartbeat * SILENT_INTERVALS;
        let heard = self.last().is_some_and(|sign| sign.heard_at.elapsed() <= silent);
        if heard { Heard::Yes } else { Heard::No }
    }

    /// The epoch of a master that answers and whose fence held a moment ago.
    pub(super) fn healthy(&self) -> Option<Epoch> {
        let silent = self.heartbeat * SILENT_INTERVALS;
        self.last()
            .filter(|sign| sign.heard_at.elapsed() <= silent && sign.fence_age <= sign.fence_age_max)
            .map(|sign| sign.epoch)
    }

    /// Connects to `address` and listens until the master there is gone. Answers at once where there is none.
    pub(super) async fn follow(&self, address: &str) {
        let Some(mut connection) = self.connect(address).await else {
            return;
        };
        tracing::info!(master = address, "following the master");
        loop {
            self.listen(&mut connection).await;
            if connection.role != Role::Recovering {
                break;
            }
            // It ends when it begins to serve, too.
            match self.connect(address).await {
                Some(next) => connection = next,
                None => break,
            }
        }
        *self.last() = None;
        self.lost.notify_one();
    }

    /// Notes signs of life until the connection ends or is silent.
    async fn listen(&self, connection: &mut Connection) {
        while let Ok(Some(Response::Heartbeat(beat))) =
            tokio::time::timeout(self.heartbeat * SILENT_INTERVALS, connection.next()).await
        {
            self.note(connection.role, beat);
        }
    }

    /// Asks once whether a healthy master answers at `address`, and at most for a moment.
    pub(super) async fn probe(&self, address: &str) -> Option<Epoch> {
        let answered = async {
            let mut connection = self.connect(address).await?;
            match connection.next().await? {
                Response::Heartbeat(beat) => {
                    self.note(connection.role, beat);
                    self.healthy()
                }
                _ => None,
            }
        };
        tokio::time::timeout(CONNECT_MAX, answered).await.ok().flatten()
    }

    /// A connection to the node at `address`, where that has claimed.
    async fn connect(&self, address: &str) -> Option<Connection> {
        let greeting = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.set_nodelay(true).ok()?;
            let mut output = BytesMut::from(&preface::client()[..]);
            Request::Hello(Hello {
                purpose: Purpose::Watch,
                client: crate::server::SERVER.to_owned(),
                epoch_seen: Epoch(0),
                heartbeat_ms: u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX),
                auth_mechanism: "anonymous".to_owned(),
                auth_data: Vec::new(),
            })
            .encode(&mut output);
            stream.write_all_buf(&mut output).await.ok()?;
            let mut answer = [0; PREFACE_BYTES];
            stream.read_exact(&mut answer).await.ok()?;
            preface::chosen(answer).ok()?.ok()?;
            let mut connection = Connection { stream, input: BytesMut::new(), role: Role::Master };
            match connection.next().await? {
                Response::Welcome(welcome) => {
                    // An older node does not say.
                    if welcome.time > Timestamp(0) {
                        let seen = Sighting { time: welcome.time, at: Instant::now() };
                        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                    }
                    Some(connection)
                }
                Response::NotMaster(NotMaster { role: Role::Recovering, .. }) => {
                    Some(Connection { role: Role::Recovering, ..connection })
                }
                _ => None,
            }
        };
        tokio::time::timeout(CONNECT_MAX, greeting).await.ok().flatten()
    }

    fn note(&self, role: Role, beat: Heartbeat) {
        let fence_age_max = match role {
            Role::Recovering => RECOVERY_STEP_MAX,
            Role::Master | Role::Standby => FENCE_AGE_MAX.max(self.poll_interval * SILENT_INTERVALS),
        };
        *self.last() = Some(SignOfLife {
            epoch: beat.epoch,
            heard_at: Instant::now(),
            fence_age: Duration::from_millis(u64::from(beat.fence_age_ms)),
            fence_age_max,
        });
    }

    fn last(&self) -> MutexGuard<'_, Option<SignOfLife>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// The next frame; `None` where the connection ends or makes no sense. Cancel-safe.
    async fn next(&mut self) -> Option<Response> {
        loop {
            if let Some(frame) = RawFrame::cut(&mut self.input, FRAME_BYTES_MAX).ok()? {
                return Response::decode(&frame).ok();
            }
            if self.stream.read_buf(&mut self.input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lost host was taken for a healthy master for three poll intervals, which may be three minutes.
    #[test]
    fn a_master_that_is_silent_is_not_healthy_for_long_however_rarely_the_lock_is_polled() {
        let watch = Watch::new(Duration::from_secs(60));
        watch.note(Role::Master, Heartbeat { epoch: Epoch(3), fence_age_ms: 90_000 });
        assert_eq!(watch.healthy(), Some(Epoch(3)), "it is idle, and looks at its fence as rarely");
        let silent = Instant::now().checked_sub(HEARTBEAT_MAX * SILENT_INTERVALS);
        watch.last().as_mut().unwrap().heard_at = silent.unwrap();
        assert_eq!((watch.healthy(), watch.hears()), (None, Heard::No));
    }
}

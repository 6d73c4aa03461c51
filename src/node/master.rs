//! The master: claims an epoch, opens the store, serves, drains.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::converting::{Intent, intent};
use super::ending::end_process;
use super::guard::MastershipGuard;
use super::service_manager::tell;
use super::storage::Late;
use super::{Acquired, Arrival, Node, NodeError};
use crate::address::keeper::Keeper;
use crate::broker::AutoCreate;
use crate::engine::{Engine, Guard, Parts};
use crate::ha::claim::{Candidate, Mastership, claim, predecessors};
use crate::ha::lock::StoreLock;
use crate::model::snapshot::Snapshot;
use crate::model::time::Sighting;
use crate::protocol::response::Role;
use crate::server::watch::Progress;
use crate::store::manifest::Manifest;
use crate::store::{self, Fenced, OpenOptions, Store, conversion};

/// How long a takeover that is told to stop may take to tidy up.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the end of a drain may take after its time is over: the last sync, the last checkpoint, the release.
const DRAIN_GRACE: Duration = Duration::from_secs(30);

impl Node {
    /// Serves with the lock until the node is told to stop or to hand over.
    pub(super) async fn serve(&self, acquired: Acquired) -> Result<(), NodeError> {
        let Acquired { lock, arrival, seen } = acquired;
        let started = Instant::now();
        self.set_standing(|standing| {
            standing.role = Role::Recovering;
            standing.master = None;
        });
        tell(&[NotifyState::Status("recovering")]);
        if let Some(keeper) = &self.keeper {
            keeper.look();
        }
        let taking = self.take_over(lock, arrival);
        tokio::pin!(taking);
        let taken = tokio::select! {
            taken = &mut taking => Some(taken?),
            () = self.shutdown.cancelled() => None,
        };
        let Some((mastership, store, snapshot)) = taken else {
            tracing::info!("stopping during the takeover: the other node takes over as after a crash");
            // A copy ends by itself, and takes its files along. What does not end ends with the process.
            let _ = tokio::time::timeout(STOP_GRACE, taking).await;
            return Ok(());
        };
        let (ended, engine_ended) = oneshot::channel();
        let engine = self.start_engine(&mastership, store, snapshot, seen, ended)?;
        let (epoch, mode) = (mastership.epoch(), mastership.mode());
        self.set_standing(|standing| {
            standing.role = Role::Master;
            standing.epoch = epoch;
            standing.master = Some(self.address.clone());
            standing.mode = mode;
            standing.store_id = mastership.store_id().to_string();
            standing.recovery = None;
            standing.engine = Some(engine.clone());
        });
        if let Some(keeper) = &self.keeper {
            keeper.keep();
        }
        tracing::info!(%epoch, %mode, address = self.address, took = ?started.elapsed(), "master");
        tell(&[NotifyState::Status(&format!("master, epoch {epoch}"))]);

        tokio::select! {
            () = self.shutdown.cancelled() => tracing::info!("stopping: draining"),
            () = self.server.switchover.notified() => tracing::info!("switchover asked for: draining"),
        }
        let started = Instant::now();
        let patience = self.config.drain_timeout + DRAIN_GRACE;
        tell(&[
            NotifyState::Stopping,
            NotifyState::Status("draining"),
            NotifyState::ExtendTimeoutUsec(
                u32::try_from((patience + STOP_GRACE).as_micros()).unwrap_or(u32::MAX),
            ),
        ]);
        engine.drain(started + self.config.drain_timeout);
        let handing_over = async {
            engine_ended.await.map_err(|_| NodeError::Panicked)?;
            // The engine's thread has dropped its share; the release needs the whole.
            let mastership = Arc::into_inner(mastership).ok_or(NodeError::Panicked)?;
            let fence_read = self.config.fence_read;
            spawn_blocking(move || mastership.release(fence_read))
                .await
                .map_err(|_| NodeError::Panicked)??;
            Ok::<_, NodeError>(())
        };
        let handed_over = match tokio::time::timeout(patience, handing_over).await {
            Ok(handed_over) => handed_over,
            Err(_) => end_process(&NodeError::Drain(patience)),
        };
        let addresses_gone = self.keeper.as_ref().map(Keeper::hand_over);
        self.set_standing(|standing| {
            standing.role = Role::Standby;
            standing.master = None;
            standing.engine = None;
        });
        if handed_over.is_ok() {
            tracing::info!(%epoch, took = ?started.elapsed(), "mastership released");
        }
        if let Some(addresses_gone) = addresses_gone {
            addresses_gone.await;
        }
        handed_over
    }

    /// Claims the next epoch and opens the store; where the configuration asks for another mode, one epoch converts it
    /// and the next one serves.
    async fn take_over(
        &self,
        lock: StoreLock,
        arrival: Arrival,
    ) -> Result<(Arc<Mastership>, Box<dyn Store>, Snapshot), NodeError> {
        let progress = Arc::new(Progress::new());
        let (mut mastership, intent) = self.claim(lock, arrival).await?;
        self.tell_claimed(&mastership, &progress);
        if let Intent::Convert(from, to) = intent {
            let lock = self.convert(mastership, (from, to), Arc::clone(&progress)).await?;
            // Whatever came of it: a second attempt would come to the same.
            (mastership, _) = self.claim(lock, Arrival::TookOver).await?;
            self.tell_claimed(&mastership, &progress);
        }
        let mastership = Arc::new(mastership);
        let (store, snapshot) = self.open_store(&mastership, progress).await?;
        let mut mastership = Arc::into_inner(mastership).ok_or(NodeError::Panicked)?;
        let (epoch, mode, read) = (mastership.epoch(), mastership.mode(), self.config.fence_read);
        let beginning = spawn_blocking(move || mastership.begin(mode, read).map(|()| mastership));
        let begun = beginning.await.map_err(|_| NodeError::Panicked)?;
        let mastership = begun.map_err(|error| NodeError::Begin(epoch, error))?;
        Ok((Arc::new(mastership), store, snapshot))
    }

    fn tell_claimed(&self, mastership: &Mastership, progress: &Arc<Progress>) {
        self.set_standing(|standing| {
            standing.epoch = mastership.epoch();
            standing.recovery = Some(Arc::clone(progress));
        });
    }

    /// Claims the next epoch, and finds out what to do about the mode of the store.
    async fn claim(&self, lock: StoreLock, arrival: Arrival) -> Result<(Mastership, Intent), NodeError> {
        let candidate = Candidate {
            identity: self.identity.clone(),
            address: self.advertised.clone(),
            mode: self.config.mode.unwrap_or_default(),
        };
        let (configured, read) = (self.config.mode, self.config.fence_read);
        let claimed = spawn_blocking(move || {
            let dir = lock.directory().path().to_owned();
            let late = Late::of(&dir, arrival);
            // What cannot be taken over is left to a node that can: the epoch is not claimed.
            store::check::check(&dir, &predecessors(&lock, late.writes())?)?;
            let mut mastership = claim(lock, candidate)?;
            mastership.note_late_writes(late.writes());
            // The manifest, and not the block: an epoch that converted the store may have died between the two.
            let newest = Manifest::newest(&dir, mastership.epoch())?;
            if let Some(newest) = &newest {
                mastership.note_mode(newest.mode, read)?;
            }
            let (epoch, mode) = (mastership.epoch(), mastership.mode());
            tracing::info!(%epoch, %mode, predecessors = ?mastership.predecessors().all(), "epoch claimed");
            late.tell(&mastership);
            for torn in mastership.torn() {
                tracing::warn!(epoch = %torn, "the block of an older epoch is torn: its master died writing it");
            }
            let intent = intent(&mastership, newest, configured, arrival)?;
            Ok::<_, NodeError>((mastership, intent))
        });
        claimed.await.map_err(|_| NodeError::Panicked)?
    }

    /// Opens the store of a claimed epoch. `progress` is told each time that the fence holds meanwhile.
    async fn open_store(
        &self,
        mastership: &Arc<Mastership>,
        progress: Arc<Progress>,
    ) -> Result<(Box<dyn Store>, Snapshot), NodeError> {
        let options = OpenOptions {
            dir: mastership.lock().directory().path().to_owned(),
            mode: mastership.mode(),
            epoch: mastership.epoch(),
            predecessors: mastership.predecessors(),
            segment_bytes: self.config.segment_bytes,
        };
        let (mut guard, stop) = (self.guard(mastership), self.shutdown.clone());
        let opened = spawn_blocking(move || {
            let mut fence = || {
                let started = Instant::now();
                if stop.is_cancelled() {
                    return Err(Fenced::Unknown("the node is told to stop".to_owned()));
                }
                guard.check()?;
                progress.made(started);
                Ok(())
            };
            conversion::clear(&options.dir, options.epoch, &mut fence)?;
            store::open(&options, &mut fence)
        });
        Ok(opened.await.map_err(|_| NodeError::Panicked)??)
    }

    pub(super) fn guard(&self, mastership: &Arc<Mastership>) -> MastershipGuard {
        MastershipGuard::new(Arc::clone(mastership), mastership.fence(self.config.fence_read))
    }

    fn start_engine(
        &self,
        mastership: &Arc<Mastership>,
        store: Box<dyn Store>,
        snapshot: Snapshot,
        seen: Option<Sighting>,
        ended: oneshot::Sender<()>,
    ) -> Result<Engine, NodeError> {
        let parts = Parts {
            store,
            snapshot,
            place: mastership.lock().directory().path().to_owned(),
            seen,
            guard: Box::new(self.guard(mastership)),
            poll_interval: self.config.poll_interval,
            limits: self.config.limits.clone(),
            auto_create: if self.config.auto_create { AutoCreate::Allowed } else { AutoCreate::Refused },
            free_min: self.config.disk_free_min,
        };
        let engine = Engine::start(parts, move |end| match end {
            Ok(()) => {
                // Nobody waits only where the node has ended already.
                let _ = ended.send(());
            }
            Err(error) => end_process(&error),
        })?;
        Ok(engine)
    }
}

//! How each fault is carried out. When it is over the pair has a master and a standby again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuser::Errno;
use rustix::process::Signal;

use crate::clock;
use crate::network::Link;
use crate::plan::{Besides, Fault, Strike, View};
use crate::support::faulty::faults::{Effect, Fault as DiskFault, Lasting, Operation};
use crate::verdict::Tally;
use crate::workload::Workload;
use crate::world::{Trouble, World};

/// How long an error of the disk may take to be met under load; then it is taken back.
const ERROR_WAIT: Duration = Duration::from_secs(5);
/// A step of a clock that a node follows at once, in seconds.
const SMALL_STEP: i64 = 2;
/// A step of a clock that a node believes only after minutes, in seconds.
const FAR_STEP: i64 = 600;
/// A step of a clock backwards, in seconds.
const STEP_BACK: i64 = -3_600;

const fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The files into which commits go.
fn commits_of(mode: &str) -> &'static str {
    if mode == "file" { ".log" } else { ".db-wal" }
}

/// What the faults have to do with.
pub struct Scene<'a> {
    pub world: &'a mut World,
    pub workload: &'a Workload,
    pub tally: &'a mut Tally,
    /// Another build.
    pub other: Option<&'a PathBuf>,
}

impl Scene<'_> {
    /// Carries out a fault, and waits until the pair has got over it.
    pub async fn strike(&mut self, strike: Strike) -> Result<(), Trouble> {
        let master = self.world.settled().await?;
        let before = self.world.epoch;
        self.suffer(strike, master).await?;
        self.world.settled().await?;
        self.world.is_full = false;
        if self.changes_no_master(strike) && self.world.epoch != before {
            return Err(format!(
                "epoch {} followed {before} though there was no reason for a takeover",
                self.world.epoch
            ));
        }
        self.tally.takeovers += self.world.epoch.0.saturating_sub(before.0);
        Ok(())
    }

    /// Whether the master has to stay what it is. Where the lock excludes nobody, a busy machine may look like a master
    /// that hangs.
    fn changes_no_master(&self, strike: Strike) -> bool {
        let keeps = matches!(
            strike.fault,
            Fault::KillStandby | Fault::PauseShort | Fault::LinkDown | Fault::Stall | Fault::FullDisk
        );
        keeps
            && self.world.view == View::Shared
            && (strike.besides == Besides::Nothing || !strike.fault.lasts())
    }

    async fn suffer(&mut self, strike: Strike, master: usize) -> Result<(), Trouble> {
        let standby = 1 - master;
        match strike.fault {
            Fault::KillMaster => self.kill(&[master], strike).await,
            Fault::KillStandby => self.kill(&[standby], strike).await,
            Fault::KillBoth => self.kill(&[master, standby], strike).await,
            Fault::KillTaker => {
                self.world.kill(master);
                self.world.pass(strike.lasts(millis(0), millis(300))).await?;
                self.world.kill(standby);
                Ok(())
            }
            Fault::PauseShort => {
                self.world.nodes[master].pause();
                let passed = self.world.pass(strike.lasts(millis(20), millis(500))).await;
                self.world.nodes[master].resume();
                passed
            }
            Fault::PauseLong => {
                self.world.nodes[master].pause();
                let passed = self.last(master, strike, millis(2_000), millis(5_000)).await;
                // Where it was killed meanwhile, that is its successor, which does not mind.
                self.world.nodes[master].resume();
                passed
            }
            Fault::Stop => {
                self.world.nodes[master].signal(Signal::TERM);
                self.world.ended(master).await?;
                self.world.pass(strike.lasts(millis(0), millis(1_000))).await
            }
            Fault::StopBoth => {
                self.world.kept_down = [true; 2];
                self.world.nodes.iter().for_each(|node| node.signal(Signal::TERM));
                self.world.ended(master).await?;
                self.world.ended(standby).await
            }
            Fault::Switchover => self.workload.switchover().await,
            Fault::LinkDown => {
                self.world.network.set(master, Link::Down);
                let passed = self.last(master, strike, millis(300), millis(4_000)).await;
                self.world.network.set(master, Link::Up);
                passed
            }
            Fault::Stall => self.stall(master, strike).await,
            Fault::Error => self.error(master, strike).await,
            Fault::FullDisk => {
                let ballast = self.world.fill();
                self.world.is_full = true;
                let passed = self.last(master, strike, millis(500), millis(3_000)).await;
                drop(ballast);
                passed
            }
            Fault::Clock => self.set_clock(master, strike).await,
            Fault::ModeChange => self.change_mode().await,
            Fault::Upgrade => self.upgrade(master, strike).await,
        }
    }

    /// Lets a fault last. In the middle of it something else may happen.
    async fn last(
        &mut self,
        master: usize,
        strike: Strike,
        shortest: Duration,
        longest: Duration,
    ) -> Result<(), Trouble> {
        let half = strike.lasts(shortest, longest) / 2;
        self.world.pass(half).await?;
        let killed: &[usize] = match strike.besides {
            Besides::Nothing => &[],
            Besides::KillMaster => &[master],
            Besides::KillStandby => &[1 - master],
            Besides::KillBoth => &[master, 1 - master],
        };
        for node in killed {
            self.world.kill(*node);
            self.world.kept_down[*node] = false;
        }
        self.world.pass(half).await
    }

    /// They are started again at once, or after a while.
    async fn kill(&mut self, nodes: &[usize], strike: Strike) -> Result<(), Trouble> {
        nodes.iter().for_each(|node| self.world.kill(*node));
        if strike.choice.is_multiple_of(2) {
            return Ok(());
        }
        self.world.pass(strike.lasts(millis(0), millis(2_000))).await
    }

    async fn stall(&mut self, master: usize, strike: Strike) -> Result<(), Trouble> {
        let faults = Arc::clone(&self.world.disk_of(master).faults);
        let operation = if strike.choice.is_multiple_of(2) { Operation::Write } else { Operation::Sync };
        let path = if strike.choice.is_multiple_of(3) { "" } else { commits_of(self.world.mode) };
        let stall = faults.stall(operation, path);
        let passed = self.world.pass(strike.lasts(millis(200), millis(4_000))).await;
        drop(stall);
        passed
    }

    async fn error(&mut self, master: usize, strike: Strike) -> Result<(), Trouble> {
        let faults = Arc::clone(&self.world.disk_of(master).faults);
        let operation = if strike.choice.is_multiple_of(2) { Operation::Write } else { Operation::Sync };
        faults.plan(DiskFault {
            operation,
            effect: Effect::Fails(Errno::EIO),
            lasting: Lasting::Once,
            path: commits_of(self.world.mode),
            nth: 1 + strike.choice / 2 % 20,
        });
        let deadline = Instant::now() + ERROR_WAIT;
        while faults.hits().is_empty() && Instant::now() < deadline {
            self.world.pass(millis(20)).await?;
        }
        faults.clear();
        Ok(())
    }

    async fn set_clock(&mut self, master: usize, strike: Strike) -> Result<(), Trouble> {
        let takes_over = strike.choice.is_multiple_of(2);
        let step = match strike.choice / 2 % 3 {
            0 => STEP_BACK,
            1 => SMALL_STEP,
            _ if takes_over => -SMALL_STEP,
            _ => FAR_STEP,
        };
        let host = if takes_over { 1 - master } else { master };
        let set = |world: &World, step| {
            if let Some(clocks) = &world.clocks {
                clocks[host].set(step);
            }
        };
        let before = self.world.epoch;
        if step == SMALL_STEP {
            self.workload.allow_ahead(SMALL_STEP);
        }
        set(self.world, step);
        self.world.pass(clock::NOTICED).await?;
        if takes_over {
            self.world.kill(master);
            self.world.kept_down[master] = false;
            self.world.settled().await?;
        }
        self.world.pass(strike.lasts(millis(100), millis(1_500))).await?;
        self.world.settled().await?;
        if step == FAR_STEP && self.world.epoch != before {
            // A master believes its clock when it begins.
            self.workload.allow_ahead(FAR_STEP);
        }
        set(self.world, 0);
        self.world.pass(clock::NOTICED).await
    }

    async fn change_mode(&mut self) -> Result<(), Trouble> {
        self.world.stop().await?;
        self.world.verify()?;
        let mode = if self.world.mode == "file" { "database" } else { "file" };
        self.world.mode = mode;
        self.world.nodes.iter_mut().for_each(|node| node.mode = mode);
        let master = self.world.settled().await?;
        let status = self.world.statuses().await[master].take();
        match status {
            Some(status) if status.mode != mode => Err(format!("the store stays in mode {}", status.mode)),
            _ => Ok(()),
        }
    }

    async fn upgrade(&mut self, master: usize, strike: Strike) -> Result<(), Trouble> {
        let Some(other) = self.other else { return Ok(()) };
        let this = PathBuf::from(env!("CARGO_BIN_EXE_baton"));
        let node = if strike.choice.is_multiple_of(2) { master } else { 1 - master };
        self.world.nodes[node].signal(Signal::TERM);
        self.world.ended(node).await?;
        let program = &mut self.world.nodes[node].program;
        *program = if *program == this { other.clone() } else { this };
        Ok(())
    }

    /// Waits until more has been confirmed: the pair works.
    pub async fn works(&mut self, messages: u64) -> Result<(), Trouble> {
        let target = self.workload.confirmed.load(Ordering::Relaxed) + messages;
        let deadline = Instant::now() + crate::world::RECOVERY_MAX;
        while self.workload.confirmed.load(Ordering::Relaxed) < target && !self.workload.is_full() {
            if Instant::now() >= deadline {
                return Err("publishing does not go on".to_owned());
            }
            self.workload.trouble()?;
            self.world.pass(millis(5)).await?;
        }
        Ok(())
    }
}

//! Everything that there is in a simulation but the code that is simulated, and what goes wrong.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;

use crate::chance::Chance;
use crate::claims::Claims;
use crate::clients::{Clients, Notes};
use crate::history::History;
use crate::host::{Fate, Host};
use crate::scheduler::{CONTROLLER, Task, TaskId};
use crate::server::{Late, NameChange, Server};
use crate::setting::{Caches, Fault, Focus, Locks, MS, Setting};
use crate::tally::Tally;

/// Hosts on which nodes run.
pub const HOSTS: usize = 2;
/// The host from which the store is checked; nothing goes wrong on it.
pub const CHECKER: usize = HOSTS;

/// Operations behind a change of names, or of who is master, at which more may go wrong.
const HOT_OPERATIONS: u64 = 12;

/// One in so many operations behind a pack meets a fault, where these are what faults are for.
const PACK_FAULT_RATE: u64 = 4;

/// The same of the operations of a master that hands over, which are more.
const HANDOVER_FAULT_RATE: u64 = 12;

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 256 << 20;

pub struct World {
    pub seed: u64,
    pub chance: Chance,
    pub setting: Setting,
    /// Microseconds since the beginning.
    pub clock: u64,
    pub steps: u64,
    pub tasks: Vec<Task>,
    pub running: TaskId,
    pub server: Server,
    pub hosts: Vec<Host>,
    pub clients: Clients,
    pub history: History,
    pub claims: Claims,
    pub tally: Tally,
    /// Faults that may still come.
    pub faults_left: u64,
    /// The master of a host is to hand over.
    pub handing_over: [bool; HOSTS],
    /// The node on each host that has claimed, and when its fence held last.
    pub masters: [Option<Master>; HOSTS],
    pub failure: Option<String>,
    /// The master of a host has drained and is about to release its epoch.
    pub closing: [bool; HOSTS],
    /// Operations of each host that come behind a change of names, or of who is master.
    hot: [u64; HOSTS],
    /// Those that come behind a pack.
    behind_pack: [u64; HOSTS],
    /// Until when the hosts do not hear of each other.
    pub cut_until: u64,
    handles: u64,
    processes: u64,
    events: VecDeque<String>,
    events_max: usize,
    digest: u64,
}

/// A node that has claimed.
#[derive(Clone, Copy, Debug)]
pub struct Master {
    pub epoch: u64,
    pub checked_at: u64,
    pub is_serving: bool,
}

/// What an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Who is master: the control file and the claims.
    Claims,
    /// Segments, to which commits go, and what else is made under another name.
    Segments,
    Other,
}

impl Area {
    /// That of a path in the mount.
    pub fn of(path: &Path) -> Self {
        match path.iter().nth(1) {
            Some(name) if name == "control" || name == "epochs" => Self::Claims,
            // A segment is known by the name that it was made under.
            _ if path.extension().is_some_and(|ending| ending == "log" || ending == "new") => Self::Segments,
            _ => Self::Other,
        }
    }
}

/// What an operation does, for what may go wrong with it.
#[derive(Clone, Debug)]
pub enum Operation {
    Look,
    Read,
    Write,
    Sync,
    Names(Option<NameChange>),
    Lock,
}

impl Operation {
    /// Whether it gives a pack its name.
    fn makes_pack(&self) -> bool {
        matches!(self, Self::Names(Some(NameChange::Rename(_, to))) if to.extension().is_some_and(|ending| ending == "pack"))
    }
}

/// What an operation meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meets {
    Nothing,
    Death,
    Wait(u64),
    Error,
}

impl World {
    pub fn new(seed: u64, allowed: &[Fault], events_max: usize) -> Self {
        let mut chance = Chance::new(seed);
        let setting = Setting::draw(&mut chance, allowed);
        Self {
            seed,
            clock: 0,
            steps: 0,
            tasks: Vec::new(),
            running: CONTROLLER,
            server: Server::new(DISK_BYTES),
            hosts: vec![
                Host::new(0, setting.caches),
                Host::new(1, setting.caches),
                Host::new(CHECKER, Caches::Coherent),
            ],
            clients: Clients::new(&setting, seed),
            history: History::default(),
            claims: Claims::default(),
            tally: Tally::default(),
            faults_left: if setting.faults.is_empty() { 0 } else { setting.faults_max },
            handing_over: [false; HOSTS],
            masters: [None; HOSTS],
            failure: None,
            closing: [false; HOSTS],
            hot: [0; HOSTS],
            behind_pack: [0; HOSTS],
            cut_until: 0,
            handles: 0,
            processes: 0,
            events: VecDeque::new(),
            events_max,
            digest: 0xcbf2_9ce4_8422_2325,
            chance,
            setting,
        }
    }

    /// Notes what happens.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let mut text = String::with_capacity(96);
        let task = &self.tasks[self.running];
        let host = task.process.map_or("-", |(host, _)| ["a", "b"][host]);
        let _ = write!(text, "{:>9} {host} {:<13} {what}", self.clock, task.name);
        for byte in text.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.events.len() == self.events_max {
            self.events.pop_front();
        }
        self.events.push_back(text);
    }

    /// A number that tells this course of events from every other.
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    pub fn last_events(&self) -> String {
        self.events.iter().fold(String::new(), |all, event| all + event + "\n")
    }

    /// Notes the first thing that must not be.
    pub fn fail(&mut self, what: String) {
        self.note(format_args!("FAILURE {what}"));
        self.failure.get_or_insert(what);
    }

    pub const fn new_handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    pub const fn new_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    /// What happens beside an operation, and what it meets.
    pub fn begin(&mut self, host: usize, area: Area, operation: &Operation) -> Meets {
        self.clock += self.chance.between(1, self.setting.operation_us);
        self.drift();
        let is_change = !matches!(operation, Operation::Look | Operation::Read);
        let is_meant = match self.setting.focus {
            Focus::All => true,
            Focus::Changes => is_change,
            Focus::Upkeep => self.tasks[self.running].name != "node",
            Focus::Claims => area == Area::Claims,
            Focus::Handover => self.closing[host],
            Focus::Packs => is_change && area == Area::Segments && self.behind_pack[host] > 0,
        };
        if matches!(operation, Operation::Names(_)) || (is_change && area == Area::Claims) {
            self.hot[host] = HOT_OPERATIONS;
        }
        if operation.makes_pack() {
            self.behind_pack[host] = HOT_OPERATIONS;
        }
        for count in [&mut self.hot[host], &mut self.behind_pack[host]] {
            *count = count.saturating_sub(1);
        }
        let rate = match self.setting.focus {
            Focus::Packs => PACK_FAULT_RATE,
            Focus::Handover => HANDOVER_FAULT_RATE,
            _ if self.hot[host] > 0 => self.setting.fault_rate.div_ceil(self.setting.hot_factor),
            _ => self.setting.fault_rate,
        };
        if self.faults_left == 0 || !is_meant || !self.chance.one_in(rate) {
            return Meets::Nothing;
        }
        let fault = self.chance.pick(&self.setting.faults.clone());
        self.meet(host, fault, operation)
    }

    /// What was sent arrives some time.
    fn drift(&mut self) {
        if self.chance.one_in(self.setting.drift_rate) {
            let host = self.chance.below(HOSTS as u64) as usize;
            let is_stale = self.masters[host]
                .is_some_and(|one| self.masters[1 - host].is_some_and(|two| two.epoch > one.epoch));
            let Self { hosts, server, chance, .. } = &mut *self;
            if hosts[host].paused_until == 0 && hosts[host].send_some(server, chance) && is_stale {
                self.tally.late_writes += 1;
            }
        }
        if !self.server.late.is_empty() && self.chance.one_in(4 * self.setting.drift_rate) {
            self.let_arrive();
        }
    }

    fn let_arrive(&mut self) {
        let index = self.chance.below(self.server.late.len() as u64) as usize;
        let late = self.server.late.swap_remove(index);
        match late {
            Late::Piece(..) => self.tally.late_writes += 1,
            Late::Names(..) => self.tally.late_names += 1,
        }
        self.note(format_args!(
            "late: {}",
            match &late {
                Late::Piece(piece, _) =>
                    format!("{} bytes of {} at {}", piece.bytes.len(), piece.inode, piece.at),
                Late::Names(change, _) => format!("{change:?}"),
            }
        ));
        self.server.arrive(late);
    }

    fn meet(&mut self, host: usize, fault: Fault, operation: &Operation) -> Meets {
        self.faults_left -= 1;
        self.note(format_args!("FAULT {fault:?} at {operation:?}"));
        self.tally.count(fault);
        if self.tasks[self.running].name == "upkeep" {
            self.tally.in_upkeep += 1;
        }
        match fault {
            Fault::PowerLoss => {
                self.leave_late(host, operation);
                self.lose_power(host, &[Fate::Lost, Fate::Sent, Fate::Late]);
                self.hosts[host].silent_since = Some(self.clock);
                Meets::Death
            }
            Fault::Kill => {
                self.leave_late(host, operation);
                self.end_process(host);
                Meets::Death
            }
            Fault::Pause => {
                let time = self.chance.pick(&[100, 1000, 5000, 5000, 20_000]);
                let time = self.chance.between(time / 2, time) * MS;
                self.hosts[host].paused_until = self.clock + time;
                self.hosts[host].silent_since = Some(self.clock);
                Meets::Nothing
            }
            Fault::Stall => {
                let time = self.chance.pick(&[20, 300, 5000, 30_000]);
                Meets::Wait(self.clock + self.chance.between(time / 2, time) * MS)
            }
            Fault::Error => Meets::Error,
            Fault::Blackout => {
                for host in 0..HOSTS {
                    self.lose_power(host, &[Fate::Lost, Fate::Sent]);
                }
                let Self { server, chance, .. } = &mut *self;
                server.lose_bytes(chance);
                server.lose_names(chance);
                server.late.clear();
                server.locks.clear();
                Meets::Death
            }
            Fault::Full => {
                let free = self.chance.pick(&[0, 4 << 10, 100 << 10, 5 << 20]);
                self.server.capacity = self.server.used() + free;
                Meets::Nothing
            }
            Fault::Cut => {
                let time = self.chance.pick(&[300, 3000, 20_000]);
                self.cut_until = self.clock + self.chance.between(time / 2, time) * MS;
                Meets::Nothing
            }
            Fault::Damage => {
                if let Some(path) = self.server.damage_checkpoint(&mut self.chance) {
                    self.tally.damaged_checkpoints += 1;
                    self.note(format_args!("damaged: {}", path.display()));
                }
                Meets::Nothing
            }
            Fault::Switchover => {
                self.handing_over = [true; HOSTS];
                Meets::Nothing
            }
        }
    }

    /// What is under way when its process ends may arrive later.
    fn leave_late(&mut self, host: usize, operation: &Operation) {
        if let Operation::Names(Some(change)) = operation
            && self.chance.one_in(2)
        {
            self.server.late.push(Late::Names(change.clone(), host));
        }
    }

    fn lose_power(&mut self, host: usize, fates: &[Fate]) {
        let Self { hosts, server, chance, .. } = &mut *self;
        hosts[host].forget_all(server, chance, fates);
        server.lose_names_of(host, chance);
        // Its locks stay until the disk has missed it for long enough.
        let locks = std::mem::take(&mut server.locks);
        self.end_process(host);
        self.server.locks = locks;
    }

    /// The process on a host ends, with its threads wherever they are.
    pub fn end_process(&mut self, host: usize) {
        let Some(process) = self.hosts[host].process.take() else { return };
        for task in &mut self.tasks {
            task.killed |= task.process == Some((host, process));
        }
        self.hosts[host].paused_until = 0;
        self.masters[host] = None;
        self.closing[host] = false;
        self.hear(process);
        self.clients.lose(process);
        for locks in self.server.locks.values_mut() {
            locks.retain(|lock| lock.host != host);
        }
    }

    /// Clients read what a process has sent by now.
    pub fn hear(&mut self, process: u64) {
        let Self { clients, history, tally, clock, .. } = &mut *self;
        let mut wrong = None;
        clients.hear(process, *clock, &mut Notes { history, tally, wrong: &mut wrong });
        if let Some(what) = wrong {
            self.fail(what);
        }
    }

    /// Whether operations were made to fail.
    pub fn has_errors(&self) -> bool {
        self.tally.has(Fault::Error)
    }

    /// Whether a lock of another one is in the way no more.
    pub fn has_expired(&self, host: usize) -> bool {
        match self.setting.locks {
            Locks::Lie => true,
            Locks::Lease(time) => {
                self.hosts[host].silent_since.is_some_and(|since| since + time < self.clock)
            }
        }
    }

    /// Faults cease: what is on its way arrives or is lost, hosts go on, there is space.
    pub fn calm_down(&mut self) {
        self.faults_left = 0;
        self.server.capacity = DISK_BYTES;
        while !self.server.late.is_empty() {
            self.let_arrive();
        }
        self.handing_over = [false; HOSTS];
        self.cut_until = 0;
        for host in &mut self.hosts {
            host.paused_until = 0;
        }
        for index in 0..self.tasks.len() {
            if let crate::scheduler::Wait::Until(time) = &mut self.tasks[index].wait {
                *time = (*time).min(self.clock + 200 * MS);
            }
        }
    }
}

//! What a process does in each of its steps, and which one it takes next.

use super::disk::{Disk, File, Manifest, Presence, Stage};
use super::epochs::EPOCHS_MAX;
use super::process::{Process, Step};
use super::setting::{Locks, Mode, Rules, Setting};
use super::state::State;

/// How a process sees the disk in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// As it is, less so many of the records that were written and not synced.
    Fresh { lost: u8 },
    /// As its host has kept it from before.
    Stale,
}

/// One process that takes a step.
pub struct Turn<'a> {
    setting: &'a Setting,
    state: &'a mut State,
    index: usize,
    sight: Sight,
}

impl<'a> Turn<'a> {
    pub fn of(setting: &'a Setting, state: &'a mut State, index: usize, sight: Sight) -> Self {
        Self { setting, state, index, sight }
    }

    /// Takes the step that is next.
    pub fn take(mut self) {
        let next = match self.me().step {
            Step::TryLock => self.try_lock(),
            Step::Look => self.look(),
            Step::Claim => self.claim(),
            Step::WriteBlock => self.write_block(),
            Step::SecondLook => self.second_look(),
            Step::ListFolder => self.list_folder(),
            Step::ReadManifest => self.read_manifest(),
            Step::ApplyEpoch => self.apply_epoch(),
            Step::CutTail => self.cut_tail(),
            Step::CheckAbandoned => self.go_on_if_it_holds(Step::RemoveAbandoned),
            Step::RemoveAbandoned => self.remove_abandoned(),
            Step::Copy => self.copy(),
            Step::Recover => self.recover(),
            Step::CheckManifest => self.check_manifest(),
            Step::WriteManifest => self.write_manifest(),
            Step::MakeSegment => self.make_segment(),
            Step::Begin => self.begin(),
            Step::Append => self.append(),
            Step::Sync => self.sync(),
            Step::Check => self.check(),
            Step::Confirm => self.confirm(),
            Step::WriteCheckpoint => self.write_checkpoint(),
            Step::CheckRemoval => self.go_on_if_it_holds(Step::Remove),
            Step::Remove => self.remove(),
            Step::CheckClose => self.go_on_if_it_holds(Step::Close),
            Step::Close => self.close(),
            Step::CheckRelease => self.go_on_if_it_holds(Step::Release),
            Step::Release => self.release(),
            waiting @ (Step::Idle | Step::Ended | Step::Refused) => waiting,
        };
        self.me().step = next;
    }

    /// Tells whoever sends again what it has written, whatever became of that.
    pub fn answer_from_memory(mut self) {
        self.confirm();
    }

    /// Ends if the fence does not hold.
    pub fn ask_fence(mut self) {
        if !self.fence_holds() {
            self.me().step = Step::Ended;
        }
    }

    fn me(&mut self) -> &mut Process {
        &mut self.state.processes[self.index]
    }

    fn is_broken(&self, rule: Rules) -> bool {
        self.setting.rules == rule
    }

    fn fence_holds(&self) -> bool {
        self.sight == Sight::Stale || self.state.passes(self.index, self.setting.rules)
    }

    fn go_on_if_it_holds(&self, next: Step) -> Step {
        if self.fence_holds() { next } else { Step::Ended }
    }
}

/// The claim.
impl Turn<'_> {
    fn try_lock(&mut self) -> Step {
        if self.setting.locks != Locks::Lie {
            self.state.holder = Some(self.index);
        }
        Step::Look
    }

    fn look(&mut self) -> Step {
        let highest = match (self.sight, self.setting.rules) {
            (Sight::Stale, _) => 1,
            (_, Rules::NextEpochFromControlAlone) => self.state.disk.highest_block(),
            _ => self.state.disk.highest(),
        };
        self.me().epoch = highest + 1;
        self.note_predecessors();
        if self.is_broken(Rules::ScanBeforeClaim) { self.first_of_the_scan() } else { Step::Claim }
    }

    /// Database mode: notes which lower epochs may still write.
    fn note_predecessors(&mut self) {
        if self.setting.mode == Mode::Database {
            let epoch = self.me().epoch;
            self.me().unknown = self.state.unknown_below(epoch, self.setting.rules);
        }
    }

    fn claim(&mut self) -> Step {
        let epoch = self.me().epoch;
        let excludes =
            !matches!(self.setting.rules, Rules::NextEpochFromControlAlone | Rules::ClaimWithoutExclusion);
        if epoch > EPOCHS_MAX || (excludes && self.state.disk.claimed[epoch]) {
            return Step::Look;
        }
        self.state.disk.claimed[epoch] = true;
        if self.is_broken(Rules::ScanBeforeBlock) { self.first_of_the_scan() } else { Step::WriteBlock }
    }

    fn write_block(&mut self) -> Step {
        self.state.write_block(self.index, Stage::Claimed, self.setting.rules);
        Step::SecondLook
    }

    fn second_look(&mut self) -> Step {
        let epoch = self.me().epoch;
        let is_blind = self.sight == Sight::Stale || self.is_broken(Rules::NoSecondLook);
        if !is_blind && self.state.disk.highest() > epoch {
            return Step::Ended;
        }
        if self.sight != Sight::Stale && !self.is_broken(Rules::PredecessorsFromTheFirstLook) {
            self.note_predecessors();
        }
        self.me().begun = self.state.disk.begun_below(epoch);
        match self.setting.rules {
            Rules::ScanBeforeClaim | Rules::ScanBeforeBlock => self.first_of_the_seal(),
            _ => self.first_of_the_scan(),
        }
    }
}

/// What is read of older epochs.
impl Turn<'_> {
    fn first_of_the_scan(&self) -> Step {
        match self.setting.mode {
            Mode::File if !self.is_broken(Rules::ListAfterManifest) => Step::ListFolder,
            _ => Step::ReadManifest,
        }
    }

    fn after_the_scan(&self) -> Step {
        match self.setting.rules {
            Rules::ScanBeforeClaim => Step::Claim,
            Rules::ScanBeforeBlock => Step::WriteBlock,
            _ => self.first_of_the_seal(),
        }
    }

    fn list_folder(&mut self) -> Step {
        let disk = &self.state.disk;
        let checkpoints = disk.checkpoints;
        let is_there = |&epoch: &usize| disk.files[epoch].presence == Presence::There;
        let listed = (1..=EPOCHS_MAX).rev().find(is_there).unwrap_or(0);
        (self.me().checkpoints, self.me().listed) = (checkpoints, listed);
        if self.is_broken(Rules::ListAfterManifest) {
            self.begin_with_checkpoint()
        } else {
            Step::ReadManifest
        }
    }

    fn read_manifest(&mut self) -> Step {
        let newest = match self.sight {
            Sight::Stale => self.state.disk.manifests.iter().flatten().next(),
            Sight::Fresh { .. } => self.state.disk.newest_manifest(),
        };
        let newest = *newest.expect("the store was founded");
        if newest.epoch >= self.me().epoch {
            return Step::Ended;
        }
        self.me().manifest = newest;
        if newest.epoch < self.me().begun {
            return Step::Refused;
        }
        match self.setting.mode {
            Mode::File if self.is_broken(Rules::ListAfterManifest) => Step::ListFolder,
            Mode::File => self.begin_with_checkpoint(),
            Mode::Database => self.choose_database(newest.file),
        }
    }

    /// File mode: looks whether what was listed goes with the manifest, and takes a checkpoint.
    fn begin_with_checkpoint(&mut self) -> Step {
        let any = self.is_broken(Rules::AnyCheckpoint);
        if self.is_broken(Rules::BegunAfterListing) {
            let epoch = self.me().epoch;
            self.me().begun = self.state.disk.begun_below(epoch);
        }
        let me = self.me();
        let is_lost = me.manifest.epoch == me.begun && me.listed < me.begun;
        if is_lost || me.listed > me.manifest.epoch {
            return Step::Refused;
        }
        me.source = me.manifest.epoch;
        me.known = me.manifest.sealed;
        if any {
            for (known, checkpoints) in me.known.iter_mut().zip(me.checkpoints) {
                *known = (*known).max(checkpoints.checked_ilog2().unwrap_or(0) as u8);
            }
        }
        Step::ApplyEpoch
    }

    fn apply_epoch(&mut self) -> Step {
        let Process { epoch, source, manifest, checkpoints, .. } = *self.me();
        if !self.state.disk.is_whole(&manifest, Disk::accepted(&manifest, &checkpoints), Mode::File) {
            return Step::Refused;
        }
        let named = self.state.disk.blocks.iter().flatten().map(|block| block.epoch);
        let named = named.filter(|&named| named < epoch).max();
        let is_left_out = self.is_broken(Rules::SealOnlyTheEpochInControl) && named != Some(source);
        let found = if is_left_out { 0 } else { self.found(source)[source] };
        if !self.is_broken(Rules::SealWithoutSync) {
            let durable = &mut self.state.disk.files[source].durable[source];
            *durable = found.max(*durable);
        }
        let is_one = self.is_broken(Rules::OneJournalForAll);
        let me = self.me();
        me.known[source] = found.max(me.known[source]);
        me.manifest.sealed[source] = found;
        (me.manifest.epoch, me.manifest.file) = (epoch, if is_one { 1 } else { epoch });
        if self.is_broken(Rules::CutTheTail) { Step::CutTail } else { self.after_the_scan() }
    }

    fn cut_tail(&mut self) -> Step {
        let Process { source, manifest, .. } = *self.me();
        let file = &mut self.state.disk.files[source];
        file.written[source] = manifest.sealed[source];
        file.durable[source] = manifest.sealed[source];
        self.after_the_scan()
    }

    /// Database mode: in place where nobody else can still write the database, into a copy otherwise.
    fn choose_database(&mut self, source: usize) -> Step {
        let may_write = self.me().unknown[source..].contains(&true) && !self.is_broken(Rules::AlwaysInPlace);
        let me = self.me();
        me.source = source;
        let file = if may_write { me.epoch } else { source };
        me.manifest = Manifest { epoch: me.epoch, file, ..me.manifest };
        match may_write {
            false => Step::Recover,
            true if self.abandoned().is_empty() => Step::Copy,
            true if self.is_broken(Rules::NoCheckBeforeAbandoned) => Step::RemoveAbandoned,
            true => Step::CheckAbandoned,
        }
    }

    /// The copies that never served, as far as it is known.
    fn abandoned(&mut self) -> Vec<usize> {
        let Process { epoch, source, unknown, .. } = *self.me();
        let disk = &self.state.disk;
        let is_gone = |lower: usize| {
            (!unknown[lower] && disk.block(lower).is_some()) || self.is_broken(Rules::RemoveCopiesOfTheLiving)
        };
        let is_there = |lower: usize| disk.files[lower].presence == Presence::There;
        (1..epoch).filter(|&lower| lower != source && is_gone(lower) && is_there(lower)).collect()
    }

    fn remove_abandoned(&mut self) -> Step {
        for lower in self.abandoned() {
            self.state.disk.files[lower].remove();
        }
        Step::Copy
    }

    fn copy(&mut self) -> Step {
        let Process { source, epoch, .. } = *self.me();
        if self.state.disk.files[source].is_removed() {
            return Step::Refused;
        }
        let found = self.found(source);
        self.me().known = found;
        self.state.disk.files[epoch] = File { written: found, durable: found, presence: Presence::There };
        self.after_the_scan()
    }

    fn recover(&mut self) -> Step {
        let Process { source, epoch, .. } = *self.me();
        if self.state.disk.files[source].is_removed() {
            return Step::Refused;
        }
        let found = self.found(source);
        self.me().known = found;
        self.state.disk.touch(source, epoch);
        let file = &mut self.state.disk.files[source];
        (file.written, file.durable) = (found, found);
        self.after_the_scan()
    }

    /// The records that a file turns out to have.
    fn found(&self, file: usize) -> [u8; EPOCHS_MAX + 1] {
        let file = &self.state.disk.files[file];
        let Sight::Fresh { lost } = self.sight else { return [0; _] };
        std::array::from_fn(|epoch| file.written[epoch].saturating_sub(lost).max(file.durable[epoch]))
    }
}

/// The seal.
impl Turn<'_> {
    fn first_of_the_seal(&self) -> Step {
        match self.setting.mode {
            Mode::Database if !self.is_broken(Rules::NoCheckBeforeManifest) => Step::CheckManifest,
            _ => Step::WriteManifest,
        }
    }

    fn check_manifest(&mut self) -> Step {
        if self.fence_holds() {
            return Step::WriteManifest;
        }
        let Process { epoch, manifest, .. } = *self.me();
        // Its own copy, which no manifest will name.
        if manifest.file == epoch {
            self.state.disk.files[epoch].remove();
        }
        Step::Ended
    }

    fn write_manifest(&mut self) -> Step {
        let manifest = self.me().manifest;
        self.state.disk.write_manifest(manifest, self.setting.rules);
        match self.setting.mode {
            Mode::File if !self.is_broken(Rules::BeginBeforeSegment) => Step::MakeSegment,
            _ => self.after_the_segment(),
        }
    }

    fn make_segment(&mut self) -> Step {
        let Manifest { file, .. } = self.me().manifest;
        self.state.disk.files[file].presence = Presence::There;
        if self.is_broken(Rules::BeginBeforeSegment) {
            self.first_of_the_rounds()
        } else {
            self.after_the_segment()
        }
    }

    fn after_the_segment(&self) -> Step {
        if self.is_broken(Rules::NobodyBegins) { self.first_of_the_rounds() } else { Step::Begin }
    }

    fn begin(&mut self) -> Step {
        self.state.write_block(self.index, Stage::Begun, self.setting.rules);
        match self.setting.mode {
            Mode::File if self.is_broken(Rules::BeginBeforeSegment) => Step::MakeSegment,
            _ => self.first_of_the_rounds(),
        }
    }

    fn first_of_the_rounds(&self) -> Step {
        if self.is_broken(Rules::RecoveredBeforeCheck) { Step::Confirm } else { Step::Check }
    }
}

/// The rounds of the engine.
impl Turn<'_> {
    fn append(&mut self) -> Step {
        let Process { epoch, manifest: Manifest { file, .. }, .. } = *self.me();
        self.state.disk.touch(file, epoch);
        self.state.disk.files[file].written[epoch] += 1;
        if self.is_broken(Rules::CheckBeforeSync) { Step::Check } else { Step::Sync }
    }

    fn sync(&mut self) -> Step {
        let Process { epoch, manifest: Manifest { file, .. }, .. } = *self.me();
        let file = &mut self.state.disk.files[file];
        file.durable[epoch] = file.written[epoch];
        match self.setting.rules {
            Rules::CheckBeforeWrite | Rules::CheckBeforeSync | Rules::CheckOnATimer => Step::Confirm,
            _ => Step::Check,
        }
    }

    fn check(&mut self) -> Step {
        let (written, durable) = self.state.own(&self.state.processes[self.index]);
        match self.setting.rules {
            _ if !self.fence_holds() => Step::Ended,
            Rules::CheckBeforeWrite => Step::Append,
            Rules::CheckBeforeSync if durable < written => Step::Sync,
            _ => Step::Confirm,
        }
    }

    fn confirm(&mut self) -> Step {
        let me = self.state.processes[self.index].clone();
        let (written, _) = self.state.own(&me);
        for (confirmed, known) in self.state.confirmed.iter_mut().zip(me.known) {
            *confirmed = known.max(*confirmed);
        }
        let confirmed = &mut self.state.confirmed[me.epoch];
        *confirmed = written.max(*confirmed);
        Step::Idle
    }
}

/// Upkeep and the end.
impl Turn<'_> {
    fn write_checkpoint(&mut self) -> Step {
        let me = &self.state.processes[self.index];
        let (_, durable) = self.state.own(me);
        self.state.disk.checkpoints[me.epoch] |= 1 << durable;
        if self.is_broken(Rules::RemoveBeforeCheck) { Step::Remove } else { Step::CheckRemoval }
    }

    fn remove(&mut self) -> Step {
        let Process { epoch, manifest, .. } = *self.me();
        let early = self.is_broken(Rules::RemoveBeforeCheckpoint);
        let disk = &mut self.state.disk;
        disk.manifests[1..epoch].fill(None);
        match self.setting.mode {
            Mode::File => {
                let newest = disk.checkpoints[epoch].checked_ilog2();
                for lower in 1..epoch {
                    // Its first record settles all that is older.
                    if newest.is_some() || early || manifest.sealed[lower] == 0 {
                        disk.files[lower].remove();
                    }
                }
                if let Some(newest) = newest {
                    disk.checkpoints[1..epoch].fill(0);
                    disk.checkpoints[epoch] = 1 << newest;
                }
            }
            Mode::Database => {
                disk.touch(manifest.file, epoch);
                for lower in (1..epoch).filter(|&lower| lower != manifest.file) {
                    disk.files[lower].remove();
                }
            }
        }
        Step::Idle
    }

    fn close(&mut self) -> Step {
        let Process { epoch, manifest, .. } = *self.me();
        self.state.disk.touch(manifest.file, epoch);
        Step::CheckRelease
    }

    fn release(&mut self) -> Step {
        self.state.write_block(self.index, Stage::Released, self.setting.rules);
        Step::Ended
    }
}

//! The disk as one host sees it: each operation is a turn, in which something may go wrong, and then happens as one.

use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use batonmq::disk::file::{Attributes, Kind, LockKind, Opening};
use batonmq::disk::mount::{Mount, MountedFile};

use crate::scheduler::{Condition, Held, Simulation, Wait, current, is_quiet};
use crate::server::{Inode, Lock, NameChange};
use crate::setting::{MS, Overwriting};
use crate::world::{Area, Meets, Operation, World};

/// Errors, as the system numbers them.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// One in so many syncs sends its blocks one by one,
const SLOW_SYNC_RATE: u64 = 20;
/// and one in so many of those that say who is master.
const SLOW_CLAIM_RATE: u64 = 2;
/// Blocks that such a sync sends before it sends the rest.
const SLOW_BLOCKS_MAX: u64 = 8;

/// When simulations begin, by the clocks of their hosts.
const START_MS: u64 = 1_700_000_000_000;

/// A mount of the disk on one host.
pub struct SimulatedMount {
    pub simulation: Arc<Simulation>,
    pub host: usize,
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Debug for SimulatedMount {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "mount of host {}", self.host)
    }
}

impl SimulatedMount {
    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.path).expect("the path is below the mount").to_owned()
    }
}

/// One operation: the turn, and what it meets.
fn operate<'a>(
    simulation: &'a Simulation,
    host: usize,
    path: &Path,
    operation: &Operation,
    what: fmt::Arguments<'_>,
) -> io::Result<Held<'a>> {
    let mut world = simulation.lock();
    if is_quiet() {
        return Ok(world);
    }
    if std::thread::panicking() {
        return Err(ErrorKind::Other.into());
    }
    world.tally.operations += 1;
    world.note(what);
    let meets = world.begin(host, Area::of(path), operation);
    let wait = match meets {
        Meets::Death => Simulation::die(world),
        Meets::Wait(time) => Wait::Until(time),
        Meets::Nothing | Meets::Error => Wait::Turn,
    };
    let mut world = simulation.turn(world, wait);
    let clock = world.clock;
    let silent = &mut world.hosts[host].silent_since;
    // The disk hears of it again.
    *silent = None;
    debug_assert!(world.hosts[host].paused_until <= clock);
    world.hosts[host].paused_until = 0;
    if meets == Meets::Error { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(world) }
}

impl Mount for SimulatedMount {
    fn open(&self, path: &Path, opening: Opening) -> io::Result<Box<dyn MountedFile>> {
        let path = self.inside(path);
        let what = format_args!("open {} {opening:?}", path.display());
        let operation = if opening == Opening::New { Operation::Names(None) } else { Operation::Look };
        let mut world = operate(&self.simulation, self.host, &path, &operation, what)?;
        let inode = opened(&mut world, self.host, &path, opening)?;
        let handle = world.new_handle();
        drop(world);
        let simulation = Arc::clone(&self.simulation);
        Ok(Box::new(SimulatedFile { simulation, host: self.host, path, inode, handle }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let folder = self.inside(folder);
        let what = format_args!("list {}", folder.display());
        let mut world = operate(&self.simulation, self.host, &folder, &Operation::Look, what)?;
        let World { hosts, server, clock, .. } = &mut *world;
        if hosts[self.host].find(server, &folder, *clock).is_none() {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(hosts[self.host].list(server, &folder, self.host, *clock))
    }

    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let path = self.inside(path);
        let what = format_args!("look at {}", path.display());
        let mut world = operate(&self.simulation, self.host, &path, &Operation::Look, what)?;
        let World { hosts, server, clock, .. } = &mut *world;
        let inode = hosts[self.host].find(server, &path, *clock).ok_or(ErrorKind::NotFound)?;
        server.seen(&path, self.host);
        let length = hosts[self.host].length(server, inode, *clock);
        Ok(Attributes { length, ..server.attributes(inode) })
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let path = self.inside(path);
        let what = format_args!("make folder {}", path.display());
        let mut world = operate(&self.simulation, self.host, &path, &Operation::Names(None), what)?;
        let World { hosts, server, clock, .. } = &mut *world;
        let made = server.make(&path, Kind::Folder, self.host).map(drop);
        hosts[self.host].changed(server, &path, *clock);
        made
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.inside(from), self.inside(to));
        let change = NameChange::Rename(from.clone(), to.clone());
        let what = format_args!("rename {} to {}", from.display(), to.display());
        let operation = Operation::Names(Some(change.clone()));
        let mut world = operate(&self.simulation, self.host, &from, &operation, what)?;
        let World { hosts, server, clock, tally, .. } = &mut *world;
        let renamed = server.change(&change, self.host);
        hosts[self.host].changed(server, &from, *clock);
        hosts[self.host].changed(server, &to, *clock);
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        tally.checkpoints += u64::from(name.starts_with("checkpoint"));
        tally.packs += u64::from(name.ends_with(".pack"));
        renamed
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = self.inside(path);
        let change = NameChange::Remove(path.clone());
        let what = format_args!("remove {}", path.display());
        let operation = Operation::Names(Some(change.clone()));
        let mut world = operate(&self.simulation, self.host, &path, &operation, what)?;
        let World { hosts, server, clock, tally, .. } = &mut *world;
        let removed = server.change(&change, self.host);
        hosts[self.host].changed(server, &path, *clock);
        tally.removals += u64::from(removed.is_ok());
        removed
    }

    fn free_and_size(&self) -> io::Result<(u64, u64)> {
        let world = operate(
            &self.simulation,
            self.host,
            Path::new(""),
            &Operation::Look,
            format_args!("free space"),
        )?;
        Ok((world.server.free(), crate::world::DISK_BYTES))
    }

    fn now(&self) -> Instant {
        self.simulation.now()
    }

    fn wall(&self) -> SystemTime {
        let world = self.simulation.lock();
        let skew = if self.host == 1 { world.setting.skew_ms } else { 0 };
        SystemTime::UNIX_EPOCH + Duration::from_millis(START_MS + skew) + Duration::from_micros(world.clock)
    }

    fn pause(&self, time: Duration) {
        self.simulation.pause(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    fn chance(&self) -> u64 {
        self.simulation.lock().chance.next()
    }

    fn start(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let process = self.simulation.lock().tasks[current()].process;
        self.simulation.start(process, name, work);
        Ok(())
    }

    fn wait(&self, condition: Condition) {
        self.simulation.wait(condition);
    }
}

/// What is opened.
fn opened(world: &mut World, host: usize, path: &Path, opening: Opening) -> io::Result<Inode> {
    let World { hosts, server, clock, .. } = world;
    let (mine, now) = (&mut hosts[host], *clock);
    let inode = match opening {
        Opening::Read | Opening::ReadDirect | Opening::Write | Opening::ReadWrite => {
            mine.find(server, path, now).ok_or(ErrorKind::NotFound)?
        }
        Opening::New => {
            let made = server.make(path, Kind::File, host);
            mine.changed(server, path, now);
            made?
        }
        Opening::Make | Opening::Replace => match mine.find_afresh(server, path, now) {
            Some(inode) => inode,
            None => {
                let made = server.make(path, Kind::File, host)?;
                mine.changed(server, path, now);
                made
            }
        },
    };
    server.seen(path, host);
    if opening == Opening::Replace {
        server.set_length(inode, 0);
        mine.set_length(inode, 0, now);
    }
    mine.open(inode);
    Ok(inode)
}

/// A file that a host has open.
struct SimulatedFile {
    simulation: Arc<Simulation>,
    host: usize,
    path: PathBuf,
    inode: Inode,
    handle: u64,
}

impl Debug for SimulatedFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path.to_string_lossy())
    }
}

impl SimulatedFile {
    fn operate(&self, operation: &Operation, what: fmt::Arguments<'_>) -> io::Result<Held<'_>> {
        let what = format_args!("{what} {}", self.path.display());
        operate(&self.simulation, self.host, &self.path, operation, what)
    }

    /// Sends blocks one by one before a sync is over, at times, so that others see some of them without the rest.
    fn send_slowly<'a>(&'a self, mut world: Held<'a>) -> Held<'a> {
        let rate = match Area::of(&self.path) {
            Area::Claims => SLOW_CLAIM_RATE,
            Area::Segments | Area::Other => SLOW_SYNC_RATE,
        };
        if is_quiet() || !world.chance.one_in(rate) {
            return world;
        }
        let pace = world.chance.pick(&[1, 5 * MS, 200 * MS]);
        for _ in 0..SLOW_BLOCKS_MAX {
            let World { hosts, server, chance, .. } = &mut *world;
            if !hosts[self.host].send_one_of(server, self.inode, chance) {
                break;
            }
            let until = world.clock + world.chance.below(pace);
            world = self.simulation.turn(world, Wait::Until(until));
        }
        world
    }
}

impl MountedFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.operate(&Operation::Read, format_args!("read {} at {at}", buffer.len()))?;
        let World { hosts, server, clock, .. } = &mut *world;
        let mine = &mut hosts[self.host];
        let length = mine.length(server, self.inode, *clock);
        let count = length.saturating_sub(at).min(buffer.len() as u64) as usize;
        mine.read(server, self.inode, at, &mut buffer[..count]);
        Ok(count)
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let mut world = self.operate(&Operation::Write, format_args!("write {} at {at}", bytes.len()))?;
        if world.chance.one_in(30) && bytes.len() > 1 {
            let some = world.chance.between(1, bytes.len() as u64 - 1);
            bytes.truncate(some as usize);
        }
        let World { hosts, server, clock, chance, setting, tally, .. } = &mut *world;
        let mine = &mut hosts[self.host];
        let (length, end) = (mine.length(server, self.inode, *clock), at + bytes.len() as u64);
        let needed = match setting.overwriting {
            Overwriting::InPlace => end.saturating_sub(length),
            Overwriting::Copies => bytes.len() as u64,
        };
        if needed > server.free() {
            let is_in_blocks = end <= length;
            tally.full_writes += u64::from(is_in_blocks);
            if !is_in_blocks || bytes.len() == 1 || chance.one_in(2) {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
            // There was space for some of it.
            bytes.truncate(chance.between(1, bytes.len() as u64 - 1) as usize);
        }
        mine.write(server, self.inode, at, &bytes, *clock);
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.operate(&Operation::Sync, format_args!("sync"));
        let mut world = match synced {
            Ok(world) => world,
            Err(error) => {
                let mut world = self.simulation.lock();
                let World { hosts, server, chance, .. } = &mut *world;
                if error.raw_os_error() == Some(EIO) {
                    hosts[self.host].fail_to_send(server, self.inode, chance);
                }
                return Err(error);
            }
        };
        if world.server.stored(self.inode).kind == Kind::Folder {
            world.server.sync_folder(self.inode);
            return Ok(());
        }
        let mut world = self.send_slowly(world);
        let World { hosts, server, .. } = &mut *world;
        hosts[self.host].send_all(server, self.inode);
        Ok(())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.operate(&Operation::Write, format_args!("set length {bytes}"))?;
        let World { hosts, server, clock, .. } = &mut *world;
        server.set_length(self.inode, bytes);
        hosts[self.host].set_length(self.inode, bytes, *clock);
        Ok(())
    }

    fn attributes_afresh(&self) -> io::Result<Attributes> {
        let mut world = self.operate(&Operation::Look, format_args!("look at"))?;
        let World { hosts, server, clock, .. } = &mut *world;
        hosts[self.host].forget_listing(&self.path);
        let length = hosts[self.host].length_afresh(server, self.inode, *clock);
        Ok(Attributes { length, ..server.attributes(self.inode) })
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        let mut world = self.operate(&Operation::Lock, format_args!("lock {kind:?}"))?;
        let held = world.server.locks.remove(&self.inode).unwrap_or_default();
        let (gone, mut left): (Vec<Lock>, Vec<Lock>) =
            held.into_iter().partition(|lock| lock.host != self.host && world.has_expired(lock.host));
        let is_free = left.iter().all(|lock| kind == LockKind::Shared && lock.kind == LockKind::Shared);
        if is_free {
            let living = gone.iter().filter(|lock| world.hosts[lock.host].process.is_some());
            world.tally.expired_locks += living.count() as u64;
            left.push(Lock { kind, host: self.host, handle: self.handle });
        }
        world.server.locks.insert(self.inode, left);
        Ok(is_free)
    }

    fn forget_kept(&self, from: u64) -> io::Result<()> {
        let mut world = self.operate(&Operation::Look, format_args!("forget from {from}"))?;
        world.hosts[self.host].forget(self.inode, from);
        Ok(())
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut world = self.simulation.lock();
        if let Some(locks) = world.server.locks.get_mut(&self.inode) {
            locks.retain(|lock| lock.handle != self.handle);
        }
    }
}

//! Publishers and consumers of one window: from its first message until all of them are settled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batonmq::client::Client;
use batonmq::model::settings::{Backoff, GroupSettings, Policy, Retention, TopicSettings};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::consumers::{self, Habit, Seat};
use crate::lanes::{Lane, Lanes, TABLE};
use crate::plan::Random;
use crate::publisher::{Published, Publisher};
use crate::support::blunt::Blunt;
use crate::support::load::options;
use crate::world::{Trouble, World};

/// Publishers with a name, which they have again in each window.
pub const PUBLISHERS: u32 = 3;
/// Number of the publisher without manners of the first window. Each window has another one.
const FIRST_BLUNT: u32 = 1_000;
/// Bytes of its messages.
const BLUNT_BYTES: usize = 100;
/// Its pause between two batches: it is one of four.
const BLUNT_PAUSE: Duration = Duration::from_millis(40);
/// Messages of a window. With that the publishers rest, so that what is remembered of a window is bounded.
const MESSAGES_MAX: u64 = 60_000;
/// How long it may take until everything is settled, once nothing is wrong any more.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at what is left.
const LOOK: Duration = Duration::from_millis(50);

/// What publishers and consumers of a window share.
#[derive(Clone)]
pub struct Common {
    pub lanes: Arc<Lanes>,
    /// Publishers are to end.
    pub stop: Arc<AtomicBool>,
    /// Messages confirmed, over all publishers and windows.
    pub confirmed: Arc<AtomicU64>,
    pub delivered: Arc<AtomicU64>,
    /// By how much store time may be ahead, in milliseconds.
    pub ahead: Arc<AtomicU64>,
    /// What must not be, that a client has met.
    pub troubles: Arc<Mutex<Vec<Trouble>>>,
}

impl Common {
    pub fn report(&self, trouble: Trouble) {
        self.troubles.lock().unwrap().push(trouble);
    }
}

pub struct Workload {
    pub confirmed: Arc<AtomicU64>,
    common: Common,
    admin: Client,
    publishers: Vec<JoinHandle<Result<Published, Trouble>>>,
    blunt: JoinHandle<u64>,
    consumers: Vec<JoinHandle<()>>,
    done: watch::Sender<bool>,
    window: u32,
    started_at: u64,
}

/// What goes on from one window to the next.
#[derive(Default)]
pub struct Memory {
    pub windows: u32,
    pub lanes: Arc<Lanes>,
    pub published: BTreeMap<u32, Published>,
    pub confirmed: Arc<AtomicU64>,
    pub delivered: Arc<AtomicU64>,
    pub ahead: Arc<AtomicU64>,
    /// Messages in each lane.
    pub counts: BTreeMap<Lane, u64>,
}

/// Who consumes in each group, and how.
const SEATS: [Seat; 18] = [
    Seat::new("load", "solo", Policy::RoundRobin, Habit::Steady),
    Seat::new("load", "pull", Policy::RoundRobin, Habit::Pull),
    Seat::new("load", "exclusive", Policy::Exclusive, Habit::Coming),
    Seat::new("load", "exclusive", Policy::Exclusive, Habit::Coming),
    Seat::new("load", "keyed", Policy::Key, Habit::Staying),
    Seat::new("load", "keyed", Policy::Key, Habit::Coming),
    Seat::new("load", "keyed", Policy::Key, Habit::Coming),
    Seat::new("load", "shared", Policy::Fair, Habit::Careless),
    Seat::new("load", "shared", Policy::Fair, Habit::Careless),
    Seat::new("load", "shared", Policy::Fair, Habit::Careless),
    Seat::new("load.dead-letter", "undertaker", Policy::RoundRobin, Habit::Staying),
    Seat::new("urgent", "first", Policy::RoundRobin, Habit::Steady),
    Seat::new("later", "punctual", Policy::RoundRobin, Habit::Staying),
    Seat::new("in", "transformers", Policy::Fair, Habit::Transforming),
    Seat::new("in", "transformers", Policy::Fair, Habit::Transforming),
    Seat::new("out", "reader", Policy::Fair, Habit::Staying),
    Seat::new("out", "reader", Policy::Fair, Habit::Coming),
    Seat::new("audit", "reader", Policy::RoundRobin, Habit::Staying),
];

fn settings(seat: &Seat) -> GroupSettings {
    let backoff = Backoff { initial_ms: 0, multiplier_percent: 100, maximum_ms: 0, jitter_percent: 0 };
    // What a careless consumer forgets is to come again soon.
    let lease_ms = if seat.habit == Habit::Careless { 2_000 } else { 30_000 };
    GroupSettings { policy: seat.policy, max_attempts: 0, lease_ms, backoff, ..GroupSettings::default() }
}

/// Makes the topics and groups, in which later windows go on.
pub async fn furnish() -> Result<(), Trouble> {
    let made = async {
        let admin = Client::connect(options(&World::servers())).await?;
        let retention = Retention { acked: false, ..Retention::default() };
        let table = TopicSettings { retention, last_value: true, ..TopicSettings::default() };
        admin.create_topic(TABLE, table).await?;
        for seat in &SEATS {
            admin.topic(seat.topic).await?;
            admin.create_group(seat.topic, seat.group, settings(seat), Default::default()).await?;
        }
        Ok::<_, batonmq::client::ClientError>(())
    };
    made.await.map_err(|error| format!("topics cannot be made: {error}"))
}

impl Workload {
    /// Starts the publishers and consumers of a window.
    pub async fn start(memory: &mut Memory, seed: u64) -> Result<Self, Trouble> {
        memory.windows += 1;
        let window = memory.windows;
        let common = Common {
            lanes: Arc::clone(&memory.lanes),
            stop: Arc::default(),
            confirmed: Arc::clone(&memory.confirmed),
            delivered: Arc::clone(&memory.delivered),
            ahead: Arc::clone(&memory.ahead),
            troubles: Arc::default(),
        };
        let servers = World::servers();
        let admin =
            Client::connect(options(&servers)).await.map_err(|error| format!("no master: {error}"))?;
        let (done, _) = watch::channel(false);
        let random = |number: usize| Random::new(seed, u64::from(window) << 16 | number as u64);
        let consumers = SEATS.iter().enumerate().map(|(number, seat)| {
            consumers::spawn(*seat, common.clone(), random(100 + number), done.subscribe())
        });
        let consumers = consumers.collect();
        let publishers = (0..PUBLISHERS).map(|number| {
            let before = memory.published.remove(&number).unwrap_or_default();
            let publisher = Publisher::new(number, before, common.clone(), random(number as usize));
            tokio::spawn(publisher.publish())
        });
        let publishers = publishers.collect();
        let mut blunt = Blunt::new(
            FIRST_BLUNT + window,
            BLUNT_BYTES,
            &servers,
            common.lanes.history(Lane::Load).clone(),
            Arc::clone(&common.stop),
            Arc::clone(&common.confirmed),
            Arc::default(),
        );
        blunt.pause = BLUNT_PAUSE;
        let blunt = tokio::spawn(blunt.publish());
        let confirmed = Arc::clone(&memory.confirmed);
        let started_at = confirmed.load(Ordering::Relaxed);
        Ok(Self { confirmed, common, admin, publishers, blunt, consumers, done, window, started_at })
    }

    /// What a client has met that must not be.
    pub fn trouble(&self) -> Result<(), Trouble> {
        self.common.troubles.lock().unwrap().first().cloned().map_or(Ok(()), Err)
    }

    /// Whether the window has as many messages as it may have.
    pub fn is_full(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) - self.started_at >= MESSAGES_MAX
    }

    /// Store time may be ahead by so many seconds from now on.
    pub fn allow_ahead(&self, seconds: i64) {
        self.common.ahead.fetch_max(seconds.unsigned_abs() * 1_000, Ordering::Relaxed);
    }

    pub async fn switchover(&self) -> Result<(), Trouble> {
        let changed = async {
            let ended = self.admin.switchover().await?;
            self.admin.master_after(ended).await
        };
        changed.await.map(drop).map_err(|error| format!("switchover: {error}"))
    }

    /// Lets the publishers stop.
    pub fn stop(&self) {
        self.common.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the window: everything is confirmed, then everything is settled. The pair is well.
    pub async fn finish(self, memory: &mut Memory) -> Result<(), Trouble> {
        self.stop();
        for (number, publisher) in (0..).zip(self.publishers) {
            let ended = timeout(DRAIN_MAX, publisher).await;
            let ended = ended.map_err(|_| "a publisher does not come to its end".to_owned())?;
            memory.published.insert(number, ended.map_err(|error| error.to_string())??);
        }
        let blunt = timeout(DRAIN_MAX, self.blunt).await;
        let blunt = blunt.map_err(|_| "the blunt publisher does not come to its end".to_owned())?;
        let blunt = blunt.map_err(|error| error.to_string())?;
        self.common.lanes.note_done(Lane::Load, FIRST_BLUNT + self.window, blunt);
        let deadline = Instant::now() + DRAIN_MAX;
        while let Some(left) = left(&self.admin).await? {
            if let Some(trouble) = self.common.troubles.lock().unwrap().first() {
                return Err(trouble.clone());
            }
            if Instant::now() >= deadline {
                return Err(format!("not drained within {DRAIN_MAX:?}: {left}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.done.send_replace(true);
        for consumer in self.consumers {
            let ended = timeout(DRAIN_MAX, consumer).await;
            let ended = ended.map_err(|_| "a consumer does not come to its end".to_owned())?;
            ended.map_err(|error| error.to_string())?;
        }
        if let Some(trouble) = self.common.troubles.lock().unwrap().first() {
            return Err(trouble.clone());
        }
        check_counts(&self.admin, memory, blunt).await?;
        check_table(&self.admin, memory).await?;
        self.admin.close().await;
        Ok(())
    }
}

/// What is not settled, in words; `None` where everything is.
async fn left(admin: &Client) -> Result<Option<String>, Trouble> {
    let asked =
        async { Ok::<_, batonmq::client::ClientError>((admin.topics().await?, admin.groups(None).await?)) };
    let (topics, groups) = asked.await.map_err(|error| format!("what is left cannot be asked: {error}"))?;
    let mut left: Vec<String> = Vec::new();
    for topic in topics.iter().filter(|topic| topic.delayed > 0) {
        left.push(format!("{}: {} delayed", topic.name, topic.delayed));
    }
    for group in groups.iter().filter(|group| group.waiting > 0 || group.in_flight > 0) {
        left.push(format!(
            "{}/{}: {} waiting, {} of them in flight, {} to be tried again, {} parked, {} consumers",
            group.topic,
            group.name,
            group.waiting,
            group.in_flight,
            group.retries,
            group.parked,
            group.consumers
        ));
    }
    Ok(if left.is_empty() { None } else { Some(left.join("; ")) })
}

/// As many messages are in each topic as were published to it.
async fn check_counts(admin: &Client, memory: &mut Memory, blunt: u64) -> Result<(), Trouble> {
    for (lane, count) in memory.published.values().flat_map(|published| &published.window) {
        *memory.counts.entry(*lane).or_default() += count;
    }
    *memory.counts.entry(Lane::Load).or_default() += blunt;
    let made = memory.counts.get(&Lane::Input).copied().unwrap_or_default();
    memory.counts.extend([(Lane::Output, made), (Lane::Audit, made)]);
    let topics = admin.topics().await.map_err(|error| error.to_string())?;
    for lane in [Lane::Load, Lane::Later, Lane::Input, Lane::Output, Lane::Audit] {
        let Some(topic) = topics.iter().find(|topic| topic.name == lane.topic()) else { continue };
        let expected = memory.counts.get(&lane).copied().unwrap_or_default();
        if topic.end.0 != expected {
            return Err(format!("{}: {} messages instead of {expected}", topic.name, topic.end));
        }
    }
    Ok(())
}

/// The table has the last value of each key.
async fn check_table(admin: &Client, memory: &Memory) -> Result<(), Trouble> {
    let table = admin.table(TABLE).await.map_err(|error| format!("the table: {error}"))?;
    let found: BTreeMap<String, String> = table
        .iter()
        .map(|(key, value)| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(key), text(&value.message.body))
        })
        .collect();
    let mut expected = BTreeMap::new();
    memory.published.values().for_each(|published| expected.extend(published.table.clone()));
    if found == expected {
        return Ok(());
    }
    let differs = |(key, value): &(&String, &String)| expected.get(*key) != Some(*value);
    let wrong: Vec<_> = found.iter().filter(differs).collect();
    let missing: Vec<_> = expected.keys().filter(|key| !found.contains_key(*key)).collect();
    Err(format!("the table has wrong values {wrong:?}, and misses {missing:?}"))
}

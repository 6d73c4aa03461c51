//! `baton store stats`: what takes the space of a store, and which group holds it back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use batonmq::model::chunk::Chunk;
use batonmq::model::id::{GroupId, Offset, TopicId};
use batonmq::model::snapshot::Snapshot;
use batonmq::model::time::Timestamp;
use batonmq::model::topic_kind::{TopicKind, Waiting};
use batonmq::offline::{self, Origin};
use batonmq::store::Mode;
use batonmq::store::archive::ArchiveError;
use batonmq::store::conversion::{bytes_in, files_of};
use clap::Args;
use serde::Serialize;

use super::backup::Parts;
use crate::cli::client::ClientArgs;
use crate::cli::output::{Output, Progress, Table, bytes_text, counted, grouped, seconds_text};

/// Show what takes the space of a store: its topics, and the group that holds each of them back.
///
/// Messages and bytes are counted by reading all of them, as a backup does; nothing is estimated. With --store the files
/// are listed too: what they have beyond the messages is what is settled and not removed yet, what the mode needs around
/// each message, and room for what comes next.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton store stats
  baton store stats --store /srv/baton
  baton store stats --store /backups/monday")]
pub struct StatsArgs {
    /// The shared directory of a store that no node serves, or a backup, instead of asking the master
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// One JSON object: mode, messages, bytes, file_bytes, files, and topics, each with the group that holds it back
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// The group of a topic with the lowest floor, and what would be free without it: the messages from its floor to that
/// of the next group. What all groups have settled is not held by any. Of a topic with priorities it is the group that
/// holds most of all of them, and the floor that of priority 0.
#[derive(Clone, Debug, Serialize)]
struct Holding {
    #[serde(skip)]
    id: GroupId,
    group: String,
    floor: u64,
    messages: u64,
    bytes: u64,
    #[serde(skip)]
    below: Offset,
}

#[derive(Clone, Debug, Serialize)]
struct TopicStats {
    topic: String,
    messages: u64,
    /// Messages that are to be delivered later.
    delayed: u64,
    /// Of both, and of notes of what will expire.
    bytes: u64,
    oldest_at: Option<String>,
    oldest_age_seconds: Option<u64>,
    held_back_by: Option<Holding>,
}

#[derive(Serialize)]
struct FileStats {
    file: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Stats {
    mode: String,
    messages: u64,
    bytes: u64,
    /// Of a store that is asked through its master, nothing is known of its files.
    file_bytes: Option<u64>,
    files: Vec<FileStats>,
    topics: Vec<TopicStats>,
}

/// Runs it.
pub fn run(args: &StatsArgs) -> anyhow::Result<()> {
    let stats = collect(args)?;
    let mut output = Output::new();
    if args.json {
        output.json(&stats)?;
        return output.flush();
    }
    let files =
        stats.file_bytes.map(|bytes| format!(" in {} of files", bytes_text(bytes))).unwrap_or_default();
    output.line(format_args!(
        "{} mode, {}, {} of messages{files}",
        stats.mode,
        counted(stats.messages, "message"),
        bytes_text(stats.bytes),
    ))?;
    let mut table = Table::new(&[
        "topic",
        "messages",
        "delayed",
        "size",
        "oldest",
        "held back by",
        "floor",
        "holds",
        "size held",
    ]);
    for topic in &stats.topics {
        let oldest = topic.oldest_age_seconds.map_or_else(|| "-".to_owned(), seconds_text);
        let held = match &topic.held_back_by {
            Some(held) => {
                [held.group.clone(), grouped(held.floor), grouped(held.messages), bytes_text(held.bytes)]
            }
            None => ["-"; 4].map(str::to_owned),
        };
        let counts = [grouped(topic.messages), grouped(topic.delayed), bytes_text(topic.bytes)];
        let cells = [topic.topic.clone()].into_iter().chain(counts).chain([oldest]);
        table.row(cells.chain(held));
    }
    table.print(&mut output)?;
    if !stats.files.is_empty() {
        let mut table = Table::new(&["file", "size"]);
        for file in &stats.files {
            table.row([file.file.clone(), bytes_text(file.bytes)]);
        }
        table.print(&mut output)?;
    }
    output.flush()
}

fn collect(args: &StatsArgs) -> anyhow::Result<Stats> {
    match &args.store {
        Some(store) => {
            let origin = Origin::directory(store)?;
            let files = files(store, origin.mode)?;
            let stats = read(origin)?;
            let file_bytes = Some(files.iter().map(|file| file.bytes).sum());
            Ok(Stats { file_bytes, files, ..stats })
        }
        None => {
            let mut parts = Parts::of_master(&args.client)?;
            let stats = Origin::archive(Box::new(parts.take())).map_err(Into::into).and_then(read);
            // What the node says tells more than that the archive was cut off.
            parts.end()?;
            stats
        }
    }
}

/// The files of a store, the largest first.
fn files(store: &Path, mode: Mode) -> anyhow::Result<Vec<FileStats>> {
    let mut files = Vec::new();
    for path in files_of(store, mode)? {
        let inner = if path.is_dir() {
            std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?
        } else {
            vec![path]
        };
        for path in inner {
            let name = path.strip_prefix(store).unwrap_or(&path).display().to_string();
            files.push(FileStats { file: name, bytes: bytes_in(&path)? });
        }
    }
    files.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.file.cmp(&other.file)));
    Ok(files)
}

/// Counts what a store holds.
fn read(origin: Origin) -> anyhow::Result<Stats> {
    let now = offline::wall_clock();
    let mode = origin.mode.to_string();
    let snapshot = origin.source.snapshot().clone();
    let mut parts = parts(&snapshot);
    let progress = Progress::new(None, "messages");
    origin.source.read(|topic, chunk| {
        if let Some(stats) = parts.get_mut(&topic) {
            count(stats, chunk, now);
        }
        progress.add(chunk.block.count() as u64);
        Ok::<_, ArchiveError>(())
    })?;
    let mut topics = whole(&snapshot, parts);
    topics.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.topic.cmp(&other.topic)));
    Ok(Stats {
        mode,
        messages: topics.iter().map(|topic| topic.messages + topic.delayed).sum(),
        bytes: topics.iter().map(|topic| topic.bytes).sum(),
        file_bytes: None,
        files: Vec::new(),
        topics,
    })
}

/// The topics and the parts of them, nothing counted yet.
fn parts(snapshot: &Snapshot) -> BTreeMap<TopicId, TopicStats> {
    let stats = |id: TopicId| {
        let mut groups: Vec<_> = snapshot.groups.iter().filter(|(_, group)| group.topic == id).collect();
        groups.sort_by_key(|(_, group)| group.floor);
        let state = &snapshot.topics[&id];
        let held_back_by = groups.first().map(|(id, first)| Holding {
            id: first.part_of.unwrap_or(**id),
            group: first.name.to_string(),
            floor: first.floor.0,
            messages: 0,
            bytes: 0,
            // Without it, the next one would hold it back.
            below: groups.get(1).map_or(state.end, |(_, second)| second.floor),
        });
        TopicStats {
            topic: state.name.to_string(),
            messages: 0,
            delayed: 0,
            bytes: 0,
            oldest_at: None,
            oldest_age_seconds: None,
            held_back_by,
        }
    };
    snapshot.topics.keys().map(|&id| (id, stats(id))).collect()
}

/// Counts the parts of topics to their topics. A pattern has no messages of its own.
fn whole(snapshot: &Snapshot, mut parts: BTreeMap<TopicId, TopicStats>) -> Vec<TopicStats> {
    let kind = |id: &TopicId| snapshot.topics[id].kind;
    let of_topic = parts.extract_if(.., |id, _| kind(id).part_of().is_some()).collect::<Vec<_>>();
    parts.retain(|id, _| kind(id) == TopicKind::Named);
    let mut holdings: BTreeMap<TopicId, Vec<Holding>> = BTreeMap::new();
    for (id, stats) in of_topic {
        let Some((of, topic)) = kind(&id).part_of().and_then(|of| Some((of, parts.get_mut(&of)?))) else {
            continue;
        };
        topic.bytes += stats.bytes;
        match kind(&id) {
            TopicKind::Slot { waiting: Waiting::Expiring, .. } => {}
            TopicKind::Slot { waiting: Waiting::Delayed, .. } => topic.delayed += stats.messages,
            _ => {
                topic.messages += stats.messages;
                if stats.oldest_age_seconds > topic.oldest_age_seconds {
                    topic.oldest_at = stats.oldest_at;
                    topic.oldest_age_seconds = stats.oldest_age_seconds;
                }
                holdings.entry(of).or_default().extend(stats.held_back_by);
            }
        }
    }
    for (id, of_lanes) in holdings {
        let Some(topic) = parts.get_mut(&id) else { continue };
        let own = topic.held_back_by.take();
        topic.held_back_by = holding_most(snapshot, id, own.into_iter().chain(of_lanes));
    }
    parts.into_values().collect()
}

/// The group that holds most of all priorities of a topic.
fn holding_most(
    snapshot: &Snapshot,
    topic: TopicId,
    holdings: impl Iterator<Item = Holding>,
) -> Option<Holding> {
    let mut groups: BTreeMap<GroupId, Holding> = BTreeMap::new();
    for holding in holdings {
        match groups.get_mut(&holding.id) {
            Some(group) => {
                group.messages += holding.messages;
                group.bytes += holding.bytes;
            }
            None => {
                groups.insert(holding.id, holding);
            }
        }
    }
    let most = groups.into_values().max_by_key(|group| group.messages)?;
    let own = snapshot
        .groups
        .iter()
        .find(|(id, state)| state.topic == topic && state.part_of.unwrap_or(**id) == most.id);
    Some(Holding { floor: own.map_or(0, |(_, state)| state.floor.0), ..most })
}

/// Counts messages of a topic.
fn count(stats: &mut TopicStats, chunk: &Chunk, now: Timestamp) {
    if let (None, Some(first)) = (&stats.oldest_at, chunk.stamps.first()) {
        stats.oldest_at = Some(first.published_at.to_string());
        stats.oldest_age_seconds = Some(now.since(first.published_at).as_secs());
    }
    let (messages, bytes) = (chunk.block.count(), chunk.block.bytes().len() as u64);
    stats.messages += messages as u64;
    stats.bytes += bytes;
    if let Some(held) = &mut stats.held_back_by {
        let index = |offset: u64| {
            let index = offset.saturating_sub(chunk.first.0);
            messages.min(usize::try_from(index).unwrap_or(usize::MAX))
        };
        let (from, to) = (index(held.floor), index(held.below.0));
        held.messages += to.saturating_sub(from) as u64;
        held.bytes += chunk.block.position(to).saturating_sub(chunk.block.position(from)) as u64;
    }
}

#[cfg(test)]
mod tests {
    use batonmq::model::chunk::Stamp;
    use batonmq::model::message::{Message, MessageBlock};
    use batonmq::model::name::Name;
    use batonmq::model::ranges::RangeSet;
    use batonmq::model::settings::{GroupSettings, TopicSettings};
    use batonmq::model::snapshot::{GroupState, TopicState};

    use super::*;

    /// What every group had settled, and was only not removed yet, counted as held by the one that was behind.
    #[test]
    fn a_group_holds_what_is_between_its_floor_and_the_next() {
        let block = MessageBlock::encode(&vec![Message::new("x"); 10]);
        let stamps = vec![Stamp { count: 10, published_at: Timestamp(1), origin: None }];
        let chunk = Chunk { first: Offset(100), block, stamps };
        for (floor, below, messages) in [
            (0, 200, 10),
            (103, 200, 7),
            (103, 105, 2),
            (0, 105, 5),
            (110, 110, 0),
            (120, 130, 0),
            (0, 90, 0),
        ] {
            let (id, below) = (GroupId(0), Offset(below));
            let held = Holding { id, group: "g".into(), floor, messages: 0, bytes: 0, below };
            let mut stats = TopicStats {
                topic: "t".into(),
                messages: 0,
                delayed: 0,
                bytes: 0,
                oldest_at: None,
                oldest_age_seconds: None,
                held_back_by: Some(held),
            };
            count(&mut stats, &chunk, Timestamp(5));
            let held = stats.held_back_by.unwrap();
            assert_eq!((held.messages, held.bytes), (messages, messages * 6), "{floor} {below:?}");
        }
    }

    #[test]
    fn what_parts_hold_counts_to_their_topic() {
        let mut snapshot = Snapshot::default();
        let of = TopicId(0);
        let slot = |waiting| TopicKind::Slot { of, waiting, from: Timestamp(0), until: Timestamp(9) };
        let lane = TopicKind::Lane { of, priority: 9 };
        let name = |text| Name::new(text).unwrap();
        for (id, kind) in (0..).zip([
            TopicKind::Named,
            lane,
            slot(Waiting::Delayed),
            slot(Waiting::Expiring),
            TopicKind::Pattern,
        ]) {
            let state = TopicState::new(name("orders"), kind, TopicSettings::default());
            snapshot.topics.insert(TopicId(id), TopicState { end: Offset(10), ..state });
        }
        // Each is behind the other in one of both.
        for (id, topic, part_of, text, floor) in
            [(0, 0, None, "a", 2), (1, 0, None, "b", 4), (2, 1, Some(0), "a", 8), (3, 1, Some(1), "b", 3)]
        {
            let (settings, none) = (GroupSettings::default(), RangeSet::new());
            let state = GroupState::new(TopicId(topic), name(text), settings, Offset(floor), &none);
            snapshot.groups.insert(GroupId(id), GroupState { part_of: part_of.map(GroupId), ..state });
        }
        let mut stats = parts(&snapshot);
        for (id, part) in &mut stats {
            let block = MessageBlock::encode(&vec![Message::new("x"); 10]);
            let published_at = Timestamp(100 - u64::from(id.0));
            let stamps = vec![Stamp { count: 10, published_at, origin: None }];
            count(part, &Chunk { first: Offset(0), block, stamps }, Timestamp(5_100));
        }
        let topics = whole(&snapshot, stats);
        let [orders] = topics.as_slice() else { panic!("{topics:?}") };
        assert_eq!((orders.messages, orders.delayed, orders.bytes), (20, 10, 4 * 60));
        let held = orders.held_back_by.as_ref().unwrap();
        assert_eq!((held.group.as_str(), held.floor, held.messages, held.bytes), ("b", 4, 5, 30));
    }
}

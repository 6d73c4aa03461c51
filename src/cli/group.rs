//! `baton group`: list, create, delete, change, set back, purge, pause and describe groups.

use std::time::Duration;

use anyhow::Context;
use batonmq::client::Client;
use batonmq::model::filter::Filter;
use batonmq::model::name::Name;
use batonmq::model::settings::{GroupSettings, Lifetime, PRIORITY_SHARE_MIN, Policy, Start};
use batonmq::protocol::response::GroupInfo;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::client::ClientArgs;
use super::exit::End;
use super::output::{Output, Table, counted, grouped, milliseconds_text};
use super::value;

/// List, create, delete, change, set back, purge, pause and describe groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// All groups, or those of one topic: how far they are
    List(ListArgs),
    /// Make a group; no error if it exists with the same settings
    Create(CreateArgs),
    /// Delete a group with its progress, at once and for good
    Delete(OneArgs),
    /// Change settings of a group; the others stay
    Set(SetArgs),
    /// Set a group to another place: what is before it is settled, the rest comes again
    Seek(SeekArgs),
    /// Settle all that a group has not settled, at once and for good
    Purge(OneArgs),
    /// Hand nothing out to it; settling goes on
    Pause(OneArgs),
    /// Hand out again
    Resume(OneArgs),
    /// A group and its settings
    Describe(DescribeArgs),
}

/// For all groups.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only the groups that get the messages of this topic, or those of this pattern
    #[arg(value_parser = value::topic)]
    topic: Option<Name>,
    /// One JSON object a line for each group
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// For one group.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// The topic, or a pattern of topics as in 'orders.*'
    #[arg(value_parser = value::topic)]
    topic: Name,
    /// The group
    #[arg(value_parser = value::name)]
    group: Name,
    #[command(flatten)]
    client: ClientArgs,
}

/// For a new group.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: two attempts a second apart, then the dead letters
  baton group create orders billing --policy fair --max-attempts 2 --backoff-initial 1s
All orders, of topics made later too; the group goes when nobody has consumed for a day
  baton group create 'orders.#' audit --lifetime idle=1d")]
pub struct CreateArgs {
    #[command(flatten)]
    one: OneArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Where it begins: earliest, latest or an offset
    #[arg(long, value_name = "WHERE", value_parser = value::start, default_value = "earliest")]
    from: Start,
}

/// For changes of a group.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  baton group set orders billing --lease 5m
  baton group set orders billing --filter \"region = 'eu'\"

A filter holds for what the group has not settled yet; what is settled stays so.")]
pub struct SetArgs {
    #[command(flatten)]
    one: OneArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// For another place of a group.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: everything that was published since this morning once more
  baton group seek orders billing --to 2026-11-26T06:00:00Z")]
pub struct SeekArgs {
    #[command(flatten)]
    one: OneArgs,
    /// Where it goes on: earliest, latest, an offset, or a time in UTC
    #[arg(long, value_name = "WHERE", value_parser = value::start)]
    to: Start,
}

/// For one group and its settings.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    #[command(flatten)]
    one: OneArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Settings of a group.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// How the group shares its messages among its consumers
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
    /// How long a consumer may hold a message before it goes back
    #[arg(long, value_name = "DURATION", value_parser = value::duration_above_zero)]
    lease: Option<Duration>,
    /// After so many failed attempts a message goes to the dead letters; 0 is never
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Wait after the first failed attempt
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    backoff_initial: Option<Duration>,
    /// Factor from one wait to the next, such as 2.0
    #[arg(long, value_name = "FACTOR", value_parser = value::percent)]
    backoff_multiplier: Option<u32>,
    /// Longest wait between attempts
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    backoff_maximum: Option<Duration>,
    /// Largest change of a wait by chance, as a share of it, such as 0.2
    #[arg(long, value_name = "SHARE", value_parser = value::percent)]
    backoff_jitter: Option<u32>,
    /// Topic for messages that failed for good [default: the topic's name with .dead-letter behind it]
    #[arg(long, value_name = "TOPIC", value_parser = value::name)]
    dead_letter: Option<Name>,
    /// Whether messages that expire go there too, rather than nowhere
    #[arg(long, value_name = "true|false")]
    dead_letter_expired: Option<bool>,
    /// Of so many messages handed out, one is not of the highest priority that waits, if others wait; at least 2
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(PRIORITY_SHARE_MIN)..))]
    priority_share: Option<u32>,
    /// When the group goes by itself: durable (never), ephemeral (with its last consumer) or idle=DURATION (after so
    /// long without a consumer)
    #[arg(long, value_name = "LIFETIME", value_parser = value::lifetime)]
    lifetime: Option<Lifetime>,
    /// Which messages the group gets, such as "region = 'eu' AND price >= 100"; for it the others are settled
    #[arg(long, value_name = "FILTER", value_parser = value::filter)]
    filter: Option<Filter>,
    /// The group gets all messages, from now on
    #[arg(long, conflicts_with = "filter")]
    no_filter: bool,
}

impl SettingsArgs {
    const NONE: Self = Self {
        policy: None,
        lease: None,
        max_attempts: None,
        backoff_initial: None,
        backoff_multiplier: None,
        backoff_maximum: None,
        backoff_jitter: None,
        dead_letter: None,
        dead_letter_expired: None,
        priority_share: None,
        lifetime: None,
        filter: None,
        no_filter: false,
    };

    /// The settings with what the flags change.
    fn apply(&self, mut settings: GroupSettings) -> anyhow::Result<GroupSettings> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let backoff = &mut settings.backoff;
        settings.policy = self.policy.map_or(settings.policy, Policy::from);
        settings.lifetime = self.lifetime.unwrap_or(settings.lifetime);
        settings.lease_ms = self.lease.map_or(settings.lease_ms, ms);
        settings.max_attempts = self.max_attempts.unwrap_or(settings.max_attempts);
        backoff.initial_ms = self.backoff_initial.map_or(backoff.initial_ms, ms);
        backoff.multiplier_percent = self.backoff_multiplier.unwrap_or(backoff.multiplier_percent);
        backoff.maximum_ms = self.backoff_maximum.map_or(backoff.maximum_ms, ms);
        backoff.jitter_percent = self.backoff_jitter.unwrap_or(backoff.jitter_percent);
        if backoff.initial_ms > backoff.maximum_ms {
            let text = "--backoff-initial is longer than --backoff-maximum; raise that or lower it";
            return Err(End::Usage(text.to_owned()).into());
        }
        if backoff.jitter_percent > 100 {
            return Err(End::Usage("--backoff-jitter is a share, from 0 to 1".to_owned()).into());
        }
        if self.dead_letter.is_some() {
            settings.dead_letter.clone_from(&self.dead_letter);
        }
        if self.filter.is_some() || self.no_filter {
            settings.filter = self.filter.as_ref().map(Filter::to_string);
        }
        settings.dead_letter_expired = self.dead_letter_expired.unwrap_or(settings.dead_letter_expired);
        settings.priority_share = self.priority_share.unwrap_or(settings.priority_share);
        Ok(settings)
    }
}

/// How a group shares its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Strict turn among the consumers that have credit
    RoundRobin,
    /// To the consumer with the fewest messages in flight
    Fair,
    /// To one consumer; the others wait to take over from it
    Exclusive,
    /// Messages with the same key to the same consumer, one at a time
    Key,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::RoundRobin => Self::RoundRobin,
            PolicyName::Fair => Self::Fair,
            PolicyName::Exclusive => Self::Exclusive,
            PolicyName::Key => Self::Key,
        }
    }
}

/// A group in JSON.
#[derive(Serialize)]
pub struct GroupView<'a> {
    topic: &'a str,
    group: &'a str,
    floor: u64,
    waiting: u64,
    in_flight: u64,
    retries: u64,
    parked: u64,
    consumers: u32,
    settings: &'a GroupSettings,
}

impl<'a> GroupView<'a> {
    /// The view of `info`.
    pub fn new(info: &'a GroupInfo) -> Self {
        Self {
            topic: &info.topic,
            group: &info.name,
            floor: info.floor.0,
            waiting: info.waiting,
            in_flight: info.in_flight,
            retries: info.retries,
            parked: info.parked,
            consumers: info.consumers,
            settings: &info.settings,
        }
    }
}

/// Groups for people.
pub fn table(groups: &[GroupInfo]) -> Table {
    let mut table = Table::new(&[
        "topic",
        "group",
        "policy",
        "waiting",
        "in flight",
        "retries",
        "parked",
        "consumers",
        "floor",
    ]);
    for info in groups {
        let (waiting, consumers) = (info.waiting, u64::from(info.consumers));
        let numbers = [waiting, info.in_flight, info.retries, info.parked, consumers, info.floor.0];
        let words = [info.topic.clone(), info.name.clone(), policy_text(info.settings.policy).to_owned()];
        table.row(words.into_iter().chain(numbers.map(grouped)));
    }
    table
}

/// Runs it.
pub async fn run(command: GroupCommand) -> anyhow::Result<()> {
    match command {
        GroupCommand::List(args) => list(&args).await,
        GroupCommand::Describe(args) => describe(&args).await,
        GroupCommand::Create(args) => create(&args).await,
        GroupCommand::Set(args) => set(&args).await,
        GroupCommand::Seek(args) => {
            let client = args.one.client.connect().await?;
            client.seek(args.one.topic.as_str(), args.one.group.as_str(), args.to).await?;
            client.close().await;
            Ok(())
        }
        GroupCommand::Purge(args) => {
            let client = args.client.connect().await?;
            let count = client.purge_group(args.topic.as_str(), args.group.as_str()).await?;
            client.close().await;
            let mut output = Output::new();
            output.line(format_args!("{} settled", counted(count, "message")))?;
            output.flush()
        }
        GroupCommand::Pause(args) => {
            change(&args, |settings| GroupSettings { paused: true, ..settings }).await
        }
        GroupCommand::Resume(args) => {
            change(&args, |settings| GroupSettings { paused: false, ..settings }).await
        }
        GroupCommand::Delete(args) => {
            let client = args.client.connect().await?;
            client.delete_group(args.topic.as_str(), args.group.as_str()).await?;
            client.close().await;
            Ok(())
        }
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let mut groups = client.groups(args.topic.as_ref().map(Name::as_str)).await?;
    client.close().await;
    groups.sort_by(|one, other| (&one.topic, &one.name).cmp(&(&other.topic, &other.name)));
    let mut output = Output::new();
    if args.json {
        groups.iter().try_for_each(|group| output.json(&GroupView::new(group)))?;
    } else {
        table(&groups).print(&mut output)?;
    }
    output.flush()
}

async fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let settings = args.settings.apply(GroupSettings::default())?;
    let client = args.one.client.connect().await?;
    client.create_group(args.one.topic.as_str(), args.one.group.as_str(), settings, args.from).await?;
    client.close().await;
    Ok(())
}

async fn set(args: &SetArgs) -> anyhow::Result<()> {
    if args.settings == SettingsArgs::NONE {
        return Err(End::Usage("nothing to change: name at least one setting".to_owned()).into());
    }
    let client = args.one.client.connect().await?;
    let info = find(&client, &args.one).await?;
    let settings = args.settings.apply(info.settings)?;
    client.change_group(args.one.topic.as_str(), args.one.group.as_str(), settings).await?;
    client.close().await;
    Ok(())
}

/// Changes the settings of a group.
async fn change(args: &OneArgs, other: impl Fn(GroupSettings) -> GroupSettings) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let info = find(&client, args).await?;
    client.change_group(args.topic.as_str(), args.group.as_str(), other(info.settings)).await?;
    client.close().await;
    Ok(())
}

async fn describe(args: &DescribeArgs) -> anyhow::Result<()> {
    let client = args.one.client.connect().await?;
    let info = find(&client, &args.one).await?;
    client.close().await;
    let mut output = Output::new();
    if args.json {
        output.json(&GroupView::new(&info))?;
        return output.flush();
    }
    table(std::slice::from_ref(&info)).print(&mut output)?;
    let GroupSettings { lease_ms, max_attempts, backoff, dead_letter, lifetime, .. } = &info.settings;
    let attempts = match max_attempts {
        0 => "without end".to_owned(),
        attempts if args.one.topic.is_pattern() && dead_letter.is_none() => {
            format!("{attempts}, then to the dead letters of the message's own topic")
        }
        attempts => format!("{attempts}, then to {}", dead_letter_topic(&info.topic, dead_letter.as_ref())),
    };
    if info.settings.paused {
        output.line("paused: nothing is handed out to it")?;
    }
    output.line(format_args!("lease: {}", milliseconds_text(*lease_ms)))?;
    output.line(format_args!("attempts: {attempts}"))?;
    output.line(format_args!("filter: {}", info.settings.filter.as_deref().unwrap_or("none")))?;
    output.line(format_args!(
        "wait between attempts: {}, then {} % of the wait before, up to {}, changed by up to {} %",
        milliseconds_text(backoff.initial_ms),
        backoff.multiplier_percent,
        milliseconds_text(backoff.maximum_ms),
        backoff.jitter_percent
    ))?;
    let expired = if info.settings.dead_letter_expired { "go to the dead letters" } else { "go nowhere" };
    output.line(format_args!("messages that expire: {expired}"))?;
    let share = info.settings.priority_share;
    output.line(format_args!("lower priorities: one message in {share}, while higher ones wait"))?;
    output.line(format_args!("lifetime: {}", lifetime_text(*lifetime)))?;
    output.flush()
}

/// Name of the topic where the dead messages of a group go.
pub fn dead_letter_topic(topic: &str, configured: Option<&Name>) -> String {
    configured.map_or_else(|| format!("{topic}.dead-letter"), Name::to_string)
}

async fn find(client: &Client, args: &OneArgs) -> anyhow::Result<GroupInfo> {
    let groups = client.groups(Some(args.topic.as_str())).await?;
    // Among them are those of patterns that stand for the topic.
    let own = |group: &GroupInfo| group.topic == args.topic.as_str() && group.name == args.group.as_str();
    let found = groups.into_iter().find(own);
    found.with_context(|| format!("topic {} has no group {}", args.topic, args.group))
}

fn lifetime_text(lifetime: Lifetime) -> String {
    match lifetime {
        Lifetime::Durable => "durable, it stays until it is deleted".to_owned(),
        Lifetime::Ephemeral => "ephemeral, it goes with its last consumer".to_owned(),
        Lifetime::Idle(ms) => format!("it goes after {} without a consumer", milliseconds_text(ms)),
    }
}

/// The word for a policy.
pub fn policy_text(policy: Policy) -> &'static str {
    match policy {
        Policy::RoundRobin => "round-robin",
        Policy::Fair => "fair",
        Policy::Exclusive => "exclusive",
        Policy::Key => "key",
    }
}

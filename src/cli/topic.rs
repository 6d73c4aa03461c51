//! `baton topic`: list, create, change, purge, pause, delete and describe topics. Reading one as a table is
//! in `topic_table`.

use batonmq::model::name::Name;
use batonmq::model::settings::TopicSettings;
use batonmq::protocol::response::TopicInfo;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::ClientArgs;
use super::exit::End;
use super::output::{Output, Table, counted, grouped};
use super::topic_description::{self, DescribedTopic};
use super::topic_settings::TopicSettingsArgs;
use super::topic_table::{self, TableArgs};
use super::value;

/// List, create, change, purge, pause, delete and describe topics, and read them as tables.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// All topics: how many messages they hold
    List(ListArgs),
    /// Make a topic; no error if it exists with the same settings
    Create(SettingsArgs),
    /// Change settings of a topic; the others stay
    Set(SettingsArgs),
    /// Drop all messages of a topic for all its groups, at once and for good
    Purge(OneArgs),
    /// Hand nothing out, to no group; publishing and settling go on
    Pause(OneArgs),
    /// Hand out again
    Resume(OneArgs),
    /// Delete a topic with its messages and groups, at once and for good
    Delete(OneArgs),
    /// A topic and its groups: how far each is
    Describe(DescribeArgs),
    /// The newest value of each key, by key; keys whose newest message is empty are gone
    ///
    /// The whole topic is read, and the whole table is held in memory.
    Table(TableArgs),
}

/// For all topics.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON object a line for each topic
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// For one topic.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// The topic
    #[arg(value_parser = value::topic)]
    topic: Name,
    #[command(flatten)]
    client: ClientArgs,
}

/// For the settings of a topic.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: a queue of at most a million messages, whose producers wait when it is full
  baton topic create orders --max-messages 1000000
Example: a log of a week or 50 GiB, read by any number of groups
  baton topic create events --retention age=7d,size=50GiB")]
pub struct SettingsArgs {
    #[command(flatten)]
    one: OneArgs,
    #[command(flatten)]
    settings: TopicSettingsArgs,
}

/// For one topic and its groups.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// The topic
    #[arg(value_parser = value::topic)]
    topic: Name,
    /// One JSON object, the groups in a list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct TopicView<'a> {
    topic: &'a str,
    messages: u64,
    delayed: u64,
    start: u64,
    end: u64,
    groups: u32,
    /// Of a pattern, the topics that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    matching: Option<u64>,
    settings: &'a TopicSettings,
}

impl<'a> TopicView<'a> {
    fn new(info: &'a TopicInfo) -> Self {
        Self {
            topic: &info.name,
            messages: info.messages,
            delayed: info.delayed,
            start: info.start.0,
            end: info.end.0,
            groups: info.groups,
            matching: info.matching,
            settings: &info.settings,
        }
    }
}

#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    topic: TopicView<'a>,
    #[serde(flatten)]
    more: DescribedTopic<'a>,
}

/// Runs it.
pub async fn run(command: TopicCommand) -> anyhow::Result<()> {
    match command {
        TopicCommand::List(args) => list(&args).await,
        TopicCommand::Describe(args) => describe(&args).await,
        TopicCommand::Table(args) => topic_table::run(&args).await,
        TopicCommand::Create(args) => {
            let client = args.one.client.connect().await?;
            let settings = args.settings.apply(TopicSettings::default());
            client.create_topic(args.one.topic.as_str(), settings).await?;
            client.close().await;
            Ok(())
        }
        TopicCommand::Set(args) => {
            if args.settings == TopicSettingsArgs::NONE {
                return Err(End::Usage("nothing to change: name at least one setting".to_owned()).into());
            }
            change(&args.one, |settings| args.settings.apply(settings)).await
        }
        TopicCommand::Pause(args) => {
            change(&args, |settings| TopicSettings { paused: true, ..settings }).await
        }
        TopicCommand::Resume(args) => {
            change(&args, |settings| TopicSettings { paused: false, ..settings }).await
        }
        TopicCommand::Purge(args) => {
            let client = args.client.connect().await?;
            let count = client.purge_topic(args.topic.as_str()).await?;
            client.close().await;
            let mut output = Output::new();
            output.line(format_args!("{} dropped", counted(count, "message")))?;
            output.flush()
        }
        TopicCommand::Delete(args) => {
            let client = args.client.connect().await?;
            client.delete_topic(args.topic.as_str()).await?;
            client.close().await;
            Ok(())
        }
    }
}

/// Changes the settings of a topic.
async fn change(args: &OneArgs, other: impl Fn(TopicSettings) -> TopicSettings) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let description = client.describe_topic(args.topic.as_str()).await?;
    client.change_topic(args.topic.as_str(), other(description.topic.settings)).await?;
    client.close().await;
    Ok(())
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let mut topics = client.topics().await?;
    client.close().await;
    topics.sort_by(|one, other| one.name.cmp(&other.name));
    let mut output = Output::new();
    if args.json {
        topics.iter().try_for_each(|topic| output.json(&TopicView::new(topic)))?;
    } else {
        let mut table = Table::new(&["topic", "messages", "delayed", "start", "end", "groups"]);
        topics.iter().map(TopicView::new).for_each(|topic| {
            let numbers = [topic.messages, topic.delayed, topic.start, topic.end, u64::from(topic.groups)];
            table.row([topic.topic.to_owned()].into_iter().chain(numbers.map(grouped)));
        });
        table.print(&mut output)?;
    }
    output.flush()
}

async fn describe(args: &DescribeArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let description = client.describe_topic(args.topic.as_str()).await?;
    client.close().await;
    let mut output = Output::new();
    if args.json {
        let (topic, more) = (TopicView::new(&description.topic), DescribedTopic::new(&description));
        output.json(&Described { topic, more })?;
    } else {
        topic_description::write(&mut output, &description)?;
    }
    output.flush()
}

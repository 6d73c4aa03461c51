//! `baton topic`: list, create, delete and describe topics.

use batonmq::model::name::Name;
use batonmq::model::settings::{Retention, TopicSettings};
use batonmq::protocol::response::TopicInfo;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::ClientArgs;
use super::output::{Output, Table, grouped};
use super::topic_description::{self, DescribedTopic};
use super::value;

/// List, create, delete and describe topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// All topics: how many messages they hold
    List(ListArgs),
    /// Make a topic; no error if it exists
    Create(OneArgs),
    /// Delete a topic with its messages and groups, at once and for good
    Delete(OneArgs),
    /// A topic and its groups: how far each is
    Describe(DescribeArgs),
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
    start: u64,
    end: u64,
    groups: u32,
    /// Of a pattern, the topics that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    matching: Option<u64>,
    retention: Retention,
}

impl<'a> TopicView<'a> {
    fn new(info: &'a TopicInfo) -> Self {
        Self {
            topic: &info.name,
            messages: info.messages,
            start: info.start.0,
            end: info.end.0,
            groups: info.groups,
            matching: info.matching,
            retention: info.settings.retention,
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
        TopicCommand::Create(args) => {
            let client = args.client.connect().await?;
            client.create_topic(args.topic.as_str(), TopicSettings::default()).await?;
            client.close().await;
            Ok(())
        }
        TopicCommand::Delete(args) => {
            let client = args.client.connect().await?;
            client.delete_topic(args.topic.as_str()).await?;
            client.close().await;
            Ok(())
        }
    }
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
        let mut table = Table::new(&["topic", "messages", "start", "end", "groups"]);
        topics.iter().map(TopicView::new).for_each(|topic| {
            let numbers = [topic.messages, topic.start, topic.end, u64::from(topic.groups)];
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

//! What there is to know of a topic, for people and as JSON.

use batonmq::protocol::response::{
    Activity, ConsumerDescription, GroupDescription, GroupInfo, TopicDescription,
};
use serde::Serialize;

use super::group::{GroupView, policy_text};
use super::output::{Output, Table, bytes_text, counted, grouped, milliseconds_text};
use super::topic_settings::{lines, retention_text};

/// A topic in JSON.
#[derive(Serialize)]
pub struct DescribedTopic<'a> {
    bytes: u64,
    lanes: &'a [(u8, u64)],
    oldest_age_ms: Option<u64>,
    published_per_second: f64,
    group_list: Vec<DescribedGroup<'a>>,
}

#[derive(Serialize)]
struct DescribedGroup<'a> {
    #[serde(flatten)]
    group: GroupView<'a>,
    lag_ms: Option<u64>,
    delivered_per_second: f64,
    acked_per_second: f64,
    consumer_list: Vec<DescribedConsumer<'a>>,
}

#[derive(Serialize)]
struct DescribedConsumer<'a> {
    client: &'a str,
    connection: u64,
    consumer: u32,
    priority: u8,
    in_flight: u64,
    window_messages: u32,
    window_bytes: u64,
    pulls: u32,
    last_ack_at: Option<String>,
    active: Option<bool>,
}

impl<'a> DescribedTopic<'a> {
    /// The view of a description, but for what a list of topics has too.
    pub fn new(description: &'a TopicDescription) -> Self {
        Self {
            bytes: description.bytes,
            lanes: &description.lanes,
            oldest_age_ms: description.oldest_age_ms,
            published_per_second: per_second(description.published_per_kilosecond),
            group_list: description.groups.iter().map(DescribedGroup::new).collect(),
        }
    }
}

impl<'a> DescribedGroup<'a> {
    fn new(description: &'a GroupDescription) -> Self {
        Self {
            group: GroupView::new(&description.group),
            lag_ms: description.lag_ms,
            delivered_per_second: per_second(description.delivered_per_kilosecond),
            acked_per_second: per_second(description.acked_per_kilosecond),
            consumer_list: description.consumers.iter().map(DescribedConsumer::new).collect(),
        }
    }
}

impl<'a> DescribedConsumer<'a> {
    fn new(description: &'a ConsumerDescription) -> Self {
        Self {
            client: &description.client,
            connection: description.connection,
            consumer: description.consumer,
            priority: description.priority,
            in_flight: description.in_flight,
            window_messages: description.window.messages,
            window_bytes: description.window.bytes,
            pulls: description.pulls,
            last_ack_at: description.last_ack_at.map(|at| at.to_string()),
            active: description.activity.map(|activity| activity == Activity::Active),
        }
    }
}

/// Writes a description for people.
pub fn write(output: &mut Output, description: &TopicDescription) -> anyhow::Result<()> {
    let TopicDescription { topic, bytes, lanes, oldest_age_ms, .. } = description;
    if let Some(count) = topic.matching {
        let count = counted(count, "topic");
        output
            .line(format_args!("{}: a pattern, stands for {count} and for those made later", topic.name))?;
        return write_groups(output, description);
    }
    let of_lanes: u64 = lanes.iter().map(|(_, messages)| messages).sum();
    output.line(format_args!(
        "{}: {} ({}), offsets {} to {}, {}",
        topic.name,
        counted(topic.messages, "message"),
        bytes_text(*bytes),
        topic.start,
        topic.end,
        retention_text(&topic.settings.retention)
    ))?;
    lines(&topic.settings).into_iter().try_for_each(|line| output.line(line))?;
    if !lanes.is_empty() {
        let lanes: Vec<String> = lanes
            .iter()
            .map(|(priority, messages)| format!("{} of {priority}", grouped(*messages)))
            .collect();
        output.line(format_args!(
            "priorities: {}, {} of 0",
            lanes.join(", "),
            grouped(topic.messages - of_lanes)
        ))?;
    }
    if topic.delayed > 0 {
        output.line(format_args!("{} to be delivered later", counted(topic.delayed, "message")))?;
    }
    if let Some(age) = oldest_age_ms {
        output.line(format_args!("the oldest is {} old", milliseconds_text(*age)))?;
    }
    let published = per_second(description.published_per_kilosecond);
    output.line(format_args!("published: {published:.1} messages/s over the last ten seconds"))?;
    if description.groups.is_empty() {
        let kept =
            if topic.settings.retention.acked { "; messages are kept until one has had them" } else { "" };
        return output.line(format_args!("no group{kept}"));
    }
    write_groups(output, description)
}

fn write_groups(output: &mut Output, description: &TopicDescription) -> anyhow::Result<()> {
    let mut groups = Table::new(&[
        "group",
        "policy",
        "waiting",
        "lag",
        "in flight",
        "retries",
        "delivered/s",
        "acked/s",
        "consumers",
        "floor",
    ]);
    for of_group in &description.groups {
        let group = &of_group.group;
        groups.row([
            name_in(&description.topic.name, group),
            policy_text(group.settings.policy).to_owned(),
            grouped(group.waiting),
            of_group.lag_ms.map_or_else(|| "-".to_owned(), milliseconds_text),
            grouped(group.in_flight),
            grouped(group.retries),
            format!("{:.1}", per_second(of_group.delivered_per_kilosecond)),
            format!("{:.1}", per_second(of_group.acked_per_kilosecond)),
            grouped(u64::from(group.consumers)),
            grouped(group.floor.0),
        ]);
    }
    groups.print(output)?;
    let consumers = description
        .groups
        .iter()
        .flat_map(|group| group.consumers.iter().map(|consumer| (group.group.name.as_str(), consumer)));
    let mut table = Table::new(&["group", "consumer", "in flight", "prefetch", "last ack", "client"]);
    let mut any = false;
    for (group, consumer) in consumers {
        any = true;
        let role = match consumer.activity {
            Some(Activity::Waiting) => " (waiting)",
            Some(Activity::Active) => " (active)",
            None => "",
        };
        table.row([
            group.to_owned(),
            format!("{}/{}{role}", consumer.connection, consumer.consumer),
            grouped(consumer.in_flight),
            grouped(u64::from(consumer.window.messages)),
            consumer.last_ack_at.map_or_else(|| "never".to_owned(), |at| at.to_string()),
            consumer.client.clone(),
        ]);
    }
    if any { table.print(output) } else { Ok(()) }
}

/// The name of a group where a topic is described: that of a pattern says which.
fn name_in(topic: &str, group: &GroupInfo) -> String {
    if group.topic == topic { group.name.clone() } else { format!("{} of {}", group.name, group.topic) }
}

fn per_second(per_kilosecond: u64) -> f64 {
    per_kilosecond as f64 / 1000.0
}

//! `baton topic table`: the newest value of each key of a topic.

use batonmq::client::Browsed;
use batonmq::model::name::Name;
use clap::Args;
use serde::Serialize;

use super::client::ClientArgs;
use super::output::{Output, Table};
use super::received::Content;
use super::schedule::shown_of;
use super::value;

/// What of which topic is shown.
#[derive(Args, Debug)]
pub struct TableArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// Only the value of this key; the memory of one message is enough for that
    #[arg(long)]
    key: Option<String>,
    /// Only the first so many keys, in their order
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// One JSON object a line for each key
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Row<'a> {
    offset: u64,
    published_at: String,
    #[serde(flatten)]
    content: Content<'a>,
}

/// Runs it.
pub async fn run(args: &TableArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let newest: Vec<Browsed> = match &args.key {
        Some(key) => client.table_value(args.topic.as_str(), key.as_bytes()).await?.into_iter().collect(),
        None => client.table(args.topic.as_str()).await?.into_values().collect(),
    };
    client.close().await;
    if let Some(key) = args.key.as_ref().filter(|_| newest.is_empty()) {
        anyhow::bail!("topic {} has no value of the key {key:?}", args.topic);
    }
    let mut output = Output::new();
    let mut table = Table::new(&["key", "offset", "published", "body"]);
    for browsed in newest.iter().take(args.count.unwrap_or(usize::MAX)) {
        let (message, published_at) = (&browsed.message, browsed.published_at.to_string());
        if args.json {
            output.json(&Row { offset: browsed.offset.0, published_at, content: Content::new(message) })?;
        } else {
            let key = message.key.as_ref().map_or_else(String::new, |key| shown_of(key));
            table.row([key, browsed.offset.to_string(), published_at, shown_of(&message.body)]);
        }
    }
    if !args.json {
        table.print(&mut output)?;
    }
    output.flush()
}

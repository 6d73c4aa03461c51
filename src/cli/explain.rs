//! `baton explain`: why a message is, or is not, being delivered.

use batonmq::client::{BrowseOptions, Client};
use batonmq::model::name::Name;
use batonmq::model::position::Position;
use batonmq::protocol::response::{Explanation, MessageState};
use clap::Args;

use super::client::ClientArgs;
use super::dead_letter::Letter;
use super::group::dead_letter_topic;
use super::output::{print_json, print_line};
use super::value;

/// Say why a message is, or is not, being delivered to a group.
#[derive(Args, Debug)]
#[command(after_help = "\
The first word says what the message is to the group: not-published, gone, settled, in-flight, delayed, dying, dead,
expired, filtered, behind-key, paused, no-credit, limited, waiting, ready. Of a message that the group is done with the
dead letters are looked through.

Examples:
  baton explain orders 4711 --group billing
  baton explain orders 9:17 --group billing     the message 17 of priority 9")]
pub struct ExplainArgs {
    /// The topic
    #[arg(value_parser = value::name)]
    topic: Name,
    /// The offset of the message, with its priority and a colon before it unless that is 0
    #[arg(value_name = "OFFSET")]
    position: Position,
    /// The group
    #[arg(long, value_parser = value::name)]
    group: Name,
    /// The answer as JSON: state, text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub async fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let mut explanation = client.explain(args.topic.as_str(), args.position, args.group.as_str()).await?;
    if matches!(explanation.state, MessageState::Settled | MessageState::Gone)
        && let Some(dead) = dead_letter(&client, &args).await?
    {
        explanation = dead;
    }
    client.close().await;
    if args.json {
        return print_json(&explanation);
    }
    print_line(format!("{}: {}", explanation.state.word(), explanation.text))
}

/// What to say of a message whose letter is among the dead letters of the group.
async fn dead_letter(client: &Client, args: &ExplainArgs) -> anyhow::Result<Option<Explanation>> {
    let ExplainArgs { topic, position, group, .. } = args;
    let groups = client.groups(Some(topic.as_str())).await?;
    let Some(info) = groups.iter().find(|info| info.name == group.as_str()) else { return Ok(None) };
    let place = dead_letter_topic(topic.as_str(), info.settings.dead_letter.as_ref());
    if !client.topics().await?.iter().any(|info| info.name == place) {
        return Ok(None);
    }
    let is_its = format!(
        "baton.dead.topic = '{topic}' AND baton.dead.offset = '{position}' AND baton.dead.group = '{group}'"
    );
    let mut letters = client.browser(BrowseOptions { filter: Some(is_its), ..BrowseOptions::new(&place) });
    let found = letters.next_batch(1).await?;
    Ok(found.first().map(|browsed| Explanation {
        state: MessageState::Dead,
        text: Letter::new(&place, browsed).sentence(),
    }))
}

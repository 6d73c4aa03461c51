//! `baton explain`: why a message is, or is not, being delivered.

use batonmq::model::name::Name;
use batonmq::model::position::Position;
use clap::Args;

use super::client::ClientArgs;
use super::output::{print_json, print_line};
use super::value;

/// Say why a message is, or is not, being delivered to a group.
#[derive(Args, Debug)]
#[command(after_help = "\
The first word says what the message is to the group: not-published, gone, settled, in-flight, delayed, dying, expired,
filtered, behind-key, paused, no-credit, limited, waiting, ready.

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
    let explanation = client.explain(args.topic.as_str(), args.position, args.group.as_str()).await?;
    client.close().await;
    if args.json {
        return print_json(&explanation);
    }
    print_line(format!("{}: {}", explanation.state.word(), explanation.text))
}

//! `baton request`: one message that wants a reply, and the reply.

use batonmq::model::message::Message;
use batonmq::model::name::Name;
use bytes::Bytes;
use clap::Args;

use super::client::ClientArgs;
use super::output::Output;
use super::received::{Content, Format};
use super::value;

/// Publish a message, wait for its reply and write it.
///
/// Whoever answers finds in the header `baton.reply-to` where the reply is wanted, and repeats `baton.correlation-id`.
/// `baton reply` does. Ends with 3 where no reply comes within --timeout: the request may still be answered then.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton reply echo --group test &
  baton request echo 'are you there?' --timeout 5s")]
pub struct RequestArgs {
    /// The topic of the requests
    #[arg(value_parser = value::name)]
    topic: Name,
    /// The body
    body: String,
    /// Key of the message
    #[arg(long)]
    key: Option<String>,
    /// Header of the message; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = value::header)]
    headers: Vec<(String, Bytes)>,
    /// What to write of the reply: its body, or key, headers and body as JSON
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub async fn run(args: RequestArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let topic = client.topic(args.topic.as_str()).await?;
    let requester = client.requester().await?;
    let message = Message {
        key: args.key.map(Bytes::from),
        headers: args.headers,
        ..Message::new(Bytes::from(args.body))
    };
    let reply = requester.request(&topic, &message, args.client.timeout).await;
    drop(requester);
    client.close().await;
    let reply = reply?;
    let mut output = Output::new();
    match args.format {
        Format::Raw => {
            output.bytes(&reply.body)?;
            output.bytes(b"\n")?;
        }
        Format::Json => output.json(&Content::new(&reply))?,
    }
    output.flush()
}

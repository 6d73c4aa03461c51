//! `baton reply`: answers the requests of a group.

use batonmq::client::{ClientError, ConsumerOptions, Responder};
use batonmq::model::message::Message;
use batonmq::model::name::Name;
use bytes::Bytes;
use clap::Args;

use super::client::ClientArgs;
use super::output::Output;
use super::received::{self, Format};
use super::signals::Signals;
use super::value;

/// Answer the requests of a group, each with its own body or with always the same one.
///
/// Each request is written to standard output. Its reply is sent and the request settled in one transaction, so it is
/// answered once, over a takeover too.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  baton reply echo --group test
  baton reply health --group test --body ok --count 1")]
pub struct ReplyArgs {
    /// The topic of the requests
    #[arg(value_parser = value::name)]
    topic: Name,
    /// The group; it is made if it does not exist
    #[arg(long, value_parser = value::name)]
    group: Name,
    /// Body of every reply, rather than that of its request
    #[arg(long)]
    body: Option<String>,
    /// End after so many requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What to write of a request
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub async fn run(args: ReplyArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let client = args.client.connect().await?;
    let options = ConsumerOptions::new(args.topic.as_str(), args.group.as_str());
    let mut responder = client.responder(options).await?;
    let answered = tokio::select! {
        answered = answer(&args, &mut responder) => answered,
        end = signals.next() => Err(end.into()),
    };
    let ended = responder.close().await;
    client.close().await;
    answered?;
    Ok(ended?)
}

async fn answer(args: &ReplyArgs, responder: &mut Responder) -> anyhow::Result<()> {
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(request) = responder.next().await? else { anyhow::bail!("the connection was closed") };
        let body =
            args.body.as_ref().map_or_else(|| request.message.body.clone(), |body| Bytes::from(body.clone()));
        match responder.reply(&request, Message::new(body)).await {
            Ok(_) => {}
            // It is delivered again, or is a dead letter.
            Err(ClientError::TransactionAborted(refusal)) => {
                tracing::warn!(%refusal, "a request was not answered");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let mut output = Output::new();
        received::write(&mut output, args.topic.as_str(), &request, args.format)?;
        output.flush()?;
        left -= 1;
    }
    Ok(())
}

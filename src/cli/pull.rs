//! `baton pull`: messages of a group, once, with a wait.

use std::time::Duration;

use batonmq::client::{ClientError, ConsumerOptions};
use batonmq::model::name::Name;
use batonmq::model::settings::Start;
use clap::Args;

use super::client::ClientArgs;
use super::output::Output;
use super::received::{self, Format};
use super::value;

/// Ask for messages of a group once, write them and ack them.
///
/// Ends with 0 whether there were any or not.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: work through what is there, a hundred at a time
  baton pull orders --group billing --max 100 --wait 5s --format json")]
pub struct PullArgs {
    /// The topic, or a pattern as in 'orders.*'
    #[arg(value_parser = value::topic)]
    topic: Name,
    /// The group; it is made if it does not exist
    #[arg(long, value_parser = value::name)]
    group: Name,
    /// At most so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 1)]
    max: u32,
    /// At most so many bytes of messages; one that is larger comes alone
    #[arg(long, value_name = "SIZE", value_parser = value::size, default_value = "64MiB")]
    max_bytes: usize,
    /// How long to wait for a first message
    #[arg(long, value_name = "DURATION", value_parser = value::duration, default_value = "0s")]
    wait: Duration,
    /// What to write of a message
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    /// Where the group begins, if this makes it: earliest, latest or an offset
    #[arg(long, value_name = "WHERE", value_parser = value::start, default_value = "earliest")]
    from: Start,
    #[command(flatten)]
    client: ClientArgs,
}

/// Runs it.
pub async fn run(args: PullArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let options = ConsumerOptions {
        start: args.from,
        ..ConsumerOptions::new(args.topic.as_str(), args.group.as_str())
    };
    let mut consumer = client.pull_consumer(options).await?;
    let batch = consumer.pull(args.max, args.max_bytes as u64, args.wait).await?;
    {
        let mut output = Output::new();
        for delivery in &batch {
            received::write(&mut output, &consumer.topic_of(delivery), delivery, args.format)?;
        }
        output.flush()?;
    }
    batch.iter().for_each(|delivery| consumer.ack(delivery));
    let ended = consumer.close().await;
    client.close().await;
    match ended {
        Err(error @ ClientError::SettlementsLost { .. }) => tracing::warn!("{error}"),
        ended => ended?,
    }
    Ok(())
}

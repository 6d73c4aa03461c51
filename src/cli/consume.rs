//! `baton consume`: the messages of a group, one body a line, and what to do with them.

use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};

use batonmq::client::{Activity, ClientError, Consumer, ConsumerOptions, Delivery, Settler};
use batonmq::model::filter::Filter;
use batonmq::model::name::Name;
use batonmq::model::settings::{GroupSettings, Lifetime, Policy, Start};
use clap::{Args, ValueEnum};
use tokio::time::timeout;

use super::client::ClientArgs;
use super::exit::End;
use super::group::PolicyName;
use super::output::Output;
use super::received::{self, Format};
use super::signals::Signals;
use super::value;

/// Deliveries taken over at a time.
const BATCH_MESSAGES: usize = 1024;

/// Write the messages of a group to standard output.
///
/// Every group of a topic gets every message; consumers of one group share them. A message is settled when it has
/// been written. Without --count and --idle-timeout this goes on until it is stopped.
#[derive(Args, Debug)]
#[command(after_help = "\
Ends with 0 when --count messages have come or none came for --idle-timeout. Time without a master is not idle time: if
that takes longer than --timeout it ends with 3. Messages that were not written are given back, uncounted. At a takeover
a message may come a second time; --format json says so (redelivered). In an exclusive group a line on standard error
says whether this one gets the messages or waits, and when that changes.

Examples:
  baton consume orders --group billing
  baton consume orders --group billing --count 10 --format json | jq .body
  baton consume orders --group slow --policy fair --prefetch 10 --work 100ms
  baton consume orders --group eu --filter \"region = 'eu' AND price >= 100\"
  baton consume orders --group test --count 1 --then nack --reason 'no such customer'
  baton consume orders --group ledger --policy exclusive       (start it twice: one waits for the other)
  baton consume 'orders.#' --group watch --ephemeral --from latest --format json")]
pub struct ConsumeArgs {
    /// The topic, or a pattern: words between dots, * for any one, # for any number of them
    #[arg(value_parser = value::topic)]
    topic: Name,
    /// The group; it is made if it does not exist
    #[arg(long, value_parser = value::name)]
    group: Name,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when no message has come for so long while there was a master
    #[arg(long, value_name = "DURATION", value_parser = value::duration_above_zero)]
    idle_timeout: Option<Duration>,
    /// How the group shares its messages, if this makes it
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
    /// The group goes with its last consumer, if this makes it
    #[arg(long)]
    ephemeral: bool,
    /// Consumers of a higher priority get messages first, while they have credit
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u8,
    /// Which messages the group gets, if this makes it, such as "region = 'eu' AND price >= 100"
    #[arg(long, value_name = "FILTER", value_parser = value::filter)]
    filter: Option<Filter>,
    /// Messages that may be here and not settled
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 1000)]
    prefetch: u32,
    /// Bytes of messages that may be here and not settled; one larger message comes alone
    #[arg(long, value_name = "SIZE", value_parser = value::size, default_value = "8MiB")]
    prefetch_bytes: usize,
    /// What to write of a message
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    /// Where the group begins, if this makes it: earliest, latest or an offset
    #[arg(long, value_name = "WHERE", value_parser = value::start, default_value = "earliest")]
    from: Start,
    /// Pretend to work so long on each message before it is settled
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    work: Option<Duration>,
    /// What to do with a message that has been written
    #[arg(long, value_enum, default_value_t = Then::Ack)]
    then: Then,
    /// What went wrong, told with --then nack and --then reject to whoever gets the message next
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// When a message comes again after --then nack; without it as the back-off of the group says
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    nack_delay: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Then {
    /// Done with it
    Ack,
    /// Failed: again later, counted as an attempt
    Nack,
    /// To the dead letters
    Reject,
    /// Back at once, not counted
    Release,
    /// Keep it; at the end it goes back, not counted
    Nothing,
}

/// Runs it.
pub async fn run(args: ConsumeArgs) -> anyhow::Result<()> {
    if args.reason.is_some() && !matches!(args.then, Then::Nack | Then::Reject) {
        return Err(End::Usage("--reason needs --then nack or --then reject".to_owned()).into());
    }
    if args.nack_delay.is_some() && args.then != Then::Nack {
        return Err(End::Usage("--nack-delay needs --then nack".to_owned()).into());
    }
    let mut signals = Signals::new()?;
    let client = args.client.connect().await?;
    let settings = settings(&args);
    let mut consumer = client
        .consumer(ConsumerOptions {
            start: args.from,
            settings: settings.clone(),
            priority: args.priority,
            prefetch_bytes: args.prefetch_bytes as u64,
            prefetch: args
                .count
                .map_or(args.prefetch, |count| args.prefetch.min(u32::try_from(count).unwrap_or(u32::MAX))),
            ..ConsumerOptions::new(args.topic.as_str(), args.group.as_str())
        })
        .await?;
    let actual = &consumer.subscription().settings;
    let asked_for_another = settings.is_some_and(|asked| {
        (args.policy.is_some() && asked.policy != actual.policy)
            || (args.filter.is_some() && asked.filter != actual.filter)
            || (args.ephemeral && asked.lifetime != actual.lifetime)
    });
    if asked_for_another {
        tracing::warn!(group = %args.group, "the group exists and keeps its settings; see `baton group set`");
    }
    let settler = consumer.settler();
    let taken = tokio::select! {
        taken = take(&args, &mut consumer) => taken,
        end = signals.next() => Err(end.into()),
        never = say_roles(&settler) => match never {},
    };
    let ended = consumer.close().await;
    client.close().await;
    taken?;
    match ended {
        Ok(()) => Ok(()),
        Err(error @ ClientError::SettlementsLost { .. }) => {
            tracing::warn!("{error}");
            Ok(())
        }
        Err(error) => Err(anyhow::Error::new(error).context("what was settled last may come again")),
    }
}

/// The settings that the group is to have, if this makes it.
fn settings(args: &ConsumeArgs) -> Option<GroupSettings> {
    if args.policy.is_none() && args.filter.is_none() && !args.ephemeral {
        return None;
    }
    let mut settings = GroupSettings::default();
    settings.policy = args.policy.map_or(settings.policy, Policy::from);
    settings.filter = args.filter.as_ref().map(Filter::to_string);
    if args.ephemeral {
        settings.lifetime = Lifetime::Ephemeral;
    }
    Some(settings)
}

/// Says on standard error what the node says of the role of the consumer.
async fn say_roles(settler: &Settler) -> Infallible {
    let mut known = None;
    // Where the consumer has ended, whoever waits for messages says why.
    while let Ok(activity) = settler.activity_after(known).await {
        match activity {
            Some(Activity::Active) => eprintln!("active: the messages come here"),
            Some(Activity::Waiting) => eprintln!("waiting: another consumer is active"),
            None => {}
        }
        known = activity;
    }
    std::future::pending().await
}

async fn take(args: &ConsumeArgs, consumer: &mut Consumer) -> anyhow::Result<()> {
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let max = if args.work.is_some() { 1 } else { BATCH_MESSAGES };
        let max = max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let batch = match args.idle_timeout {
            None => consumer.next_batch(max).await?,
            Some(idle) => match within_idle_time(consumer, max, idle).await? {
                Some(batch) => batch,
                None => return Ok(()),
            },
        };
        anyhow::ensure!(!batch.is_empty(), "the connection was closed");
        left -= batch.len() as u64;
        write(args, consumer, &batch)?;
        if let Some(work) = args.work {
            tokio::time::sleep(work).await;
        }
        batch.iter().for_each(|delivery| settle(args, consumer, delivery));
    }
    Ok(())
}

/// The next deliveries; `None` where the consumer was in its group for `idle` and none came. What passes while there is
/// no master does not count: an outage is no empty group.
async fn within_idle_time(
    consumer: &mut Consumer,
    max: usize,
    idle: Duration,
) -> Result<Option<Vec<Delivery>>, ClientError> {
    let begun = Instant::now();
    let settler = consumer.settler();
    // The same wait throughout: a new one would begin to count --timeout anew.
    let mut next = pin!(consumer.next_batch(max));
    let mut left = idle;
    loop {
        if let Ok(batch) = timeout(left, &mut next).await {
            return batch.map(Some);
        }
        let quiet = settler.subscribed_for().map_or(Duration::ZERO, |time| time.min(begun.elapsed()));
        left = idle.saturating_sub(quiet);
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Writes the deliveries. When this returns, whoever reads standard output has them.
fn write(args: &ConsumeArgs, consumer: &Consumer, batch: &[Delivery]) -> anyhow::Result<()> {
    let mut output = Output::new();
    for delivery in batch {
        received::write(&mut output, &consumer.topic_of(delivery), delivery, args.format)?;
    }
    output.flush()
}

fn settle(args: &ConsumeArgs, consumer: &Consumer, delivery: &Delivery) {
    match (args.then, &args.reason) {
        (Then::Ack, _) => consumer.ack(delivery),
        (Then::Nack, None) => consumer.nack(delivery, args.nack_delay),
        (Then::Nack, Some(reason)) => consumer.nack_because(delivery, args.nack_delay, reason),
        (Then::Reject, None) => consumer.reject(delivery),
        (Then::Reject, Some(reason)) => consumer.reject_because(delivery, reason),
        (Then::Release, _) => consumer.release(delivery),
        (Then::Nothing, _) => {}
    }
}

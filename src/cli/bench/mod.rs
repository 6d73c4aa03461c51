//! `baton bench`: what the pair reaches, and what the disk would allow.
//!
//! Every benchmark is bounded, reports the same keys, and tells the processor time of client and broker apart.

mod consume;
mod disk;
mod fanout;
mod latency;
mod load;
mod measure;
mod publish;

use clap::Subcommand;

use super::client;

/// Measure what the broker reaches, and what the disk would allow.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
With --json each prints one object with at least messages, seconds, messages_per_second, megabytes_per_second,
latency_us {p50, p99, p999, max} and cpu_us_per_message {client, broker}. The broker's processor time is known only
with --server-pid, on the same host.

Example: how near the broker comes to the disk
  baton bench disk --dir ./baton-data --batch 500
  baton bench publish --size 128 --in-flight 1000 --messages 1000000")]
pub enum BenchCommand {
    Publish(publish::PublishArgs),
    Consume(consume::ConsumeArgs),
    Latency(latency::LatencyArgs),
    Fanout(fanout::FanoutArgs),
    Disk(disk::DiskArgs),
}

/// Runs it.
pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        // Where one thing happens after the other, a second thread only adds hops; else it lets them overlap.
        BenchCommand::Publish(args) if args.one_at_a_time() => {
            client::block_on_one_thread(publish::run(args))
        }
        BenchCommand::Latency(args) if args.one_at_a_time() => {
            client::block_on_one_thread(latency::run(args))
        }
        BenchCommand::Publish(args) => client::block_on(publish::run(args)),
        BenchCommand::Consume(args) => client::block_on(consume::run(args)),
        BenchCommand::Latency(args) => client::block_on(latency::run(args)),
        BenchCommand::Fanout(args) => client::block_on(fanout::run(args)),
        BenchCommand::Disk(args) => disk::run(&args),
    }
}

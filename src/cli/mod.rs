//! The command line: one file for each subcommand, and what they share.
//!
//! Nothing here decides anything about messages, stores or mastership: `serve` runs a node, `address` clears up behind one, `store` works on stores
//! that no node serves, `bench disk` measures the disk, and everything else is a client like any other, through the
//! client library.

mod address;
mod bench;
mod browse;
mod client;
mod consume;
mod dead_letter;
mod demo;
pub mod exit;
mod explain;
mod filter;
mod group;
mod install;
mod log;
mod output;
mod peek;
mod publish;
mod pull;
mod received;
mod reply;
mod request;
mod route;
mod schedule;
mod selection;
mod serve;
mod signals;
mod status;
mod store;
mod switchover;
mod topic;
mod topic_description;
mod topic_settings;
mod topic_table;
mod value;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

/// A message broker for two hosts and one shared disk.
///
/// What it confirmed is on disk, survives any single failure, and is delivered at least once. `baton demo` shows it.
#[derive(Debug, Parser)]
#[command(name = "baton", version, after_help = exit::HELP, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: log::LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Serve(serve::ServeArgs),
    Publish(publish::PublishArgs),
    Consume(consume::ConsumeArgs),
    Pull(pull::PullArgs),
    Request(request::RequestArgs),
    Reply(reply::ReplyArgs),
    Browse(browse::BrowseArgs),
    Peek(peek::PeekArgs),
    Status(status::StatusArgs),
    Switchover(switchover::SwitchoverArgs),
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    #[command(subcommand)]
    Group(group::GroupCommand),
    #[command(subcommand)]
    Route(route::RouteCommand),
    #[command(subcommand)]
    DeadLetter(dead_letter::DeadLetterCommand),
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    Explain(explain::ExplainArgs),
    #[command(subcommand)]
    Address(address::AddressCommand),
    #[command(subcommand)]
    Store(store::StoreCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    Completions(install::CompletionsArgs),
    #[command(hide = true)]
    Man(install::ManArgs),
}

/// Characters of a wrong value that are repeated in what is said about it.
const REPEATED_CHARS_MAX: usize = 80;

impl Cli {
    /// Reads the command line. Ends the process where it is wrong or asks for help.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| shortened(error).exit())
    }

    /// Does what was asked for.
    pub fn run(self) -> anyhow::Result<()> {
        if let Command::Serve(args) = self.command {
            return serve::run(args, &self.log);
        }
        log::init_client(&self.log)?;
        match self.command {
            Command::Serve(_) => Ok(()),
            Command::Demo(args) => client::block_on(demo::run(args)),
            Command::Publish(args) => client::block_on(publish::run(args)),
            Command::Consume(args) => client::block_on(consume::run(args)),
            Command::Pull(args) => client::block_on(pull::run(args)),
            Command::Request(args) => client::block_on(request::run(args)),
            Command::Reply(args) => client::block_on(reply::run(args)),
            Command::Browse(args) => client::block_on(browse::run(args)),
            Command::Peek(args) => client::block_on(peek::run(args)),
            Command::Status(args) => client::block_on(status::run(args)),
            Command::Switchover(args) => client::block_on(switchover::run(args)),
            Command::Topic(command) => client::block_on(topic::run(command)),
            Command::Group(command) => client::block_on(group::run(command)),
            Command::Route(command) => client::block_on(route::run(command)),
            Command::DeadLetter(command) => client::block_on(dead_letter::run(command)),
            Command::Schedule(command) => client::block_on(schedule::run(command)),
            Command::Explain(args) => client::block_on(explain::run(args)),
            Command::Address(command) => address::run(command),
            Command::Store(command) => store::run(command),
            Command::Bench(command) => bench::run(command),
            Command::Completions(args) => install::completions(&args),
            Command::Man(args) => install::man(&args),
        }
    }
}

/// The error without most of a value that is long.
fn shortened(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((end, _)) = value.char_indices().nth(REPEATED_CHARS_MAX)
    {
        let short = format!("{}...", &value[..end]);
        error.insert(ContextKind::InvalidValue, ContextValue::String(short));
    }
    error
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_value_of_ten_kilobytes_is_not_repeated() {
        let error = Cli::try_parse_from(["baton", "publish", &"x".repeat(10_000), "body"]).unwrap_err();
        let text = shortened(error).to_string();
        assert!(text.contains("has at most 255 bytes") && text.len() < 500, "{text}");
    }
}

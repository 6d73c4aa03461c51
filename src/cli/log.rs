//! Where the log goes: standard error, one event a line.

use std::io::{self, IsTerminal};

use batonmq::config::{LogFormat, LogSettings};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::exit::End;

/// Flags for the log of any command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log (to standard error)")]
pub struct LogArgs {
    /// Level (error, warn, info, debug, trace) or directives such as `info,batonmq::client=debug` [env: BATON_LOG] [default: info for serve, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Form of the log [env: BATON_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<Form>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Begins logging for a command that is no node: warnings, where nothing else is asked for.
pub fn init_client(args: &LogArgs) -> anyhow::Result<()> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let filter = args.log.clone().or_else(|| variable("BATON_LOG")).unwrap_or_else(|| "warn".to_owned());
    let format = match (args.log_format, variable("BATON_LOG_FORMAT").as_deref()) {
        (Some(Form::Json), _) | (None, Some("json")) => LogFormat::Json,
        (Some(Form::Text), _) | (None, Some("text") | None) => LogFormat::Text,
        (None, Some(other)) => {
            let text = format!("BATON_LOG_FORMAT: {other:?} is not one of text, json");
            return Err(End::Usage(text).into());
        }
    };
    init(&LogSettings { filter, format })
}

/// Begins logging.
pub fn init(settings: &LogSettings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.filter).map_err(|error| {
        End::Usage(format!("log: {:?} is not a level and no list of directives: {error}", settings.filter))
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let begun = match settings.format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    begun.map_err(|error| anyhow::anyhow!("cannot begin the log: {error}"))
}

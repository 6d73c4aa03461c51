//! Where the log goes: standard error, one event a line.
//!
//! Where standard error is the journal of the service manager, a line begins with the priority of its event and has no
//! time, which the journal has itself (sd-daemon(3), "native" prefixes): `journalctl -p warning` then works.

use std::fmt::Result as Written;
use std::io::{self, IsTerminal};

use batonmq::config::{LogFormat, LogSettings};
use clap::{Args, ValueEnum};
use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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
        LogFormat::Text if stderr_is_journal() => subscriber.event_format(JournalLine).try_init(),
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    begun.map_err(|error| anyhow::anyhow!("cannot begin the log: {error}"))
}

/// Whether the service manager says that standard error goes to its journal: `JOURNAL_STREAM` is device and inode of
/// what it gave the process (systemd.exec(5)). One that was given to a parent says nothing of this process.
fn stderr_is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| journal == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// An event as a line of the journal.
struct JournalLine;

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> Written {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        Format::default().without_time().with_level(false).format_event(context, writer, event)
    }
}

/// Priority of an event in syslog's numbers.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

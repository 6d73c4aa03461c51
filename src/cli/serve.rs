//! `baton serve`: runs a node until a signal, a switchover or a failure ends it.

use std::path::PathBuf;

use anyhow::Context;
use batonmq::config::key::{Key, VARIABLE_PREFIX};
use batonmq::config::load::{Loaded, Sources, load};
use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::log::{self, Form, LogArgs};

/// Run a node.
///
/// The first of a pair to start becomes master and serves; the other waits and takes over. Without a configuration
/// file the store is ./baton-data in database mode, made if it is missing, and clients are served on 127.0.0.1:7470.
#[derive(Args, Debug)]
#[command(after_help = "\
Every setting of the file can be overridden by a variable, BATON_ and its name in capitals (BATON_POLL_INTERVAL,
BATON_LIMITS_TOPICS_MAX), and those by the flags above. systemd/baton.toml has every setting with its meaning.

Ends with 0 after SIGTERM, SIGINT or a switchover, when what was in flight is settled or drain_timeout has passed and the
other node may take over; with 2 where the configuration is wrong; with 3 at once where the mastership or the
store was lost under it, or the storage does not let a drain come to its end; with 4 where the store that it was to take
over is damaged; with 1 where it cannot start.

Examples:
  baton serve
  baton serve --node a --store /srv/baton --listen 127.0.0.1:7470
  baton serve --node b --store /srv/baton --listen 127.0.0.1:7480
  baton serve --config /etc/baton/baton.toml")]
pub struct ServeArgs {
    /// Configuration file [env: BATON_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node; the nodes of a pair have different ones [env: BATON_NODE] [default: name of the host]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The shared directory [env: BATON_STORE] [default: ./baton-data]
    #[arg(long, value_name = "DIR")]
    store: Option<String>,
    /// What the store is; one that is something else is converted if the last master has ended cleanly [env: BATON_MODE] [default: what it is; for a new one: database]
    #[arg(long)]
    mode: Option<StoreMode>,
    /// Address to serve clients on; may be repeated [env: BATON_LISTEN] [default: 127.0.0.1:7470]
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    listen: Vec<String>,
    /// Address to tell health on, over HTTP [env: BATON_ADMIN] [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
}

/// What a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoreMode {
    /// A SQL database, made to be read by people.
    Database,
    /// A journal, faster.
    File,
}

/// Runs it.
pub fn run(args: ServeArgs, log_args: &LogArgs) -> anyhow::Result<()> {
    let Loaded { config, log, lowered, misspelt } = load(&sources(args, log_args))?;
    log::init(&log)?;
    if let Some(lowered) = lowered {
        tracing::warn!("{lowered}");
    }
    for misspelt in misspelt {
        tracing::warn!("{misspelt}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
                _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
            }
            stop.cancel();
        });
        batonmq::node::run(config, shutdown).await.map_err(anyhow::Error::new)
    });
    // A thread that waits for storage which does not answer ends with the process.
    runtime.shutdown_background();
    ended
}

/// What file and environment say of a node.
pub(super) fn sources_of(config: Option<PathBuf>) -> Sources {
    let environment: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, value)| name.starts_with(VARIABLE_PREFIX) && !value.is_empty())
        .collect();
    let file_named = environment.iter().find(|(name, _)| name == "BATON_CONFIG").map(|(_, file)| file.into());
    Sources {
        file: config.or(file_named),
        environment,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        ..Sources::default()
    }
}

fn sources(args: ServeArgs, log_args: &LogArgs) -> Sources {
    let word = |mode| match mode {
        StoreMode::Database => "database",
        StoreMode::File => "file",
    };
    let form = |form| match form {
        Form::Text => "text",
        Form::Json => "json",
    };
    let one = |value: Option<String>| value.map(|value| vec![value]);
    let flags = [
        ("--node", "node", one(args.node)),
        ("--store", "store", one(args.store)),
        ("--mode", "mode", one(args.mode.map(|mode| word(mode).to_owned()))),
        ("--listen", "listen", (!args.listen.is_empty()).then_some(args.listen)),
        ("--admin", "admin", one(args.admin)),
        ("--log", "log", one(log_args.log.clone())),
        ("--log-format", "log_format", one(log_args.log_format.map(|value| form(value).to_owned()))),
    ];
    let flags =
        flags.into_iter().filter_map(|(flag, key, values)| Some((flag, Key::find("", key)?, values?)));
    Sources { flags: flags.collect(), open_files_max: raise_open_files(), ..sources_of(args.config) }
}

/// Allows the process as many open files as it may allow itself, and answers how many; `None` for any number. The
/// customary limit of 1024 is for programs that cannot take more.
fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // It stays as it was, and the connections are counted against that.
        Err(_) => limit.current,
    }
}

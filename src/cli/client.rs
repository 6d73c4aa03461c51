//! How a command reaches the pair.

use std::time::Duration;

use anyhow::Context;
use batonmq::client::{Client, ClientOptions};
use clap::Args;
use tokio::runtime::Builder;

use super::value;

/// Flags of every command that talks to a node.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub struct ClientArgs {
    /// The nodes of the pair, separated by commas; whichever is master is used
    #[arg(
        long,
        env = "BATON_SERVER",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        value_parser = value::server,
        default_value = "127.0.0.1:7470"
    )]
    pub server: Vec<String>,
    /// How long to keep trying without any progress
    #[arg(long, value_name = "DURATION", value_parser = value::duration_above_zero, default_value = "30s")]
    pub timeout: Duration,
}

impl ClientArgs {
    /// Connects to the master.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.options()).await?)
    }

    /// The options of the client library for these flags.
    pub fn options(&self) -> ClientOptions {
        ClientOptions {
            servers: self.server.clone(),
            name: concat!("baton/", env!("CARGO_PKG_VERSION")).to_owned(),
            timeout: self.timeout,
            ..ClientOptions::default()
        }
    }
}

/// Runs a command. It may block its own thread, on a slow pipe for example: the connection has another one, so that
/// heartbeats go on.
pub fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}

/// Runs a command that never blocks, on one thread, without the hops between two.
pub fn block_on_one_thread(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(command)
}

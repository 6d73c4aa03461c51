//! `baton switchover`: the master drains, the other node takes over.

use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::client::ClientArgs;
use super::output::{print_json, print_line};

/// Let the other node take over, without losing or refusing anything.
///
/// The master settles what is in flight, releases its mastership and ends; its service manager starts it again as
/// standby. Name both nodes in --server. Ends with 0 when the other node serves. Without a standby nothing happens.
#[derive(Args, Debug)]
pub struct SwitchoverArgs {
    /// The result as JSON: from, to, epoch, seconds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Switched {
    from: String,
    to: String,
    epoch: u64,
    seconds: f64,
}

/// Runs it.
pub async fn run(args: SwitchoverArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let from = client.master().map(|master| master.welcome.node.clone()).unwrap_or_default();
    let begun = Instant::now();
    let epoch = client.switchover().await?;
    let master = client.master_after(epoch).await.with_context(|| {
        format!("{from} was told to let the other node take over, but no other master was found; does --server name both nodes?")
    })?;
    let switched = Switched {
        from,
        to: master.welcome.node.clone(),
        epoch: master.welcome.epoch.0,
        seconds: begun.elapsed().as_secs_f64(),
    };
    client.close().await;
    if args.json {
        return print_json(&switched);
    }
    let Switched { from, to, epoch, seconds } = switched;
    print_line(format!("{to} has taken over from {from} in {:.0} ms, epoch {epoch}", seconds * 1000.0))
}

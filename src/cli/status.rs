//! `baton status`: what the nodes are, the standby included.

use std::time::Duration;

use batonmq::client::status_of;
use batonmq::protocol::response::{FloatingStatus, NodeStatus, Role};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::ClientArgs;
use super::exit::End;
use super::output::{Output, Table, grouped, seconds_text};

/// Longest wait for the answer of one node.
const WITHIN_MAX: Duration = Duration::from_secs(5);

/// Show what each node is: master, standby or recovering.
///
/// Asks every node of --server once. Ends with 0 when at least one has answered, and with 3 when none has.
#[derive(Args, Debug)]
#[command(after_help = "\
With --json one object a line, a line for each node: server, node, role, epoch, mode, store_id, master, version,
role_seconds, connections, topics, groups, messages, delayed, addresses (each with address and here); or server and
error where it does not answer. A floating address in parentheses is one that the node would have as master.

Example:
  baton status --server broker-a:7470,broker-b:7470")]
pub struct StatusArgs {
    /// One JSON object a line for each node
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Serialize)]
struct Answer {
    server: String,
    #[serde(flatten)]
    status: Option<NodeStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs it.
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let within = args.client.timeout.min(WITHIN_MAX);
    let mut asking = JoinSet::new();
    for (index, server) in args.client.server.into_iter().enumerate() {
        asking.spawn(async move {
            let (status, error) = match status_of(&server, within).await {
                Ok(status) => (Some(status), None),
                Err(error) => (None, Some(error.to_string())),
            };
            (index, Answer { server, status, error })
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    let answers: Vec<Answer> = answers.into_iter().map(|(_, answer)| answer).collect();
    let mut output = Output::new();
    if args.json {
        answers.iter().try_for_each(|answer| output.json(answer))?;
    } else {
        table(&answers).print(&mut output)?;
    }
    output.flush()?;
    if answers.iter().any(|answer| answer.status.is_some()) {
        return Ok(());
    }
    let errors: Vec<String> = answers.into_iter().filter_map(|answer| answer.error).collect();
    Err(End::TimedOut(format!("no node has answered: {}", errors.join("; "))).into())
}

/// The floating addresses: each that the node has, and each that it would have as master in parentheses.
fn addresses(addresses: &[FloatingStatus]) -> String {
    if addresses.is_empty() {
        return "-".to_owned();
    }
    let shown = addresses.iter().map(
        |FloatingStatus { address, here }| {
            if *here { address.clone() } else { format!("({address})") }
        },
    );
    shown.collect::<Vec<_>>().join(" ")
}

fn table(answers: &[Answer]) -> Table {
    let head = [
        "server", "node", "role", "for", "epoch", "mode", "clients", "topics", "groups", "messages",
        "delayed", "address", "store",
    ];
    let mut table = Table::new(&head);
    for Answer { server, status, .. } in answers {
        let nothing = || vec!["-".to_owned(); head.len() - 2];
        let cells = match status {
            None => [vec!["unreachable".to_owned()], nothing()].concat(),
            Some(status) => {
                let count = |count| if status.role == Role::Master { grouped(count) } else { "-".to_owned() };
                vec![
                    status.node.clone(),
                    status.role.to_string(),
                    seconds_text(status.role_seconds),
                    status.epoch.to_string(),
                    status.mode.clone(),
                    count(status.connections),
                    count(status.topics),
                    count(status.groups),
                    count(status.messages),
                    count(status.delayed),
                    addresses(&status.addresses),
                    status.store_id.clone(),
                ]
            }
        };
        table.row([vec![server.clone()], cells].concat());
    }
    table
}

//! `baton status`: what the nodes are, the standby included.

use std::time::Duration;

use batonmq::client::status_of;
use batonmq::protocol::response::{FloatingStatus, NodeStatus, Role};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::ClientArgs;
use super::exit::End;
use super::output::{Output, Table, counted, grouped, seconds_text};

/// Longest wait for the answer of one node.
const WITHIN_MAX: Duration = Duration::from_secs(5);

/// Show what each node is: master, standby or recovering.
///
/// Asks every node of --server once. Ends with 0 when at least one has answered, and with 3 when none has.
#[derive(Args, Debug)]
#[command(after_help = "\
With --json one object a line, a line for each node: server, node, role, epoch, mode, store_id, master, version,
role_seconds, connections, topics, groups, messages, delayed, addresses (each with address and here), protocol and
store_formats (each with min and max: the versions that it speaks and reads), store_format (the one that it writes),
unreadable (messages that it could not read when they were last asked for), and
agrees, where several nodes answer: whether it can take over from each of them, and each of them from it; or server and
error where it does not answer. A floating address in parentheses is one that the node would have as master. FORMAT is the
format in which a node writes the store, with those that it reads in parentheses where they are others too.

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
    agrees: Option<bool>,
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
            (index, Answer { server, status, agrees: None, error })
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    let mut answers: Vec<Answer> = answers.into_iter().map(|(_, answer)| answer).collect();
    let differences = note_differences(&mut answers);
    let mut output = Output::new();
    if args.json {
        answers.iter().try_for_each(|answer| output.json(answer))?;
    } else {
        table(&answers).print(&mut output)?;
        unreadable(&answers).try_for_each(|said| output.line(said))?;
        differences.iter().try_for_each(|difference| output.line(difference))?;
        if differences.is_empty() && answers.iter().any(|answer| answer.agrees.is_some()) {
            output.line("the nodes speak a common protocol, and each reads what the others write")?;
        }
    }
    output.flush()?;
    if answers.iter().any(|answer| answer.status.is_some()) {
        return Ok(());
    }
    let errors: Vec<String> = answers.into_iter().filter_map(|answer| answer.error).collect();
    Err(End::TimedOut(format!("no node has answered: {}", errors.join("; "))).into())
}

/// Which nodes could not read messages, and how to know more.
fn unreadable(answers: &[Answer]) -> impl Iterator<Item = String> {
    let found = answers.iter().filter_map(|answer| answer.status.as_ref());
    found.filter(|status| status.unreadable > 0).map(|status| {
        let messages = counted(status.unreadable, "message");
        format!("{}: {messages} cannot be read; its log names them, and what they wait for", status.node)
    })
}

/// Notes which nodes agree with all others. Answers what keeps one from taking over from another.
fn note_differences(answers: &mut [Answer]) -> Vec<String> {
    let mut differences = Vec::new();
    let found: Vec<Option<bool>> = answers
        .iter()
        .enumerate()
        .map(|(at, answer)| {
            let status = answer.status.as_ref()?;
            let others = answers.iter().enumerate().filter(|(other, _)| *other != at);
            let others: Vec<&NodeStatus> = others.filter_map(|(_, other)| other.status.as_ref()).collect();
            let mut agrees = true;
            for other in &others {
                let difference = difference(status, other);
                agrees &= difference.is_none() && self::difference(other, status).is_none();
                differences.extend(difference);
            }
            (!others.is_empty()).then_some(agrees)
        })
        .collect();
    for (answer, agrees) in answers.iter_mut().zip(found) {
        answer.agrees = agrees;
    }
    differences
}

/// What keeps a node from taking over from another one.
fn difference(node: &NodeStatus, from: &NodeStatus) -> Option<String> {
    let NodeStatus { store_formats: reads, protocol: speaks, .. } = node;
    if !reads.contains(from.store_format) {
        return Some(format!(
            "{} cannot take over from {}, which writes store format {}: it reads {reads}; run the newer baton on both",
            node.node, from.node, from.store_format
        ));
    }
    speaks.highest_in_common(from.protocol).is_none().then(|| {
        format!(
            "{} speaks protocol {speaks} and {} {}: clients of the one cannot follow to the other",
            node.node, from.node, from.protocol
        )
    })
}

/// The format in which a node writes the store, and those that it reads where they are others too.
fn format(status: &NodeStatus) -> String {
    let NodeStatus { store_format: written, store_formats: read, .. } = status;
    if (read.min, read.max) == (*written, *written) {
        written.to_string()
    } else {
        format!("{written} ({read})")
    }
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
        "delayed", "address", "version", "protocol", "format", "store",
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
                    status.version.clone(),
                    status.protocol.to_string(),
                    format(status),
                    status.store_id.clone(),
                ]
            }
        };
        table.row([vec![server.clone()], cells].concat());
    }
    table
}

#[cfg(test)]
mod tests {
    use batonmq::model::id::Epoch;
    use batonmq::model::version::VersionRange;
    use batonmq::model::version::{FORMAT_WRITTEN, FORMATS_READ};
    use batonmq::protocol::VERSIONS;

    use super::*;

    fn answer(node: &str, protocol: (u32, u32), reads: (u32, u32), store_format: u32) -> Answer {
        let range = |(min, max)| VersionRange { min, max };
        let status = NodeStatus {
            node: node.to_owned(),
            role: Role::Standby,
            epoch: Epoch(1),
            mode: "file".to_owned(),
            store_id: String::new(),
            master: None,
            version: String::new(),
            role_seconds: 0,
            connections: 0,
            topics: 0,
            groups: 0,
            messages: 0,
            delayed: 0,
            addresses: Vec::new(),
            protocol: range(protocol),
            store_formats: range(reads),
            store_format,
            unreadable: 0,
        };
        Answer { server: node.to_owned(), status: Some(status), agrees: None, error: None }
    }

    #[test]
    fn nodes_that_cannot_take_over_from_each_other_are_named() {
        let missing = Answer { server: "x".to_owned(), status: None, agrees: None, error: None };
        let mut alone = [answer("a", (1, 1), (1, 1), 1), missing];
        assert!(note_differences(&mut alone).is_empty());
        assert!(alone.iter().all(|answer| answer.agrees.is_none()));

        // Upgraded half-way: the newer one goes on writing what the older one reads.
        let mut pair = [answer("a", (1, 1), (1, 1), 1), answer("b", (1, 2), (1, 2), 1)];
        assert!(note_differences(&mut pair).is_empty());
        assert_eq!(pair.map(|answer| answer.agrees), [Some(true); 2]);

        let mut raised = [answer("a", (1, 1), (1, 1), 1), answer("b", (1, 2), (1, 2), 2)];
        let found = note_differences(&mut raised);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("a cannot take over from b, which writes store format 2: it reads 1; run"),
            "{found:?}"
        );
        assert_eq!(raised.map(|answer| answer.agrees), [Some(false); 2]);

        let mut strangers = [answer("a", (1, 1), (1, 1), 1), answer("b", (2, 3), (1, 1), 1)];
        let found = note_differences(&mut strangers);
        assert_eq!(found[0], "a speaks protocol 1 and b 2-3: clients of the one cannot follow to the other");
    }

    #[test]
    fn the_manual_has_the_versions_of_this_build() {
        let build = env!("CARGO_PKG_VERSION");
        let row = format!("| {build} | {VERSIONS} | {FORMATS_READ} | {FORMAT_WRITTEN} |\n");
        assert!(include_str!("../../docs/operations.md").contains(&row), "{row}");
    }
}

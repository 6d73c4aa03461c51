//! `baton route`: list, create and delete routes.

use batonmq::model::filter::Filter;
use batonmq::model::name::Name;
use batonmq::model::route::RouteMode;
use batonmq::protocol::response::RouteInfo;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::ClientArgs;
use super::output::{Output, Table};
use super::value;

/// List, create and delete routes: rules that pass messages of one topic on to others.
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// All routes
    List(ListArgs),
    /// Make a route; no error if it exists like this
    #[command(after_help = "\
A message is in all topics or in none: it is passed on in the commit in which it is published. What was published before
is not. Topics that a route leads to are made where they are missing; the one it comes from must be there. A route of a
topic that it leads to passes the message on further. A topic gets a message once, however many routes lead there.

Examples:
  baton route create audit --from orders --to audit,archive
  baton route create eu --from orders --to orders-eu --filter \"region = 'eu'\" --move")]
    Create(CreateArgs),
    /// Delete a route; what it has passed on stays where it is
    Delete(OneArgs),
}

/// For all routes.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// One JSON object a line for each route
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// For a new route.
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    one: OneArgs,
    /// The topic to which messages are published
    #[arg(long, value_name = "TOPIC", value_parser = value::name)]
    from: Name,
    /// The topics that get them, separated by commas
    #[arg(long, value_name = "TOPIC,...", value_parser = value::name, value_delimiter = ',', required = true)]
    to: Vec<Name>,
    /// Only messages that match this, such as "region = 'eu' AND price >= 100"
    #[arg(long, value_name = "FILTER", value_parser = value::filter)]
    filter: Option<Filter>,
    /// What is passed on is not in its own topic
    #[arg(long = "move")]
    moves: bool,
}

/// For one route.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// The route
    #[arg(value_parser = value::name)]
    name: Name,
    #[command(flatten)]
    client: ClientArgs,
}

/// A route in JSON.
#[derive(Serialize)]
struct RouteView<'a> {
    route: &'a str,
    from: &'a str,
    to: &'a [String],
    filter: Option<&'a str>,
    mode: RouteMode,
}

/// Runs it.
pub async fn run(command: RouteCommand) -> anyhow::Result<()> {
    match command {
        RouteCommand::List(args) => list(&args).await,
        RouteCommand::Create(args) => {
            let route = RouteInfo {
                name: args.one.name.to_string(),
                from: args.from.to_string(),
                to: args.to.iter().map(Name::to_string).collect(),
                filter: args.filter.map(|filter| filter.to_string()),
                mode: if args.moves { RouteMode::Move } else { RouteMode::Copy },
            };
            let client = args.one.client.connect().await?;
            client.create_route(route).await?;
            client.close().await;
            Ok(())
        }
        RouteCommand::Delete(args) => {
            let client = args.client.connect().await?;
            client.delete_route(args.name.as_str()).await?;
            client.close().await;
            Ok(())
        }
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.client.connect().await?;
    let routes = client.routes().await?;
    client.close().await;
    let mut output = Output::new();
    if args.json {
        for RouteInfo { name, from, to, filter, mode } in &routes {
            output.json(&RouteView { route: name, from, to, filter: filter.as_deref(), mode: *mode })?;
        }
        return output.flush();
    }
    let mut table = Table::new(&["route", "from", "to", "mode", "filter"]);
    for RouteInfo { name, from, to, filter, mode } in routes {
        let mode = if mode == RouteMode::Move { "move" } else { "copy" };
        table.row([name, from, to.join(","), mode.to_owned(), filter.unwrap_or_default()]);
    }
    table.print(&mut output)?;
    output.flush()
}

//! Filters on the command line: expressions that say which messages are meant.

use anyhow::Context;
use batonmq::model::filter::Filter;
use batonmq::model::message::{Message, MessageBlock, Parts};

use super::exit::End;

/// The filter of a flag, if it was given. An error shows the place.
pub fn parse(text: Option<&str>) -> anyhow::Result<Option<Filter>> {
    let filter = text.map(Filter::parse).transpose();
    filter.map_err(|error| End::Usage(format!("{error}\n{}", error.picture())).into())
}

/// Whether a message is meant: all are where there is no filter.
pub fn matches(filter: Option<&Filter>, message: &Message) -> anyhow::Result<bool> {
    let Some(filter) = filter else { return Ok(true) };
    let block = MessageBlock::encode([message]);
    Ok(filter.matches(&Parts::read(block.encoded(0), 0).context("a message that cannot be read")?))
}

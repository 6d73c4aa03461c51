//! Reading messages of a topic without any effect on it, and looking at what a group will get.

use std::collections::VecDeque;

use super::Client;
use super::delivery::{Browsed, origin, unpack};
use super::error::ClientError;
use super::shared::unexpected;
use crate::model::id::Offset;
use crate::model::time::Timestamp;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::{AdminCommand, BrowseFrom};
use crate::protocol::response::Reply;

/// Messages asked for at a time where the newest are looked for.
const NEWEST_BATCH: u32 = 1000;
/// How many times as many of the newest messages are looked at next, where too few of them match.
const NEWEST_FACTOR: u64 = 8;

/// Which messages are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowseOptions {
    /// The topic, or a pattern of such names if a group of it is named.
    pub topic: String,
    /// Only what this group has not settled, with what is known of it: what it will get, the highest priority first.
    /// What waits for another attempt stands where it was published.
    pub group: Option<String>,
    /// Where to begin; not with a group.
    pub from: BrowseFrom,
    /// Only messages that were published at this time or later.
    pub since: Timestamp,
    /// Only messages that match this expression.
    pub filter: Option<String>,
}

impl BrowseOptions {
    /// All messages of a topic, in the order of their positions: those without a priority first.
    #[must_use]
    pub fn new(topic: &str) -> Self {
        let (topic, group) = (topic.to_owned(), None);
        Self { topic, group, from: BrowseFrom::Beginning, since: Timestamp(0), filter: None }
    }
}

/// A walk through messages. Nothing is held for it in the node: what comes and goes meanwhile may be seen or not.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    options: BrowseOptions,
    ended: bool,
}

impl Browser {
    /// The next messages, at most `messages_max`; none behind the last one. The node may answer fewer, and looks for
    /// them as long as it takes.
    ///
    /// If the future is dropped, nothing is lost: the same messages come again.
    ///
    /// # Errors
    /// Where topic or group do not exist, the filter is wrong, or there is no master.
    pub async fn next_batch(&mut self, messages_max: u32) -> Result<Vec<Browsed>, ClientError> {
        while !self.ended && messages_max > 0 {
            let Page { messages, next, .. } = self.client.browse_page(&self.options, messages_max).await?;
            match next {
                Some(next) => self.options.from = next,
                None => self.ended = true,
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
        Ok(Vec::new())
    }
}

/// One answer.
pub(super) struct Page {
    /// The priority of all its messages.
    priority: u8,
    pub(super) messages: Vec<Browsed>,
    /// Where to go on.
    pub(super) next: Option<BrowseFrom>,
}

impl Client {
    /// Begins to walk through messages.
    #[must_use]
    pub fn browser(&self, options: BrowseOptions) -> Browser {
        Browser { client: self.clone(), options, ended: false }
    }

    /// Reads at most `messages_max` messages of a topic from `from` on, without any effect on it: of those without a
    /// priority. The node may answer fewer; none means that there are none. A [`browser`](Self::browser) sees all.
    ///
    /// # Errors
    /// Where the topic does not exist.
    pub async fn browse(
        &self,
        topic: &str,
        from: Offset,
        messages_max: u32,
    ) -> Result<Vec<Browsed>, ClientError> {
        let options = BrowseOptions { from: BrowseFrom::Position(from.into()), ..BrowseOptions::new(topic) };
        let mut page = self.browse_page(&options, messages_max).await?;
        page.messages.retain(|message| message.priority == 0);
        Ok(page.messages)
    }

    /// The newest messages of a topic that match the options, at most `count`: those that were published last, of all
    /// priorities, oldest first. Where the options begin is not looked at. All of them are held in memory at the end.
    ///
    /// With a filter older and older messages are looked at, until there are enough.
    ///
    /// # Errors
    /// Where the topic does not exist, a group is named, the filter is wrong, or there is no master.
    pub async fn browse_newest(
        &self,
        options: &BrowseOptions,
        count: u64,
    ) -> Result<Vec<Browsed>, ClientError> {
        let there = self.describe_topic(&options.topic).await?;
        let above = there.lanes.iter().map(|(_, messages)| *messages).sum::<u64>();
        let lanes = [(0, there.topic.messages.saturating_sub(above))].into_iter().chain(there.lanes);
        let mut newest = Vec::new();
        for (priority, messages) in lanes {
            newest.extend(self.newest_of(options, priority, count, messages).await?);
        }
        // Those of one priority are in the order of their times already, and stay in it.
        newest.sort_by_key(|message| message.published_at);
        newest.drain(..newest.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)));
        Ok(newest)
    }

    /// The newest messages of a priority that match, of which there are `messages` altogether.
    async fn newest_of(
        &self,
        options: &BrowseOptions,
        priority: u8,
        count: u64,
        messages: u64,
    ) -> Result<VecDeque<Browsed>, ClientError> {
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        let mut looked_at = count;
        loop {
            let mut from = BrowseFrom::Newest { priority, count: looked_at };
            let mut found = VecDeque::new();
            loop {
                let options = BrowseOptions { from, ..options.clone() };
                let page = self.browse_page(&options, NEWEST_BATCH).await?;
                if page.priority != priority {
                    break;
                }
                found.extend(page.messages);
                found.drain(..found.len().saturating_sub(most));
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
            if options.filter.is_none() || found.len() >= most || looked_at >= messages {
                return Ok(found);
            }
            looked_at = looked_at.saturating_mul(NEWEST_FACTOR);
        }
    }

    async fn browse_page(&self, options: &BrowseOptions, messages_max: u32) -> Result<Page, ClientError> {
        let BrowseOptions { topic, group, from, since, filter } = options.clone();
        self.browsed(AdminCommand::Browse { topic, group, from, since, filter, messages_max }).await
    }

    /// The answer to a command that browses.
    pub(super) async fn browsed(&self, command: AdminCommand) -> Result<Page, ClientError> {
        let answer = self.administer(command).await?;
        let Reply::Browsed { topic, priority, runs, states, failures, next, messages } = answer else {
            return Err(unexpected(&answer));
        };
        let mut browsed = Vec::new();
        let (mut states, mut failures) = (states.iter().peekable(), failures.iter().peekable());
        unpack(&runs, messages, |run, at, message| {
            let offset = Offset(run.offset.0.saturating_add(at));
            while states.next_if(|known| known.range.end <= offset).is_some() {}
            while failures.next_if(|known| known.range.end <= offset).is_some() {}
            let state = states.peek().filter(|known| known.range.contains(offset));
            let failure = failures.peek().filter(|known| known.range.contains(offset));
            browsed.push(Browsed {
                topic: topic.clone(),
                priority,
                offset,
                published_at: run.published_at,
                origin: origin(run, at),
                state: state.map(|known| known.state),
                attempt: run.attempt,
                failure: failure.map(|known| known.failure.clone()),
                message,
            });
        })
        .map_err(|error| Refusal::new(ErrorCode::Protocol, format!("bad answer of the node: {error}")))?;
        Ok(Page { priority, messages: browsed, next: next.map(BrowseFrom::Place) })
    }
}

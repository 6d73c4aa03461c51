//! Which dead letters are meant: where they lie, and what they must be.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use batonmq::client::{Browsed, Client};
use batonmq::model::filter::Filter;
use batonmq::model::id::Offset;
use batonmq::model::name::Name;
use batonmq::model::pattern::matches;
use batonmq::model::retry::ReturnReason;
use batonmq::model::time::Timestamp;
use batonmq::protocol::response::{GroupInfo, TopicInfo};
use clap::{Args, ValueEnum};

use super::letter::{DIED_AT, GROUP, REASON, TOPIC, text};
use crate::cli::client::ClientArgs;
use crate::cli::filter;
use crate::cli::group::dead_letter_topic;
use crate::cli::value;

/// What names of dead-letter topics end with where nothing else is configured.
const SUFFIX: &str = ".dead-letter";
/// Letters read at a time.
const BATCH: u32 = 500;

/// What letters are meant.
#[derive(Args, Debug)]
pub struct SelectArgs {
    /// The topic the letters came from, or a dead-letter topic
    #[arg(value_parser = value::name)]
    pub topic: Name,
    /// Only letters of this group
    #[arg(long, value_parser = value::name)]
    group: Option<Name>,
    /// Only letters whose last attempt ended like this
    #[arg(long, value_enum)]
    reason: Option<Reason>,
    /// Only letters with this key
    #[arg(long)]
    key: Option<String>,
    /// Only letters that died longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    older_than: Option<Duration>,
    /// Only letters that died within this time
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    newer_than: Option<Duration>,
    /// Only letters for which this is true, as in `price > 100`
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What ended the last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reason {
    /// The consumer gave it back as failed
    Nacked,
    /// The consumer held it for too long
    LeaseExpired,
    /// The connection of the consumer was lost
    ConsumerLost,
    /// The consumer wanted it dead
    Rejected,
    /// Its time was over
    Expired,
}

impl From<Reason> for ReturnReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Nacked => Self::Nacked,
            Reason::LeaseExpired => Self::LeaseExpired,
            Reason::ConsumerLost => Self::ConsumerLost,
            Reason::Rejected => Self::Rejected,
            Reason::Expired => Self::Expired,
        }
    }
}

/// What letters must be.
pub struct Selection {
    /// The topic that they came from, or lie in.
    topic: Name,
    group: Option<Name>,
    reason: Option<ReturnReason>,
    key: Option<String>,
    /// They died before this, and after that.
    before: Option<Timestamp>,
    after: Option<Timestamp>,
    filter: Option<Filter>,
    /// Only these offsets; all where there are none.
    pub offsets: BTreeSet<u64>,
}

impl Selection {
    /// What the arguments say.
    pub fn new(args: &SelectArgs) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ago = |age: Duration| {
            let at = now.saturating_sub(age).as_millis();
            Timestamp(u64::try_from(at).unwrap_or(u64::MAX))
        };
        Ok(Self {
            topic: args.topic.clone(),
            group: args.group.clone(),
            reason: args.reason.map(ReturnReason::from),
            key: args.key.clone(),
            before: args.older_than.map(ago),
            after: args.newer_than.map(ago),
            filter: filter::parse(args.filter.as_deref())?,
            offsets: BTreeSet::new(),
        })
    }

    /// The dead-letter topics to look into: those of the topic that is named, and this itself where it is one.
    pub async fn places(&self, client: &Client, args: &SelectArgs) -> anyhow::Result<Vec<TopicInfo>> {
        let topics = client.topics().await?;
        let groups = client.groups(None).await?;
        let topic = args.topic.as_str();
        let named = |group: &GroupInfo| group.settings.dead_letter.as_ref().map(Name::to_string);
        let all: BTreeSet<String> = groups
            .iter()
            .map(|group| named(group).unwrap_or_else(|| dead_letter_topic(&group.topic, None)))
            .collect();
        // Groups of patterns that stand for the topic have it among others.
        let of_topic = groups.iter().filter(|group| group.topic == topic || matches(&group.topic, topic));
        let mut of_topic: BTreeSet<String> = of_topic.filter_map(named).collect();
        of_topic.insert(dead_letter_topic(topic, None));
        let exists = topics.iter().any(|topic| topic.name == args.topic.as_str());
        let is_place = args.topic.as_str().ends_with(SUFFIX) || all.contains(args.topic.as_str());
        if is_place {
            of_topic.insert(topic.to_owned());
        }
        let places: Vec<TopicInfo> =
            topics.into_iter().filter(|topic| of_topic.contains(&topic.name)).collect();
        anyhow::ensure!(exists || !places.is_empty(), "there is no topic {}", args.topic);
        Ok(places)
    }

    /// Whether a letter in this topic is meant. What is no letter never is.
    pub fn takes(&self, place: &str, browsed: &Browsed) -> anyhow::Result<bool> {
        let message = &browsed.message;
        let is = |header, wanted: Option<&str>| match (message.header(header), wanted) {
            (Some(value), Some(wanted)) => value == wanted.as_bytes(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let died_at = value::time(&text(message, DIED_AT)).ok();
        let in_time = |holds: &dyn Fn(Timestamp) -> bool| died_at.is_some_and(holds);
        let origin = (place != self.topic.as_str()).then(|| self.topic.as_str());
        Ok(is(TOPIC, origin)
            && is(GROUP, self.group.as_ref().map(Name::as_str))
            && is(REASON, self.reason.map(ReturnReason::word))
            && self.key.as_ref().is_none_or(|key| message.key.as_ref().is_some_and(|known| known == key))
            && self.before.is_none_or(|before| in_time(&|at| at < before))
            && self.after.is_none_or(|after| in_time(&|at| at >= after))
            && (self.offsets.is_empty() || self.offsets.contains(&browsed.offset.0))
            && filter::matches(self.filter.as_ref(), message)?)
    }

    /// The letters of a dead-letter topic that are meant, at most `limit` of them; those that are there now.
    pub fn pages<'a>(&'a self, client: &'a Client, place: &'a TopicInfo, limit: u64) -> Pages<'a> {
        Pages { selection: self, client, place, from: place.start, left: limit }
    }
}

/// Letters that are meant, page by page.
pub struct Pages<'a> {
    selection: &'a Selection,
    client: &'a Client,
    place: &'a TopicInfo,
    from: Offset,
    left: u64,
}

impl Pages<'_> {
    /// Those of the next page, which may be none; `None` behind the last page.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<Browsed>>> {
        if self.left == 0 || self.from >= self.place.end {
            return Ok(None);
        }
        let page = self.client.browse(&self.place.name, self.from, BATCH).await?;
        let Some(last) = page.last() else { return Ok(None) };
        self.from = last.offset.next();
        let mut meant = Vec::new();
        for browsed in page {
            // What dies meanwhile is left for the next time.
            if self.left > 0
                && browsed.offset < self.place.end
                && self.selection.takes(&self.place.name, &browsed)?
            {
                self.left -= 1;
                meant.push(browsed);
            }
        }
        Ok(Some(meant))
    }
}

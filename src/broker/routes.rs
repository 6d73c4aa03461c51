//! Routes: which rules there are, and where the messages of a publish go by them.
//!
//! A message arrives at the topic that it is published to, and at each topic to which a route of a topic where it has
//! arrived passes it on. It arrives once, however many routes lead there. Each route of a topic is asked about it,
//! and it stays in the topic unless a route that moves has taken it. What the broker itself puts somewhere, dead
//! letters and what was delayed, is not passed on: it was when it was published.
//!
//! All of that happens within the publish, so what one message may lead to is bounded when a route is made: there are
//! no circles, chains have at most [`ROUTE_STEPS_MAX`] routes, and the routes that a message may pass have at most
//! [`ROUTE_COPIES_MAX`] targets together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::holdings::Holdings;
use super::placing::Picked;
use crate::model::filter::Filter;
use crate::model::id::{OffsetRange, RouteId, TopicId};
use crate::model::limits::{ROUTE_COPIES_MAX, ROUTE_STEPS_MAX};
use crate::model::message::{MessageBlock, Parts};
use crate::model::name::Name;
use crate::model::ranges::RangeSet;
use crate::model::route::{Route, RouteMode};

/// A route with its filter, read.
#[derive(Debug)]
struct Rule {
    route: Route,
    filter: Option<Filter>,
}

impl Rule {
    /// Those of the messages that the route passes on. Offsets are indexes of the block.
    fn takes(&self, block: &MessageBlock, messages: &RangeSet) -> RangeSet {
        let Some(filter) = &self.filter else { return messages.clone() };
        let mut taken = RangeSet::new();
        for range in messages.iter() {
            for index in range.start.0..range.end.0 {
                // What cannot be read is no match: a filter asks about what a message says.
                let parts = Parts::read(block.encoded(index as usize), index as usize);
                if parts.is_ok_and(|parts| filter.matches(&parts)) {
                    taken.insert(OffsetRange::new(index, index + 1));
                }
            }
        }
        taken
    }
}

/// Why a route cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tangle {
    /// Messages would come back: the topics that they pass, the first one again at the end.
    Circle(Vec<TopicId>),
    /// A chain would have so many routes.
    Steps(usize),
    /// A message published to this topic would get so many copies.
    Copies(TopicId, usize),
}

/// Messages of a block that go to the same topics.
#[derive(Debug)]
pub(super) struct Way {
    /// The messages.
    pub picked: Picked,
    /// Where they go; at least one topic.
    pub topics: Vec<TopicId>,
    /// Bytes that a store may need for them in each of these topics.
    pub bytes: u64,
    /// What each of these topics holds of them.
    pub holdings: Holdings,
}

/// Where the messages of a publish go, for each of its parts; `None` for what goes where it was published and nowhere
/// else, and nothing at all where there are no routes.
pub(super) type Ways = Vec<Option<Vec<Way>>>;

/// Bytes that a store may need for what goes these ways.
pub(super) fn copied_bytes(ways: &Ways) -> u64 {
    let ways = ways.iter().flatten().flatten();
    ways.map(|way| way.bytes * way.topics.len() as u64).sum()
}

/// All routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_id: BTreeMap<RouteId, Rule>,
    names: BTreeMap<Name, RouteId>,
    /// The routes of each topic that has some, in the order in which they were made.
    of: BTreeMap<TopicId, Vec<RouteId>>,
}

impl Routes {
    /// The routes as a broker before this one left them.
    pub fn recover(routes: BTreeMap<RouteId, Route>) -> Self {
        let mut all = Self::default();
        routes.into_iter().for_each(|(id, route)| all.insert(id, route));
        all
    }

    /// What is durable.
    pub fn state(&self) -> BTreeMap<RouteId, Route> {
        self.by_id.iter().map(|(id, rule)| (*id, rule.route.clone())).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Adds a route that was checked.
    pub fn insert(&mut self, id: RouteId, route: Route) {
        let filter = route.filter.as_deref().and_then(|text| Filter::parse(text).ok());
        self.names.insert(route.name.clone(), id);
        self.of.entry(route.from).or_default().push(id);
        self.by_id.insert(id, Rule { route, filter });
    }

    /// Takes a route away.
    pub fn remove(&mut self, id: RouteId) -> Option<Route> {
        let Rule { route, .. } = self.by_id.remove(&id)?;
        self.names.remove(&route.name);
        if let Some(of) = self.of.get_mut(&route.from) {
            of.retain(|other| *other != id);
            if of.is_empty() {
                self.of.remove(&route.from);
            }
        }
        Some(route)
    }

    /// The route of a name.
    pub fn named(&self, name: &str) -> Option<(RouteId, &Route)> {
        let id = *self.names.get(name)?;
        Some((id, &self.by_id.get(&id)?.route))
    }

    /// The routes in the order of their names, from behind `after` on.
    pub fn list(&self, after: Option<&str>) -> impl Iterator<Item = &Route> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let names = self.names.range::<str, _>((from, std::ops::Bound::Unbounded));
        names.filter_map(|(_, id)| Some(&self.by_id.get(id)?.route))
    }

    /// The routes that messages of a topic pass, or that lead to it.
    pub fn touching(&self, topic: TopicId) -> Vec<RouteId> {
        let touches = |rule: &Rule| rule.route.from == topic || rule.route.to.contains(&topic);
        self.by_id.iter().filter(|(_, rule)| touches(rule)).map(|(id, _)| *id).collect()
    }

    fn of(&self, topic: TopicId) -> impl Iterator<Item = &Rule> {
        let ids = self.of.get(&topic).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }

    /// Where the messages published to a topic go.
    fn ways(&self, topic: TopicId, block: &MessageBlock) -> Vec<Way> {
        let mut all = RangeSet::new();
        all.insert(OffsetRange::new(0, block.count() as u64));
        let mut arrived: BTreeMap<TopicId, RangeSet> = BTreeMap::new();
        let mut stay: BTreeMap<TopicId, RangeSet> = BTreeMap::new();
        let mut arriving = VecDeque::from([(topic, all, 0)]);
        while let Some((at, mut messages, steps)) = arriving.pop_front() {
            let known = arrived.entry(at).or_default();
            known.iter().for_each(|range| messages.remove(range));
            insert_all(known, &messages);
            let mut rest = messages.clone();
            if steps < ROUTE_STEPS_MAX && !messages.is_empty() {
                for rule in self.of(at) {
                    let taken = rule.takes(block, &messages);
                    if rule.route.mode == RouteMode::Move {
                        taken.iter().for_each(|range| rest.remove(range));
                    }
                    if !taken.is_empty() {
                        let to = rule.route.to.iter();
                        arriving.extend(to.map(|to| (*to, taken.clone(), steps + 1)));
                    }
                }
            }
            insert_all(stay.entry(at).or_default(), &rest);
        }
        let mut together: BTreeMap<Vec<(usize, usize)>, Vec<TopicId>> = BTreeMap::new();
        for (topic, messages) in stay.iter().filter(|(_, messages)| !messages.is_empty()) {
            let runs = messages.iter().map(|range| (range.start.0 as usize, range.end.0 as usize)).collect();
            together.entry(runs).or_default().push(*topic);
        }
        let way = |(runs, topics)| {
            let picked = Picked::of(runs);
            let (bytes, holdings) = (picked.stored_bytes(block), picked.holdings(block));
            Way { picked, topics, bytes, holdings }
        };
        together.into_iter().map(way).collect()
    }

    /// Where the messages of a publish go, for each of its parts, without the `known` messages that it begins with.
    pub fn ways_of_parts(&self, parts: &[(TopicId, u32)], known: usize, block: &MessageBlock) -> Ways {
        let mut ways = Vec::new();
        if self.of.is_empty() {
            return ways;
        }
        let mut start = 0;
        for &(topic, count) in parts {
            let end = start + count as usize;
            if end > known {
                let of_part = || self.ways(topic, &block.part(start.max(known), end));
                ways.push(self.of.contains_key(&topic).then(of_part));
            }
            start = end;
        }
        ways
    }

    /// Whether a further route keeps within the bounds. Its topics may be unknown so far.
    pub fn check(&self, from: TopicId, to: &[TopicId], target_count: usize) -> Result<(), Tangle> {
        for &first in to {
            if let Some(way) = self.path(first, from) {
                return Err(Tangle::Circle([vec![from], way].concat()));
            }
        }
        let behind = to.iter().map(|topic| self.steps_from(*topic)).max().unwrap_or(0);
        let (before, sources) = self.sources_of(from);
        let steps = before + 1 + behind;
        if steps > ROUTE_STEPS_MAX {
            return Err(Tangle::Steps(steps));
        }
        let behind = self.reached(to.iter().copied());
        for source in sources {
            let mut reached = self.reached([source].into_iter());
            reached.extend(&behind);
            let copies: usize =
                reached.iter().filter_map(|id| Some(self.by_id.get(id)?.route.to.len())).sum();
            if copies + target_count > ROUTE_COPIES_MAX {
                return Err(Tangle::Copies(source, copies + target_count));
            }
        }
        Ok(())
    }

    /// The topics that messages pass on their way from one topic to another, both ends among them.
    fn path(&self, from: TopicId, to: TopicId) -> Option<Vec<TopicId>> {
        let mut came_from: BTreeMap<TopicId, TopicId> = BTreeMap::new();
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            if at == to {
                let mut path = vec![to];
                while let Some(before) = path.last().and_then(|last| came_from.get(last)) {
                    path.push(*before);
                }
                path.reverse();
                return Some(path);
            }
            for &target in self.of(at).flat_map(|rule| &rule.route.to) {
                if target != from && !came_from.contains_key(&target) {
                    came_from.insert(target, at);
                    next.push(target);
                }
            }
        }
        None
    }

    /// Routes of the longest chain that begins at a topic. There are no circles.
    fn steps_from(&self, topic: TopicId) -> usize {
        let mut steps = 0;
        let mut level = BTreeSet::from([topic]);
        while steps <= ROUTE_STEPS_MAX {
            level = level.iter().flat_map(|at| self.of(*at)).flat_map(|rule| rule.route.to.clone()).collect();
            if level.is_empty() {
                break;
            }
            steps += 1;
        }
        steps
    }

    /// Routes of the longest chain that ends at a topic, and all topics from which chains lead there, itself too.
    fn sources_of(&self, topic: TopicId) -> (usize, BTreeSet<TopicId>) {
        let mut into: BTreeMap<TopicId, Vec<TopicId>> = BTreeMap::new();
        for rule in self.by_id.values() {
            for &to in &rule.route.to {
                into.entry(to).or_default().push(rule.route.from);
            }
        }
        let mut steps = 0;
        let mut level = BTreeSet::from([topic]);
        let mut all = level.clone();
        while steps <= ROUTE_STEPS_MAX {
            level = level.iter().filter_map(|at| into.get(at)).flatten().copied().collect();
            if level.is_empty() {
                break;
            }
            all.extend(&level);
            steps += 1;
        }
        (steps, all)
    }

    /// The routes that messages which arrive at these topics may pass.
    fn reached(&self, topics: impl Iterator<Item = TopicId>) -> BTreeSet<RouteId> {
        let mut seen: BTreeSet<TopicId> = BTreeSet::new();
        let mut reached = BTreeSet::new();
        let mut next: Vec<TopicId> = topics.collect();
        while let Some(at) = next.pop() {
            if seen.insert(at) {
                reached.extend(self.of.get(&at).into_iter().flatten());
                next.extend(self.of(at).flat_map(|rule| &rule.route.to));
            }
        }
        reached
    }
}

fn insert_all(into: &mut RangeSet, messages: &RangeSet) {
    messages.iter().for_each(|range| {
        into.insert(range);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Message;

    /// Name, from, to, filter, mode.
    type Row<'a> = (&'a str, u32, &'a [u32], Option<&'a str>, RouteMode);

    fn routes(all: &[Row<'_>]) -> Routes {
        let routes = all.iter().zip(1..).map(|(&(name, from, to, filter, mode), id)| {
            let route = Route {
                name: name.parse().unwrap(),
                from: TopicId(from),
                to: to.iter().copied().map(TopicId).collect(),
                filter: filter.map(str::to_owned),
                mode,
            };
            (RouteId(id), route)
        });
        Routes::recover(routes.collect())
    }

    /// Messages with a header `n`, their index.
    fn block(count: usize) -> MessageBlock {
        let header = |n: usize| vec![("n".to_owned(), n.to_string().into())];
        let messages: Vec<Message> =
            (0..count).map(|n| Message { headers: header(n), ..Message::default() }).collect();
        MessageBlock::encode(&messages)
    }

    /// Where the indexes go.
    fn arrive(routes: &Routes, topic: u32, count: usize) -> BTreeMap<u32, Vec<usize>> {
        let mut arrived = BTreeMap::new();
        for way in routes.ways(TopicId(topic), &block(count)) {
            let indexes: Vec<usize> = way.picked.runs().iter().flat_map(|&(start, end)| start..end).collect();
            for topic in way.topics {
                assert_eq!(arrived.insert(topic.0, indexes.clone()), None, "each topic once");
            }
        }
        arrived
    }

    #[test]
    fn a_topic_without_routes_keeps_what_it_gets() {
        let routes = routes(&[("r", 1, &[2], None, RouteMode::Copy)]);
        let ways = routes.ways_of_parts(&[(TopicId(2), 2), (TopicId(1), 1)], 0, &block(3));
        assert!(ways[0].is_none() && ways[1].is_some());
    }

    #[test]
    fn what_is_copied_stays_and_what_is_moved_does_not() {
        let routes = routes(&[
            ("copies", 1, &[2, 3], Some("n >= 2"), RouteMode::Copy),
            ("moves", 1, &[4], Some("n BETWEEN 1 AND 2"), RouteMode::Move),
        ]);
        let expected = [(1, vec![0, 3]), (2, vec![2, 3]), (3, vec![2, 3]), (4, vec![1, 2])];
        assert_eq!(arrive(&routes, 1, 4), BTreeMap::from(expected));
    }

    #[test]
    fn what_goes_the_same_way_is_one_block() {
        let routes = routes(&[("r", 1, &[2, 3], None, RouteMode::Copy)]);
        let ways = routes.ways(TopicId(1), &block(3));
        assert_eq!(ways.len(), 1);
        assert_eq!(ways[0].topics, [TopicId(1), TopicId(2), TopicId(3)]);
    }

    #[test]
    fn a_message_arrives_once_however_many_routes_lead_there() {
        let routes = routes(&[
            ("direct", 1, &[4], Some("n < 2"), RouteMode::Copy),
            ("first", 1, &[2], None, RouteMode::Copy),
            ("second", 2, &[4], Some("n > 0"), RouteMode::Move),
            ("behind", 4, &[5], None, RouteMode::Copy),
        ]);
        let expected = [(1, vec![0, 1, 2]), (2, vec![0]), (4, vec![0, 1, 2]), (5, vec![0, 1, 2])];
        assert_eq!(arrive(&routes, 1, 3), BTreeMap::from(expected));
    }

    #[test]
    fn circles_are_found_and_named() {
        let routes =
            routes(&[("a", 1, &[2], None, RouteMode::Copy), ("b", 2, &[3, 4], None, RouteMode::Copy)]);
        let check = |from, to: &[u32]| {
            let to: Vec<TopicId> = to.iter().copied().map(TopicId).collect();
            routes.check(TopicId(from), &to, to.len())
        };
        assert_eq!(check(3, &[1]), Err(Tangle::Circle([3, 1, 2, 3].map(TopicId).to_vec())));
        assert_eq!(check(1, &[4]), Ok(()));
        assert_eq!(check(5, &[1]), Ok(()));
    }

    #[test]
    fn chains_are_bounded_wherever_the_last_route_is_put_in() {
        for missing in 0..=ROUTE_STEPS_MAX as u32 {
            let steps: Vec<u32> = (0..=ROUTE_STEPS_MAX as u32).filter(|step| *step != missing).collect();
            let to: Vec<[u32; 1]> = steps.iter().map(|step| [step + 1]).collect();
            let names: Vec<String> = steps.iter().map(|step| format!("r{step}")).collect();
            let all: Vec<Row<'_>> = steps
                .iter()
                .zip(&to)
                .zip(&names)
                .map(|((from, to), name)| (name.as_str(), *from, &to[..], None, RouteMode::Copy))
                .collect();
            let refused = routes(&all).check(TopicId(missing), &[TopicId(missing + 1)], 1);
            assert_eq!(refused, Err(Tangle::Steps(ROUTE_STEPS_MAX + 1)));
            assert_eq!(routes(&all[1..]).check(TopicId(50), &[TopicId(60)], 1), Ok(()));
        }
    }

    #[test]
    fn copies_are_bounded_at_every_topic_from_which_messages_come() {
        let many: Vec<u32> = (100..150).collect();
        let routes = routes(&[
            ("first", 1, &[2], None, RouteMode::Copy),
            ("a", 2, &many, None, RouteMode::Copy),
            ("b", 2, &many, None, RouteMode::Copy),
            ("c", 2, &many, None, RouteMode::Copy),
            ("d", 2, &many, None, RouteMode::Copy),
        ]);
        let targets: Vec<TopicId> = (200..255).map(TopicId).collect();
        assert_eq!(routes.check(TopicId(2), &targets, 55), Ok(()));
        assert_eq!(routes.check(TopicId(2), &targets, 56), Err(Tangle::Copies(TopicId(1), 257)));
    }
}

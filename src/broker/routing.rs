//! What an administrator asks for about routes: lists, making and deleting them.

use super::machine::Broker;
use super::routes::Tangle;
use super::subscription::check_filter;
use super::{Output, refusals};
use crate::model::id::TopicId;
use crate::model::limits::{LISTED_MAX, ROUTE_COPIES_MAX, ROUTE_STEPS_MAX, ROUTE_TARGETS_MAX};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::route::Route;
use crate::model::settings::TopicSettings;
use crate::model::topic_kind::TopicKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::response::{Reply, RouteInfo};

/// Bytes of names and filters after which a list is long enough.
const LISTED_BYTES: usize = 512 << 10;

impl Broker {
    pub(super) fn list_routes(&self, after: Option<&str>) -> Reply {
        let mut all = self.routes.list(after).peekable();
        let (mut routes, mut bytes) = (Vec::new(), 0);
        while routes.len() < LISTED_MAX
            && bytes < LISTED_BYTES
            && let Some(route) = all.next()
        {
            let info = self.route_info(route);
            bytes +=
                info.to.iter().map(String::len).sum::<usize>() + info.filter.as_ref().map_or(0, String::len);
            routes.push(info);
        }
        Reply::Routes { routes, more: all.peek().is_some() }
    }

    fn route_info(&self, route: &Route) -> RouteInfo {
        RouteInfo {
            name: route.name.to_string(),
            from: self.topic_text(route.from),
            to: route.to.iter().map(|topic| self.topic_text(*topic)).collect(),
            filter: route.filter.clone(),
            mode: route.mode,
        }
    }

    fn topic_text(&self, id: TopicId) -> String {
        self.topics.get(&id).map_or_else(String::new, |topic| topic.state.name.to_string())
    }

    /// Makes a route, and the topics it leads to where they are missing. All that can be refused is, before.
    pub(super) fn create_route(&mut self, asked: &RouteInfo, out: &mut Output) -> Result<Reply, Refusal> {
        let name = Name::new(&asked.name).map_err(|error| refusals::invalid(&error))?;
        if let Some((_, route)) = self.routes.named(name.as_str()) {
            if self.route_info(route) == *asked {
                return Ok(Reply::Done);
            }
            let text =
                format!("route {name} exists and is another one; delete it first, or choose another name");
            return Err(Refusal::new(ErrorCode::AlreadyExists, text));
        }
        let targets = self.check_targets(asked)?;
        let from = self.topic_named(&asked.from)?;
        self.check_named(from)?;
        let made: Vec<&Name> =
            targets.iter().filter(|target| !self.topic_names.contains_key(*target)).collect();
        self.check_pattern_room(&made)?;
        if let Some(filter) = &asked.filter {
            check_filter(filter)?;
        }
        let max = self.limits.routes_max;
        if self.routes.count() as u64 >= max {
            return Err(refusals::limit("routes_max", max, "routes"));
        }
        let known: Vec<TopicId> =
            targets.iter().filter_map(|target| self.topic_names.get(target)).copied().collect();
        for &topic in &known {
            self.check_named(topic)?;
        }
        self.routes.check(from, &known, targets.len()).map_err(|tangle| self.tangled(&tangle))?;
        let max = self.limits.topics_max;
        if (self.topic_names.len() + targets.len() - known.len()) as u64 > max {
            return Err(refusals::limit("topics_max", max, "topics, with those that the route leads to"));
        }
        let mut to = Vec::with_capacity(targets.len());
        for target in targets {
            to.push(match self.topic_names.get(&target) {
                Some(id) => *id,
                None => self.create_topic(target, TopicSettings::default(), out)?,
            });
        }
        self.add_route(Route { name, from, to, filter: asked.filter.clone(), mode: asked.mode }, out);
        Ok(Reply::Done)
    }

    /// The names of the topics that a route is to lead to.
    fn check_targets(&self, asked: &RouteInfo) -> Result<Vec<Name>, Refusal> {
        let invalid = |text: String| Err(Refusal::new(ErrorCode::Invalid, text));
        if asked.to.is_empty() {
            return invalid("the route leads nowhere: name at least one topic".to_owned());
        }
        if asked.to.len() > ROUTE_TARGETS_MAX {
            let text = format!("a route to {} topics, the limit is {ROUTE_TARGETS_MAX}", asked.to.len());
            return Err(Refusal::new(ErrorCode::Limit, text));
        }
        let mut targets: Vec<Name> = Vec::with_capacity(asked.to.len());
        for target in &asked.to {
            let target = Name::new(target).map_err(|error| refusals::invalid(&error))?;
            if target.as_str() == asked.from {
                return invalid(format!("the route leads from topic {target} to itself; leave it out"));
            }
            if targets.contains(&target) {
                return invalid(format!("the route names topic {target} twice; leave one out"));
            }
            targets.push(target);
        }
        Ok(targets)
    }

    /// Refuses what is a pattern of names: messages are not published to it.
    fn check_named(&self, topic: TopicId) -> Result<(), Refusal> {
        match self.topics.get(&topic) {
            Some(topic) if topic.state.kind != TopicKind::Named => {
                let text =
                    format!("{} is a pattern; a route leads from one topic to others", topic.state.name);
                Err(Refusal::new(ErrorCode::Invalid, text))
            }
            _ => Ok(()),
        }
    }

    fn tangled(&self, tangle: &Tangle) -> Refusal {
        match tangle {
            Tangle::Circle(topics) => {
                let path: Vec<String> = topics.iter().map(|topic| self.topic_text(*topic)).collect();
                let text = format!("messages would go round in a circle: {}", path.join(" -> "));
                Refusal::new(ErrorCode::Invalid, text)
            }
            Tangle::Steps(steps) => {
                let text = format!(
                    "messages would pass {steps} routes one behind the other, the limit is {ROUTE_STEPS_MAX}; \
                     lead from an earlier topic"
                );
                Refusal::new(ErrorCode::Limit, text)
            }
            Tangle::Copies(topic, copies) => {
                let text = format!(
                    "a message published to topic {} would get up to {copies} copies, the limit is \
                     {ROUTE_COPIES_MAX}; several groups of one topic need no copies",
                    self.topic_text(*topic)
                );
                Refusal::new(ErrorCode::Limit, text)
            }
        }
    }

    fn add_route(&mut self, rule: Route, out: &mut Output) {
        let route = self.next.route;
        self.next.route = route.next();
        out.records.push(Record::RouteCreated { route, rule: rule.clone() });
        self.routes.insert(route, rule);
    }

    pub(super) fn delete_route(&mut self, name: &str, out: &mut Output) -> Result<Reply, Refusal> {
        Name::new(name).map_err(|error| refusals::invalid(&error))?;
        let Some((route, _)) = self.routes.named(name) else {
            return Err(Refusal::new(ErrorCode::UnknownRoute, format!("there is no route {name:?}")));
        };
        self.routes.remove(route);
        out.records.push(Record::RouteDeleted { route });
        Ok(Reply::Done)
    }

    /// Takes a topic that is about to be deleted out of all routes. Its own go, and so do those that led nowhere
    /// else; others lead to what is left.
    pub(super) fn forget_routes_of(&mut self, topic: TopicId, out: &mut Output) {
        for route in self.routes.touching(topic) {
            let Some(mut rule) = self.routes.remove(route) else { continue };
            out.records.push(Record::RouteDeleted { route });
            rule.to.retain(|to| *to != topic);
            if rule.from != topic && !rule.to.is_empty() {
                self.add_route(rule, out);
            }
        }
    }
}

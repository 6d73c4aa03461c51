//! Every key of the configuration, and where its value goes.
//!
//! One table serves the file, the environment and the flags, so that they cannot differ. A value is a list of
//! texts: one for everything but lists. `[limits]` is not repeated here: its keys come from the table of limits.

use std::time::Duration;

use super::value::{self, Host, ValueError};
use super::{Config, KeepConverted, LogFormat, LogSettings};
use crate::ha::fence::FenceRead;
use crate::model::limits::{LIMITS, LimitRow};
use crate::model::mode::Mode;
use crate::model::name::Name;
use crate::model::settings::Policy;
use crate::protocol::{ADMIN_PORT, CLIENT_PORT};

/// Settings while they are being put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The node's settings. The name counts only where `node_named` says so, and `advertise` stands beside them.
    pub config: Config,
    /// Whether the node was given a name.
    pub node_named: bool,
    /// The address for clients; a port that it leaves open is that of the first of `listen`, known at the end.
    pub advertise: Option<Host>,
    /// The log's settings.
    pub log: LogSettings,
}

/// A key that can be set.
#[derive(Clone, Copy, Debug)]
pub enum Key {
    /// A key of the node.
    Node(&'static NodeKey),
    /// A key of the table `[limits]`.
    Limit(&'static LimitRow),
}

/// A key of the node, and how its value is read.
#[derive(Debug)]
pub struct NodeKey {
    /// The key, its table in front: `group_defaults.lease`.
    pub name: &'static str,
    set: fn(&mut Draft, &[String]) -> Result<(), ValueError>,
}

/// The table of the limits.
pub const LIMITS_TABLE: &str = "limits";

/// The table of the floating addresses.
pub const ADDRESS_TABLE: &str = "address";

/// What the names of all variables begin with.
pub const VARIABLE_PREFIX: &str = "BATON_";

/// Variables beside those of the keys: the configuration file of a node, the servers of a client.
const OTHER_VARIABLES: [&str; 2] = ["BATON_CONFIG", "BATON_SERVER"];

/// Likeness (0 to 1) from which on a key may have been meant.
const LIKENESS_MIN: f64 = 0.85;

const MODES: &[(&str, Mode)] = &[("database", Mode::Database), ("file", Mode::File)];
const FENCE_READS: &[(&str, FenceRead)] = &[("reopen", FenceRead::Reopen), ("direct", FenceRead::Direct)];
const LOG_FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
/// The words for the policies of a group.
pub const POLICIES: &[(&str, Policy)] = &[("round-robin", Policy::RoundRobin), ("fair", Policy::Fair)];

macro_rules! keys {
    ($($name:literal: |$draft:ident, $text:ident| $set:expr;)*) => {
        &[$(NodeKey { name: $name, set: |$draft, texts| { let $text = one(texts)?; $set; Ok(()) } },)*]
    };
}

/// The keys with one value. Those with a list are beside them.
static SINGLE: &[NodeKey] = keys! {
    "node": |draft, text| { draft.config.node = name(text)?; draft.node_named = true };
    "store": |draft, text| draft.config.store = text.into();
    "mode": |draft, text| draft.config.mode = Some(value::choice(text, MODES)?);
    "keep_converted": |draft, text| {
        draft.config.keep_converted = if value::switch(text)? { KeepConverted::Yes } else { KeepConverted::No };
    };
    "create_store": |draft, text| draft.config.create_store = value::switch(text)?;
    "store_id": |draft, text| draft.config.store_id = Some(value::id(text)?);
    "allow_unfit_storage": |draft, text| draft.config.allow_unfit_storage = value::switch(text)?;
    "advertise": |draft, text| draft.advertise = Some(value::host(text)?);
    "admin": |draft, text| draft.config.admin = value::listen_if_any(text, ADMIN_PORT)?;
    "allow_anonymous": |draft, text| draft.config.allow_anonymous = value::switch(text)?;
    "poll_interval": |draft, text| draft.config.poll_interval = value::duration(text)?;
    "heartbeat": |draft, text| draft.config.heartbeat = value::duration(text)?;
    "drain_timeout": |draft, text| draft.config.drain_timeout = value::duration(text)?;
    "auto_create": |draft, text| draft.config.auto_create = value::switch(text)?;
    "disk_free_min": |draft, text| draft.config.disk_free_min = value::free_min(text)?;
    "segment_bytes": |draft, text| draft.config.segment_bytes = value::size(text)?;
    "fence_read": |draft, text| draft.config.fence_read = value::choice(text, FENCE_READS)?;
    "log": |draft, text| draft.log.filter = text.to_owned();
    "log_format": |draft, text| draft.log.format = value::choice(text, LOG_FORMATS)?;
    "address.interface": |draft, text| draft.config.address.interface = text.trim().to_owned();
    "address.announce_interval": |draft, text| draft.config.address.announce_interval = value::duration(text)?;
    "group_defaults.policy": |draft, text| draft.config.group_defaults.policy = value::choice(text, POLICIES)?;
    "group_defaults.lease": |draft, text| draft.config.group_defaults.lease_ms = milliseconds(text)?;
    "group_defaults.max_attempts": |draft, text| draft.config.group_defaults.max_attempts = integer_32(text)?;
    "group_defaults.dead_letter": |draft, text| draft.config.group_defaults.dead_letter = Some(name(text)?);
    "group_defaults.backoff_initial":
        |draft, text| draft.config.group_defaults.backoff.initial_ms = milliseconds(text)?;
    "group_defaults.backoff_multiplier":
        |draft, text| draft.config.group_defaults.backoff.multiplier_percent = value::percent(text)?;
    "group_defaults.backoff_maximum":
        |draft, text| draft.config.group_defaults.backoff.maximum_ms = milliseconds(text)?;
    "group_defaults.backoff_jitter":
        |draft, text| draft.config.group_defaults.backoff.jitter_percent = value::percent(text)?;
};

/// The keys with a list.
static LISTS: &[NodeKey] = &[
    NodeKey {
        name: "listen",
        set: |draft, texts| {
            draft.config.listen =
                texts.iter().map(|text| value::listen(text, CLIENT_PORT)).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    NodeKey {
        name: "address.address",
        set: |draft, texts| {
            let texts = texts.iter().filter(|text| !text.trim().is_empty());
            draft.config.address.addresses = texts.map(|text| text.parse()).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
];

impl Key {
    /// Every key there is.
    pub fn all() -> impl Iterator<Item = Self> {
        SINGLE.iter().chain(LISTS).map(Self::Node).chain(LIMITS.iter().map(Self::Limit))
    }

    /// The key called `name` in `table`; the top of the file is the table `""`.
    #[must_use]
    pub fn find(table: &str, name: &str) -> Option<Self> {
        Self::all().find(|key| key.place() == (table, name))
    }

    /// The key that was probably meant by `name` in `table`.
    #[must_use]
    pub fn nearest(table: &str, name: &str) -> Option<String> {
        let written = joined(table, name);
        let likeness = |key: &Self| {
            let bare = strsim::jaro_winkler(name, key.place().1);
            bare.max(strsim::jaro_winkler(&written, &key.name()))
        };
        let nearest = Self::all().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
        (likeness(&nearest) >= LIKENESS_MIN).then(|| nearest.name())
    }

    /// The variable that was probably meant by one that sets nothing; `None` for one that is known or like none.
    #[must_use]
    pub fn nearest_variable(variable: &str) -> Option<String> {
        let known = Self::all().map(|key| key.variable()).chain(OTHER_VARIABLES.map(str::to_owned));
        let known: Vec<String> = known.collect();
        let name = variable.strip_prefix(VARIABLE_PREFIX)?;
        if known.iter().any(|known| known == variable) {
            return None;
        }
        // Without favour for a common beginning: that of a container system's SERVICE_HOST is that of SERVER.
        let likeness = |known: &String| strsim::jaro(name, &known[VARIABLE_PREFIX.len()..]);
        known
            .into_iter()
            .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
            .filter(|nearest| likeness(nearest) >= LIKENESS_MIN)
    }

    /// Table and name.
    #[must_use]
    pub fn place(&self) -> (&'static str, &'static str) {
        match self {
            Self::Node(key) => key.name.split_once('.').unwrap_or(("", key.name)),
            Self::Limit(row) => (LIMITS_TABLE, row.name),
        }
    }

    /// The key with its table in front.
    #[must_use]
    pub fn name(&self) -> String {
        let (table, name) = self.place();
        joined(table, name)
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name().replace('.', "_").to_ascii_uppercase())
    }

    /// Whether its value is a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self, Self::Node(key) if LISTS.iter().any(|list| list.name == key.name))
    }

    /// Sets it.
    ///
    /// # Errors
    /// Where the texts are no value for it.
    pub fn set(&self, draft: &mut Draft, texts: &[String]) -> Result<(), ValueError> {
        match self {
            Self::Node(key) => (key.set)(draft, texts),
            Self::Limit(row) => {
                let value = limit(row, one(texts)?)?;
                if let Some(field) = draft.config.limits.field_mut(row.name) {
                    *field = value;
                }
                Ok(())
            }
        }
    }
}

/// A table's name and a key's in one.
#[must_use]
pub fn joined(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

fn limit(row: &LimitRow, text: &str) -> Result<u64, ValueError> {
    match row.unit {
        "bytes" => value::size(text),
        "seconds" => value::integer(text).or_else(|_| value::duration(text).map(|time| time.as_secs())),
        _ => value::integer(text),
    }
}

fn one(texts: &[String]) -> Result<&str, ValueError> {
    match texts {
        [text] => Ok(text),
        _ => Err(ValueError::new(&texts.join(", "), "one value; it is not a list")),
    }
}

fn name(text: &str) -> Result<Name, ValueError> {
    Name::new(text).map_err(|error| ValueError::new(text, format!("a name: {error}")))
}

fn milliseconds(text: &str) -> Result<u64, ValueError> {
    let wait: Duration = value::duration(text)?;
    u64::try_from(wait.as_millis()).map_err(|_| ValueError::new(text, "a duration that fits into 64 bits"))
}

fn integer_32(text: &str) -> Result<u32, ValueError> {
    let wrong = |_| ValueError::new(text, "a whole number below 4294967296");
    u32::try_from(value::integer(text)?).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_keys_share_a_name_or_a_variable() {
        let names: BTreeSet<_> = Key::all().map(|key| key.name()).collect();
        let variables: BTreeSet<_> = Key::all().map(|key| key.variable()).collect();
        assert_eq!(names.len(), Key::all().count());
        assert_eq!(variables.len(), names.len());
    }

    /// A variable with a slip in its name was passed over without a word. Those that container systems set of their own
    /// accord for a service called baton must not raise an alarm.
    #[test]
    fn a_variable_with_a_slip_is_found_and_that_of_a_container_system_is_not() {
        for (variable, nearest) in [
            ("BATON_POLL_INTERVALL", "BATON_POLL_INTERVAL"),
            ("BATON_CONFIGG", "BATON_CONFIG"),
            ("BATON_LIMIT_TOPICS_MAX", "BATON_LIMITS_TOPICS_MAX"),
            ("BATON_GROUP_DEFAULT_LEASE", "BATON_GROUP_DEFAULTS_LEASE"),
        ] {
            assert_eq!(Key::nearest_variable(variable).as_deref(), Some(nearest));
        }
        for variable in [
            "BATON_LOG",
            "BATON_LOG_FORMAT",
            "BATON_CONFIG",
            "BATON_SERVER",
            "BATON_PORT",
            "BATON_PORT_7470_TCP",
            "BATON_PORT_7470_TCP_ADDR",
            "BATON_PORT_7470_TCP_PORT",
            "BATON_PORT_7470_TCP_PROTO",
            "BATON_SERVICE_HOST",
            "BATON_SERVICE_PORT",
            "BATON_SERVICE_PORT_CLIENT",
        ] {
            assert_eq!(Key::nearest_variable(variable), None, "{variable}");
        }
    }

    #[test]
    fn the_nearest_key_is_found_across_tables() {
        let nearest = |table, name| Key::nearest(table, name);
        assert_eq!(nearest("", "pol_interval").as_deref(), Some("poll_interval"));
        assert_eq!(nearest("", "topics_max").as_deref(), Some("limits.topics_max"));
        assert_eq!(nearest("limit", "topics_max").as_deref(), Some("limits.topics_max"));
        assert_eq!(nearest("group_defaults", "leese").as_deref(), Some("group_defaults.lease"));
        assert_eq!(nearest("", "colour_of_the_sky"), None);
    }
}

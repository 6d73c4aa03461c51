//! Puts the layers of a configuration one over the other: built-in values, file, environment, flags.
//!
//! Reads the file and nothing else; environment and flags are given by the caller. Variables that name no key are
//! not errors: container systems set `BATON_...` of their own accord for a service of that name. Those that are close to
//! one that does are told to the caller.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::key::{Draft, Key, joined};
use super::value::ValueError;
use super::{Config, LogSettings, check};
use crate::model::name::Name;

/// Where settings are taken from, besides the built-in values.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Environment variables, names and values. Those that name no key set nothing.
    pub environment: Vec<(String, String)>,
    /// Keys that flags set: flag, key, values.
    pub flags: Vec<(&'static str, Key, Vec<String>)>,
    /// Name of the host, which the node has where it is given no other.
    pub hostname: String,
    /// Files that the process may have open at a time; `None` for any number.
    pub open_files_max: Option<u64>,
}

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The node's settings.
    pub config: Config,
    /// The log's settings.
    pub log: LogSettings,
    /// What was made less than its built-in value, to be told once there is a log.
    pub lowered: Option<Lowered>,
    /// Variables that set nothing and were probably meant to, to be told once there is a log.
    pub misspelt: Vec<Misspelt>,
}

/// A variable that sets nothing, with a name close to that of one that does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable {variable} sets nothing; did you mean {nearest}?")]
pub struct Misspelt {
    /// The variable.
    pub variable: String,
    /// The variable that was probably meant.
    pub nearest: String,
}

/// The built-in number of connections did not fit into the files that the process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits.connections_max is lowered from its default {from} to {to}: the process may have only {open_files_max} \
     files open; to serve more connections raise that to {needed} (LimitNOFILE= of the service, or ulimit -n)"
)]
pub struct Lowered {
    /// The built-in value.
    pub from: u64,
    /// The value that fits.
    pub to: u64,
    /// Files that the process may have open.
    pub open_files_max: u64,
    /// Files that the built-in value needs.
    pub needed: u64,
}

/// Reads the sources and checks what comes out. Without a file, a store may be created.
///
/// # Errors
/// Names the place and the key of the first thing that is wrong, and what to do.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let unnamed = Name::new("node").map_err(ConfigError::Hostname)?;
    let mut layers = Layers {
        draft: Draft {
            config: Config::new(unnamed),
            node_named: false,
            advertise: None,
            log: LogSettings::default(),
        },
        origins: BTreeMap::new(),
    };
    match &sources.file {
        Some(path) => layers.file(path)?,
        None => layers.draft.config.create_store = true,
    }
    for (variable, text) in &sources.environment {
        if let Some(key) = Key::all().find(|key| key.variable() == *variable) {
            let texts = if key.is_list() {
                text.split(',').map(|text| text.trim().to_owned()).collect()
            } else {
                vec![text.clone()]
            };
            layers.set(key, &texts, Origin::Environment(variable.clone()))?;
        }
    }
    for (flag, key, texts) in &sources.flags {
        layers.set(*key, texts, Origin::Flag(flag))?;
    }
    let misspelt = sources.environment.iter().filter_map(|(variable, _)| {
        Some(Misspelt { variable: variable.clone(), nearest: Key::nearest_variable(variable)? })
    });
    Ok(Loaded { misspelt: misspelt.collect(), ..layers.finish(&sources.hostname, sources.open_files_max)? })
}

struct Layers {
    draft: Draft,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let lines = Lines { path, text: &text };
        let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            line: lines.number(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        self.table("", table.get_ref(), &lines)
    }

    /// Takes the keys of one table in the order of the file, so that the first error is the first in the file.
    fn table(&mut self, table: &str, keys: &DeTable<'_>, lines: &Lines<'_>) -> Result<(), ConfigError> {
        let mut keys: Vec<_> = keys.iter().collect();
        keys.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in keys {
            let origin = lines.origin(name);
            let name = name.get_ref().as_ref();
            let key = Key::find(table, name);
            if let (None, Some(inner)) = (key, value.get_ref().as_table()) {
                let known = Key::all().any(|key| key.place().0 == joined(table, name));
                if known || !inner.is_empty() {
                    self.table(&joined(table, name), inner, lines)?;
                    continue;
                }
            }
            let Some(key) = key else {
                let nearest = Key::nearest(table, name);
                return Err(ConfigError::UnknownKey { origin, key: joined(table, name), nearest });
            };
            let texts = texts(value).map_err(|source| ConfigError::Value {
                origin: origin.clone(),
                key: key.name(),
                source,
            })?;
            self.set(key, &texts, origin)?;
        }
        Ok(())
    }

    fn set(&mut self, key: Key, texts: &[String], origin: Origin) -> Result<(), ConfigError> {
        key.set(&mut self.draft, texts).map_err(|source| ConfigError::Value {
            origin: origin.clone(),
            key: key.name(),
            source,
        })?;
        self.origins.insert(key.name(), origin);
        Ok(())
    }

    fn finish(mut self, hostname: &str, open_files_max: Option<u64>) -> Result<Loaded, ConfigError> {
        if !self.draft.node_named {
            self.draft.config.node = Name::new(hostname).map_err(ConfigError::Hostname)?;
        }
        if let (Some(host), Some(first)) = (&self.draft.advertise, self.draft.config.listen.first()) {
            self.draft.config.advertise = Some(host.or_port(first.port()));
        }
        let lowered = open_files_max.and_then(|most| self.lower_connections(most));
        check::check(&self.draft.config)
            .and_then(|()| check::open_files(&self.draft.config.limits, open_files_max))
            .map_err(|(key, problem)| ConfigError::Contradiction {
                origin: self.origins.remove(&key).unwrap_or(Origin::BuiltIn),
                key,
                problem: Box::new(problem),
            })?;
        Ok(Loaded { config: self.draft.config, log: self.draft.log, lowered, misspelt: Vec::new() })
    }

    /// Lowers the number of connections to what the process may have open, where it was not configured: somebody who
    /// asked for it must get it, or hear why not.
    fn lower_connections(&mut self, open_files_max: u64) -> Option<Lowered> {
        let limits = &mut self.draft.config.limits;
        let (from, needed, to) =
            (limits.connections_max, limits.open_files(), check::connections_within(open_files_max)?);
        if needed <= open_files_max || self.origins.contains_key(check::CONNECTIONS_KEY) {
            return None;
        }
        limits.connections_max = to;
        Some(Lowered { from, to, open_files_max, needed })
    }
}

/// The text of a file, to count lines in.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn number(&self, position: usize) -> usize {
        1 + self.text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count()
    }

    fn origin<T>(&self, place: &Spanned<T>) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.number(place.span().start) }
    }
}

/// A value of the file as the texts that the keys read.
fn texts(value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, ValueError> {
    match value.get_ref() {
        DeValue::Array(values) => values.iter().map(scalar).collect(),
        _ => Ok(vec![scalar(value)?]),
    }
}

fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, ValueError> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| ValueError::new(number.as_str(), "a number of at most 64 bits")),
        DeValue::Float(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Boolean(switch) => Ok(switch.to_string()),
        other => Err(ValueError::new(other.type_str(), "a text, a number, or true or false")),
    }
}

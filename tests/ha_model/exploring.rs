//! The exploration of a world, and what is made of it.

use std::env;

use stateright::{Checker, HasDiscoveries, Model};

use super::properties::Reach;
use super::setting::{Locks, Mode, Rules, Setting, Size};
use super::state::State;

/// Threads of an exploration. Tests run beside each other, too.
const THREADS: usize = 2;

/// Whether the large worlds are asked for.
pub fn is_full() -> bool {
    env::var_os("BATON_MODEL").is_some_and(|wanted| wanted == "full")
}

/// Asserts that the rules as written keep every property, and that all is reached that must be.
pub fn assert_holds(mode: Mode, locks: Locks, size: Size) {
    explore(Setting { mode, locks, size, rules: Rules::AsWritten, reach: Reach::Asked });
}

/// Asserts that the rules keep every property, whatever they reach.
pub fn assert_is_spare(mode: Mode, locks: Locks, size: Size, rules: Rules) {
    explore(Setting { mode, locks, size, rules, reach: Reach::NotAsked });
}

fn explore(setting: Setting) {
    let all = setting.checker().symmetry_fn(State::with_takers_sorted).threads(THREADS).spawn_dfs().join();
    println!("{setting:?}: {} states, {} different", all.state_count(), all.unique_state_count());
    let is_violated = |name| all.discovery_classification(name).to_string() == "counterexample";
    if all.discoveries().into_keys().any(is_violated) {
        // Again, breadth first, for the shortest way there.
        let first = setting.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        first.assert_properties();
    }
    all.assert_properties();
}

/// Asserts that these rules are found to break a property.
pub fn assert_breaks(mode: Mode, size: Size, rules: Rules, property: &'static str) {
    let setting = Setting { mode, locks: Locks::Lie, size, rules, reach: Reach::NotAsked };
    let wanted = HasDiscoveries::AllOf([property].into());
    let checker = setting.checker().symmetry_fn(State::with_takers_sorted).finish_when(wanted);
    let checker = checker.spawn_dfs().join();
    let found = checker.discovery(property);
    assert!(
        found.is_some(),
        "{setting:?}: {} states, and no violation of: {property}",
        checker.state_count()
    );
}

//! The units of the service manager: it understands them, they allow as little as promised, and the two agree.
//!
//! `systemd-analyze` comes with systemd; no service manager has to run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What `systemd-analyze security` may find at most, in tenths: of 10 points, 1.5.
const EXPOSURE_MAX: &str = "15";
/// The same with a floating address: 2.5.
const EXPOSURE_WITH_ADDRESS_MAX: &str = "25";

fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).unwrap()
}

/// Unit files as they are installed, but with this program in place of the installed one.
struct Units(TempDir);

impl Units {
    fn new() -> Self {
        let units = Self(tempfile::tempdir().unwrap());
        for name in ["baton.service", "baton@.service"] {
            let text = shipped(name);
            assert!(text.contains("=/usr/bin/baton serve "));
            fs::write(units.path(name), text.replace("/usr/bin/baton", env!("CARGO_BIN_EXE_baton"))).unwrap();
        }
        units
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `systemd-analyze` on a unit, and gives back what it says where it finds fault with it.
    fn analyze(&self, args: &[&str], name: &str) -> Result<String, String> {
        let output = Command::new("systemd-analyze").args(args).arg(self.path(name)).output();
        let output = output.expect("systemd-analyze: install systemd");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    }
}

#[test]
fn the_service_manager_understands_the_units() {
    let units = Units::new();
    for name in ["baton.service", "baton@.service"] {
        // It also says what it does not know, and goes on.
        assert_eq!(units.analyze(&["verify", "--man=no"], name), Ok(String::new()));
    }
    let odd = shipped("baton.service").replace("WatchdogSec=60s", "WatchdogSec=soon\nBatonSec=1");
    fs::write(units.path("odd.service"), odd).unwrap();
    let said = units.analyze(&["verify", "--man=no"], "odd.service").unwrap_or_else(|said| said);
    assert!(said.contains("soon") && said.contains("BatonSec"), "{said}");
}

#[test]
fn the_units_allow_little() {
    let units = Units::new();
    for name in ["baton.service", "baton@.service"] {
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        units.analyze(&["security", "--offline=true", "--no-pager", &threshold], name).unwrap();
    }
}

#[test]
fn with_a_floating_address_the_unit_allows_little_more() {
    let units = Units::new();
    let unit = fs::read_to_string(units.path("baton.service")).unwrap();
    let more = shipped("../docs/examples/floating-address.conf");
    let more = more.replace("/usr/bin/baton", env!("CARGO_BIN_EXE_baton"));
    // What a drop-in says comes behind the unit.
    let both = unit.replace("[Install]", &format!("{more}\n[Install]"));
    fs::write(units.path("baton.service"), both).unwrap();
    assert_eq!(units.analyze(&["verify", "--man=no"], "baton.service"), Ok(String::new()));
    let threshold = format!("--threshold={EXPOSURE_WITH_ADDRESS_MAX}");
    let said = units.analyze(&["security", "--offline=true", "--no-pager", &threshold], "baton.service");
    println!("{}", said.unwrap().lines().last().unwrap_or_default());
}

/// Settings of a unit, without comments.
fn settings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_unit_of_several_pairs_is_the_one_of_a_single_pair() {
    let single = shipped("baton.service")
        .replace("Baton message broker", "Baton message broker (%i)")
        .replace("/var/lib/baton/main", "/var/lib/baton/%i")
        .replace("var-lib-baton-main", "var-lib-baton-%i")
        .replace("/etc/baton/baton.toml", "/etc/baton/%i.toml");
    assert_eq!(settings(&single), settings(&shipped("baton@.service")));
}

/// Each attempt at a damaged store claims an epoch. The codes are those of `baton --help`.
#[test]
fn what_does_not_get_better_by_trying_is_not_tried() {
    for name in ["baton.service", "baton@.service"] {
        assert!(settings(&shipped(name)).contains(&"RestartPreventExitStatus=2 4"), "{name}");
    }
}

/// The unit promises room for all connections of the built-in configuration.
#[test]
fn the_open_files_are_enough() {
    let unit = shipped("baton.service");
    let files = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
    let connections = batonmq::model::limits::Limits::default().connections_max;
    assert!(files.parse::<u64>().unwrap() >= connections + 162);
}

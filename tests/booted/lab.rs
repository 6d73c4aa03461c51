//! Two booted systems on a bridge, with one disk between them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::host::Host;

/// What is in the systems beside the essential packages.
const PACKAGES: &str = "systemd,dbus,iproute2";

/// Runs a command that has to succeed.
pub fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The folder of what is built.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// The package that is installed.
pub fn package() -> PathBuf {
    let found = fs::read_dir(target().join("debian")).into_iter().flatten();
    let mut found: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    match &found[..] {
        [one] => one.clone(),
        _ => panic!("one package in {}: build it with systemd/package", target().join("debian").display()),
    }
}

/// A system as Debian installs it, of the release that this one is. It is made once, and kept: whoever wants it while it
/// is being made waits.
fn system() -> &'static Path {
    static SYSTEM: OnceLock<PathBuf> = OnceLock::new();
    SYSTEM.get_or_init(made_system)
}

fn made_system() -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap();
    let system = target().join("systems").join(name);
    if !system.exists() {
        let half_made = tempfile::tempdir_in(target()).unwrap();
        let include = format!("--include={PACKAGES}");
        done(Command::new("debootstrap").args(["--variant=minbase", &include, name]).arg(half_made.path()));
        fs::create_dir_all(system.parent().unwrap()).unwrap();
        fs::rename(half_made.keep(), &system).unwrap();
    }
    system
}

/// The two systems, and the network that only they and the clients of the test are in.
pub struct Lab {
    network: String,
    pub hosts: [Host; 2],
    // Last: what the hosts are in goes after them.
    _dir: TempDir,
}

impl Lab {
    /// Boots both.
    pub fn boot(name: &str) -> Self {
        let system = system();
        let dir = tempfile::tempdir_in(target()).unwrap();
        let network = format!("baton-{}-{name}", std::process::id());
        done(Command::new("ip").args(["netns", "add", &network]));
        let inside = |args: &[&str]| {
            done(Command::new("ip").args(["-n", &network]).args(args));
        };
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "add", "bridge", "type", "bridge"]);
        inside(&["addr", "add", "10.77.0.100/24", "dev", "bridge"]);
        inside(&["addr", "add", "fd77::100/64", "dev", "bridge", "nodad"]);
        inside(&["link", "set", "bridge", "up"]);
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let hosts = [("a", 1), ("b", 2)].map(|(name, number)| {
            Host::new(name, Ipv4Addr::new(10, 77, 0, number), system, dir.path(), &shared, &network)
        });
        let mut lab = Self { network, hosts, _dir: dir };
        lab.hosts.iter_mut().for_each(Host::boot);
        lab
    }

    /// The addresses of both hosts, as a client may be given them.
    pub fn servers(&self) -> String {
        self.hosts.each_ref().map(|host| format!("{}:7470", host.address)).join(",")
    }

    /// A client command, in the network of the two.
    pub fn client(&self, servers: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.network)).arg(env!("CARGO_BIN_EXE_baton")).args(args);
        command.env("BATON_SERVER", servers).stdin(Stdio::null());
        command
    }

    /// What both systems have logged.
    pub fn logs(&self) -> String {
        self.hosts.iter().map(|host| format!("--- {}\n{}", host.name, host.log())).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.hosts.iter_mut().for_each(Host::power_off);
        let _ = Command::new("ip").args(["netns", "delete", &self.network]).status();
    }
}

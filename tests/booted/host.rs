//! A booted system: `systemd-nspawn` with an overlay over the system that all have in common.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::done;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// The interface to the network.
pub const INTERFACE: &str = "host0";

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// A system, booted or not.
pub struct Host {
    pub name: &'static str,
    pub address: Ipv4Addr,
    root: PathBuf,
    shared: PathBuf,
    network: String,
    /// The process that runs it.
    running: Option<Child>,
}

impl Host {
    /// One that is not booted yet.
    pub fn new(
        name: &'static str,
        address: Ipv4Addr,
        system: &Path,
        dir: &Path,
        shared: &Path,
        network: &str,
    ) -> Self {
        let folders = ["root", "upper", "work"].map(|folder| dir.join(format!("{name}-{folder}")));
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let [root, upper, work] = folders;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", system.display(), upper.display(), work.display());
        done(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&root));
        Self { name, address, root, shared: shared.to_owned(), network: network.to_owned(), running: None }
    }

    /// Boots it, and waits until it is up.
    pub fn boot(&mut self) {
        let log = fs::File::create(self.root.with_extension("console")).unwrap();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.network))
            .args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"])
            .args([
                "--network-bridge=bridge",
                &format!("--machine={}", self.name),
                &format!("--hostname={}", self.name),
            ])
            .arg(format!("--directory={}", self.root.display()))
            .arg(format!("--bind={}:/var/lib/baton/main", self.shared.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(child);
        wait_until("a booted system", || {
            self.first().is_some() && {
                let state = self.exec(&["systemctl", "is-system-running"]);
                // Some unit of the system that has nothing to do with this may fail in a container.
                matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded")
            }
        });
        self.run(&["ip", "addr", "add", &format!("{}/24", self.address), "dev", INTERFACE]);
        let v6 = format!("fd77::{}/64", self.address.octets()[3]);
        self.run(&["ip", "addr", "add", &v6, "dev", INTERFACE, "nodad"]);
        self.run(&["ip", "link", "set", INTERFACE, "up"]);
    }

    /// Whether it has power.
    pub fn is_booted(&self) -> bool {
        self.running.is_some()
    }

    /// Its first process. Until it boots that is one that only prepares it.
    fn first(&self) -> Option<Pid> {
        let runner = self.running.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{runner}/task/{runner}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }

    /// Runs a command in it.
    pub fn exec(&self, args: &[&str]) -> Output {
        let first = self.first().expect("a booted system").as_raw_nonzero().to_string();
        Command::new("nsenter").args(["--all", "--target", &first, "--"]).args(args).output().unwrap()
    }

    /// Runs a command in it that has to succeed, and gives back what it says.
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.exec(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// A property of the unit of the node.
    pub fn unit(&self, property: &str) -> String {
        self.run(&["systemctl", "show", "--value", "--property", property, "baton"]).trim().to_owned()
    }

    /// Waits until the node says that it is this.
    pub fn wait_for_status(&self, status: &str) {
        wait_until(&format!("{}: {status}", self.name), || self.unit("StatusText").starts_with(status));
    }

    /// Whether it has an address, beside its own.
    pub fn has(&self, address: &str) -> bool {
        self.run(&["ip", "-oneline", "addr", "show", "dev", INTERFACE]).contains(&format!(" {address}/"))
    }

    /// What the node has logged.
    pub fn log(&self) -> String {
        match self.running {
            Some(_) => self.run(&["journalctl", "--unit=baton", "--no-pager", "--output=short-precise"]),
            None => "powered off\n".to_owned(),
        }
    }

    /// A path in it, as seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Takes its power away.
    pub fn power_off(&mut self) {
        let first = self.first();
        let Some(mut runner) = self.running.take() else { return };
        // With the first process all of its name space are gone. What runs it would not take it along.
        if let Some(first) = first {
            let _ = kill_process(first, Signal::KILL);
        }
        let _ = runner.kill();
        let _ = runner.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_off();
        let _ = Command::new("umount").arg("--lazy").arg(&self.root).status();
    }
}

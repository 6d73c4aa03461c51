//! Two booted systems with a disk between them: the package is installed, the units are started and stopped, a node is
//! killed, one hangs, one system loses its power, and nothing that was confirmed is lost.
//!
//! Needs root, `systemd-nspawn`, `debootstrap`, and the package: `systemd/package && cargo test --test booted`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host;
mod lab;

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use host::wait_until;
use lab::{Lab, done, package};

/// Time between two messages.
const PACE: Duration = Duration::from_millis(2);

/// Somebody who publishes numbers as long as it is wanted.
struct Publisher {
    process: Child,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writing: JoinHandle<()>,
}

impl Publisher {
    fn start(lab: &Lab) -> Self {
        let args = ["publish", "numbers", "--lines", "-", "--timeout", "90s"];
        let mut process = lab.client(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = process.stdin.take().unwrap();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let writing = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                writeln!(input, "{}", count.load(Ordering::Acquire)).unwrap();
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(PACE);
            }
        });
        Self { process, stop, written, writing }
    }

    /// Lets it come to its end: everything is confirmed. Gives back how many.
    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.writing.join().unwrap();
        assert!(self.process.wait().unwrap().success(), "not everything is confirmed");
        self.written.load(Ordering::Acquire)
    }
}

/// Edits the configuration as its operator does: comment signs go, values change.
fn configure(lab: &Lab, mode: &str) {
    for host in &lab.hosts {
        let path = host.path("/etc/baton/baton.toml");
        let mut text = fs::read_to_string(&path).unwrap();
        for (key, value) in [
            ("node", format!("{:?}", host.name)),
            ("mode", format!("{mode:?}")),
            ("create_store", "true".to_owned()),
            ("listen", "[\"0.0.0.0:7470\"]".to_owned()),
            ("advertise", format!("\"{}\"", host.address)),
            ("allow_anonymous", "true".to_owned()),
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("#{key} = "))).unwrap().to_owned();
            text = text.replacen(&line, &format!("{key} = {value}"), 1);
        }
        fs::write(&path, text).unwrap();
        // As shipped, a node that hangs is taken for dead after a minute.
        let drop_in = host.path("/etc/systemd/system/baton.service.d");
        fs::create_dir_all(&drop_in).unwrap();
        fs::write(drop_in.join("test.conf"), "[Service]\nWatchdogSec=3s\n").unwrap();
        host.run(&["systemctl", "daemon-reload"]);
    }
}

fn install(lab: &Lab) {
    for host in &lab.hosts {
        fs::copy(package(), host.path("/root/baton.deb")).unwrap();
        let said = host.run(&["dpkg", "--install", "/root/baton.deb"]);
        assert!(said.contains("systemctl enable --now baton"), "{said}");
        assert_eq!(host.unit("ActiveState"), "inactive", "nothing is started unasked");
        assert!(host.run(&["baton", "--version"]).starts_with("baton "));
        host.run(&["test", "-f", "/usr/share/man/man1/baton-serve.1.gz"]);
        host.run(&["test", "-f", "/usr/share/bash-completion/completions/baton"]);
    }
}

fn a_pair_goes_through_everything(mode: &str) {
    let mut lab = Lab::boot(mode);
    install(&lab);
    // As installed it is on its own: no store is made, and nobody beyond the host is served.
    lab.hosts[0].exec(&["systemctl", "start", "baton"]);
    wait_until("a word about the store", || lab.hosts[0].log().contains("create_store"));
    lab.hosts[0].run(&["systemctl", "stop", "baton"]);
    configure(&lab, mode);

    lab.hosts[0].run(&["systemctl", "enable", "--now", "baton"]);
    lab.hosts[0].wait_for_status("master, epoch 1");
    lab.hosts[1].run(&["systemctl", "enable", "--now", "baton"]);
    lab.hosts[1].wait_for_status("standby");
    let publisher = Publisher::start(&lab);
    let more = || {
        let before = publisher.written.load(Ordering::Acquire);
        wait_until("messages", || publisher.written.load(Ordering::Acquire) > before + 100);
    };
    more();

    // Stopped: it hands over.
    lab.hosts[0].run(&["systemctl", "stop", "baton"]);
    lab.hosts[1].wait_for_status("master, epoch 2");
    assert_eq!(lab.hosts[0].unit("Result"), "success");
    lab.hosts[0].run(&["systemctl", "start", "baton"]);
    lab.hosts[0].wait_for_status("standby");
    more();

    // Asked to change places: it comes back by itself as standby.
    done(&mut lab.client(&["switchover"]));
    lab.hosts[0].wait_for_status("master, epoch 3");
    lab.hosts[1].wait_for_status("standby");
    more();

    // Killed: the other takes over, and it comes back by itself.
    lab.hosts[0].run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "baton"]);
    lab.hosts[1].wait_for_status("master, epoch 4");
    lab.hosts[0].wait_for_status("standby");
    more();

    // It hangs: nobody feeds the watchdog, it is killed, and the other takes over.
    lab.hosts[1].run(&["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "baton"]);
    lab.hosts[0].wait_for_status("master, epoch 5");
    lab.hosts[1].wait_for_status("standby");
    assert!(lab.hosts[1].log().contains("Watchdog timeout"), "{}", lab.logs());
    more();

    // Upgraded: what runs goes on running.
    let before = lab.hosts[0].unit("MainPID");
    let said = lab.hosts[0].run(&["dpkg", "--install", "/root/baton.deb"]);
    assert!(said.contains("Restart the standby first"), "{said}");
    assert_eq!(lab.hosts[0].unit("MainPID"), before);
    assert_eq!(lab.hosts[0].unit("StatusText"), "master, epoch 5");

    // The power of its host goes.
    lab.hosts[0].power_off();
    lab.hosts[1].wait_for_status("master, epoch 6");
    more();
    lab.hosts[0].boot();
    lab.hosts[0].wait_for_status("standby");

    let count = publisher.finish();
    let args = ["consume", "numbers", "--group", "g", "--from", "earliest", "--count", &count.to_string()];
    let consumed = done(&mut lab.client(&args));
    let expected: String = (0..count).map(|number| format!("{number}\n")).collect();
    assert!(String::from_utf8_lossy(&consumed.stdout) == expected, "{}", lab.logs());

    // The journal knows what is urgent.
    let warnings = lab.hosts[0].run(&["journalctl", "--unit=baton", "--priority=warning", "--no-pager"]);
    assert!(!warnings.contains("INFO") && !warnings.contains(": master "), "{warnings}");
    println!("{}", lab.logs());

    // What is removed leaves the store alone.
    lab.hosts[1].run(&["dpkg", "--purge", "baton"]);
    lab.hosts[0].wait_for_status("master, epoch 7");
    assert!(lab.hosts[1].path("/var/lib/baton").exists());
}

#[test]
fn a_pair_goes_through_everything_in_file_mode() {
    a_pair_goes_through_everything("file");
}

#[test]
fn a_pair_goes_through_everything_in_database_mode() {
    a_pair_goes_through_everything("database");
}

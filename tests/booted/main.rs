//! Two booted systems with a disk between them: the package is installed, the units are started and stopped, that of a
//! second pair too, a node is killed, one hangs, one system loses its power, and nothing that was confirmed is lost. Clients in the network of the
//! two reach them by their addresses, or by nothing but the floating ones, which always are where the master is.
//!
//! Needs root, `systemd-nspawn`, `debootstrap`, and the package: `systemd/package && cargo test --test booted`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host;
mod lab;
mod traffic;

use std::fs;

use host::{Host, INTERFACE, wait_until};
use lab::{Lab, done, package};
use traffic::Traffic;

/// Addresses that follow the master.
const FLOATING: [&str; 2] = ["10.77.0.10", "fd77::10"];

/// What `systemd-analyze security` may find at most, in tenths: of 10 points, 2.5.
const EXPOSURE_MAX: &str = "--threshold=25";

/// Edits the configuration as its operator does: comment signs go, values change.
fn configure(lab: &Lab, mode: &str) {
    for host in &lab.hosts {
        let path = host.path("/etc/baton/baton.toml");
        let mut text = fs::read_to_string(&path).unwrap();
        for (key, value) in [
            ("node", format!("{:?}", host.name)),
            ("mode", format!("{mode:?}")),
            ("create_store", "true".to_owned()),
            ("listen", "[\"[::]:7470\"]".to_owned()),
            ("advertise", format!("\"{}\"", host.address)),
            ("allow_anonymous", "true".to_owned()),
            ("address", format!("{FLOATING:?}")),
            ("interface", format!("{INTERFACE:?}")),
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("#{key} = "))).unwrap().to_owned();
            text = text.replacen(&line, &format!("{key} = {value}"), 1);
        }
        fs::write(&path, text).unwrap();
        // As shipped, a node that hangs is taken for dead after a minute.
        let drop_in = host.path("/etc/systemd/system/baton.service.d");
        fs::create_dir_all(&drop_in).unwrap();
        fs::write(drop_in.join("test.conf"), "[Service]\nWatchdogSec=3s\n").unwrap();
        // What the package brings for a node with floating addresses.
        let shipped = host.path("/usr/share/doc/baton/docs/examples/floating-address.conf");
        fs::copy(shipped, drop_in.join("address.conf")).unwrap();
        host.run(&["systemctl", "daemon-reload"]);
    }
}

/// The addresses are where the master is, and nowhere else.
fn addresses_are_at(master: &Host, other: Option<&Host>) {
    for address in FLOATING {
        wait_until(&format!("{address} at {}", master.name), || master.has(address));
        if let Some(other) = other {
            wait_until(&format!("{address} not at {}", other.name), || !other.has(address));
        }
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

/// A second pair beside the first one, as the template unit has it. One of its nodes says enough.
fn a_second_pair_has_its_own_store(host: &Host) {
    let text = fs::read_to_string(host.path("/etc/baton/baton.toml")).unwrap();
    let own = [
        ("store", "\"/var/lib/baton/orders\""),
        ("listen", "[\"[::]:7570\"]"),
        ("advertise", "\"127.0.0.1:7570\""),
        ("address", "[]"),
    ];
    let changed = own.iter().fold(text, |text, (key, value)| {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap().to_owned();
        text.replacen(&line, &format!("{key} = {value}"), 1)
    });
    fs::write(host.path("/etc/baton/orders.toml"), changed).unwrap();
    let store = "/var/lib/baton/orders";
    host.run(&["install", "--directory", "--owner=baton", "--group=baton", "--mode=0700", store]);
    host.run(&["systemctl", "start", "baton@orders"]);
    let status = || host.run(&["systemctl", "status", "--no-pager", "baton@orders"]);
    wait_until("a master of the second pair", || status().contains("Status: \"master, epoch 1\""));
    host.run(&["systemctl", "stop", "baton@orders"]);
}

/// A node whose mount had gone stayed away when that was there again: a dependency that fails, or is stopped, is no reason
/// for a restart.
fn a_node_goes_with_its_mount_and_comes_with_it(standby: &Host) {
    let (store, elsewhere) = ("/var/lib/baton/main", "/mnt/shared");
    standby.run(&["mkdir", "--parents", elsewhere]);
    standby.run(&["mount", "--bind", store, elsewhere]);
    // As on a real host, where the file systems of others are mounted.
    fs::write(standby.path("/etc/fstab"), format!("{elsewhere} {store} none bind 0 0\n")).unwrap();
    standby.run(&["systemctl", "daemon-reload"]);
    standby.run(&["systemctl", "stop", "var-lib-baton-main.mount"]);
    assert_eq!(standby.unit("ActiveState"), "inactive");
    standby.run(&["mount", store]);
    wait_until("the node comes with its mount", || standby.unit("ActiveState") == "active");
    standby.wait_for_status("standby");
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
    for host in &lab.hosts {
        host.run(&["systemd-analyze", "security", "--no-pager", EXPOSURE_MAX, "baton"]);
    }
    a_second_pair_has_its_own_store(&lab.hosts[0]);
    let [v4, v6] = [format!("{}:7470", FLOATING[0]), format!("[{}]:7470", FLOATING[1])];
    let ways = [("by-list", lab.servers()), ("by-v4", v4), ("by-v6", v6)];
    let traffic = ways.map(|(topic, servers)| Traffic::start(&lab, topic, &servers));
    let goes_on = |lab: &Lab, master: usize, after: &str| {
        addresses_are_at(&lab.hosts[master], Some(&lab.hosts[1 - master]).filter(|host| host.is_booted()));
        traffic.iter().for_each(|traffic| traffic.goes_on(after));
    };
    goes_on(&lab, 0, "the start");

    // Stopped: it hands over.
    lab.hosts[0].run(&["systemctl", "stop", "baton"]);
    lab.hosts[1].wait_for_status("master, epoch 2");
    assert_eq!(lab.hosts[0].unit("Result"), "success");
    goes_on(&lab, 1, "a stop");
    lab.hosts[0].run(&["systemctl", "start", "baton"]);
    lab.hosts[0].wait_for_status("standby");

    // Asked to change places: it comes back by itself as standby.
    done(&mut lab.client(&lab.servers(), &["switchover"]));
    lab.hosts[0].wait_for_status("master, epoch 3");
    lab.hosts[1].wait_for_status("standby");
    goes_on(&lab, 0, "a switchover");

    // Killed: the other takes over, and it comes back by itself. What it left is cleared up before.
    lab.hosts[0].run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "baton"]);
    lab.hosts[1].wait_for_status("master, epoch 4");
    lab.hosts[0].wait_for_status("standby");
    goes_on(&lab, 1, "a kill");
    for address in FLOATING {
        let removed =
            format!("{address}/{} removed from {INTERFACE}", if address == FLOATING[0] { 32 } else { 128 });
        assert!(lab.hosts[0].log().contains(&removed), "{removed}: {}", lab.logs());
    }

    // It hangs: nobody feeds the watchdog, it is killed, and the other takes over.
    lab.hosts[1].run(&["systemctl", "kill", "--kill-whom=main", "--signal=STOP", "baton"]);
    lab.hosts[0].wait_for_status("master, epoch 5");
    lab.hosts[1].wait_for_status("standby");
    assert!(lab.hosts[1].log().contains("Watchdog timeout"), "{}", lab.logs());
    goes_on(&lab, 0, "a hang");

    // Upgraded: what runs goes on running.
    let before = lab.hosts[0].unit("MainPID");
    let said = lab.hosts[0].run(&["dpkg", "--install", "/root/baton.deb"]);
    assert!(said.contains("Restart the standby first"), "{said}");
    assert_eq!(lab.hosts[0].unit("MainPID"), before);
    assert_eq!(lab.hosts[0].unit("StatusText"), "master, epoch 5");

    // The power of its host goes.
    lab.hosts[0].power_off();
    lab.hosts[1].wait_for_status("master, epoch 6");
    goes_on(&lab, 1, "a loss of power");
    lab.hosts[0].boot();
    lab.hosts[0].wait_for_status("standby");
    goes_on(&lab, 1, "a boot");
    traffic.into_iter().for_each(|traffic| traffic.finish(&lab));

    a_node_goes_with_its_mount_and_comes_with_it(&lab.hosts[0]);

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

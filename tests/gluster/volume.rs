//! A GlusterFS volume of one brick, on a host of its own, and its mounts.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::hosts::{Host, Wire};
use crate::support::pair::PATIENCE;

/// Name of the volume.
pub const VOLUME: &str = "baton";
/// What makes a volume fit, and how soon it and its clients give each other up: as docs/operations.md has it.
pub const OPTIONS: [(&str, &str); 8] = [
    ("performance.stat-prefetch", "off"),
    ("performance.quick-read", "off"),
    ("performance.io-cache", "off"),
    ("client.strict-locks", "on"),
    ("network.ping-timeout", "5"),
    ("server.tcp-user-timeout", "5"),
    ("server.keepalive-time", "2"),
    ("server.keepalive-interval", "1"),
];
/// The option of a mount that is fit.
pub const MOUNT_OPTION: &str = "direct-io-mode=enable";

const DAEMON: &str = "/usr/sbin/glusterd";
const NUMBER: u8 = 10;
/// Time between two attempts.
const INTERVAL: Duration = Duration::from_millis(50);
/// Where the daemons have their state, their logs and their sockets, whatever they are told.
const FOLDERS: [&str; 3] = ["/var/lib/glusterd", "/var/log/glusterfs", "/run"];
/// Where they have sockets, in one of those.
const SOCKETS: &str = "/run/gluster";

/// How a host mounts a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Without any option.
    AsItComes,
    /// As the documentation says.
    Direct,
}

pub struct Volume {
    host: Host,
    _daemon: Child,
}

impl Volume {
    /// One that is served, as it comes. What it holds is in `dir`. To be made before the hosts that mount it, which
    /// see its folders for logs.
    pub fn new(dir: &Path) -> Self {
        assert!(
            Path::new(DAEMON).exists(),
            "this test needs GlusterFS; as root: \
             apt-get install -y --no-install-recommends glusterfs-server glusterfs-client"
        );
        for folder in FOLDERS {
            let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", folder]).status();
            assert!(mounted.is_ok_and(|status| status.success()), "{folder}: this needs root");
        }
        fs::create_dir(SOCKETS).unwrap();
        let brick = dir.join("brick");
        fs::create_dir(&brick).unwrap();
        let host = Host::new("storage", NUMBER, &[Wire::Storage], dir);
        let log = fs::File::create(dir.join("glusterd.log")).unwrap();
        let daemon = host
            .command(DAEMON)
            .arg("--no-daemon")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let volume = Self { host, _daemon: daemon };
        let brick = format!("{}:{}", Wire::Storage.address(NUMBER), brick.display());
        volume.until_ready();
        // By force, since the brick may be on the disk of the system.
        volume.gluster(&["create", VOLUME, &brick, "force"]).unwrap();
        volume.gluster(&["start", VOLUME]).unwrap();
        volume
    }

    /// Sets the options that make it fit.
    pub fn make_fit(&self) {
        for (option, value) in OPTIONS {
            self.gluster(&["set", VOLUME, option, value]).unwrap();
        }
    }

    /// Waits until the daemon answers.
    fn until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(said) = self.gluster(&["list"]) {
            assert!(Instant::now() < deadline, "{said}");
            std::thread::sleep(INTERVAL);
        }
    }

    /// Has the daemon do something about volumes; what it says where it does not.
    fn gluster(&self, args: &[&str]) -> Result<(), String> {
        let mut command = self.host.command("gluster");
        let output = command.args(["--mode=script", "volume"]).args(args).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(format!("gluster volume {args:?}: {output:?}")) }
    }

    /// Mounts it on a host at `point`.
    pub fn mount(&self, host: &Host, point: &Path, way: Way) {
        // What mount.glusterfs makes of its options. That one would edit /etc/updatedb.conf too.
        let server = format!("--volfile-server={}", Wire::Storage.address(NUMBER));
        let volume = format!("--volfile-id={VOLUME}");
        let mut args = vec![server, volume, "--process-name".to_owned(), "fuse".to_owned()];
        if way == Way::Direct {
            args.push(format!("--{MOUNT_OPTION}"));
        }
        args.push(point.display().to_string());
        host.run("glusterfs", &args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Takes a mount away.
    pub fn unmount(&self, host: &Host, point: &Path) {
        host.run("umount", &[&point.display().to_string()]);
    }

    /// Waits until a host whose link was cut has the volume again.
    pub fn wait_for(&self, host: &Host, point: &Path) {
        let deadline = Instant::now() + PATIENCE;
        while !host.command("stat").arg(point).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "{} does not get its volume back", host.name);
            std::thread::sleep(INTERVAL);
        }
    }
}

/// Copies the logs of the daemons, which go with the run, to its folder.
pub fn keep_logs(dir: &Path) {
    let _ = Command::new("cp").args(["-a", "/var/log/glusterfs"]).arg(dir).status();
}

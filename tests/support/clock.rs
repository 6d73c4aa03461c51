//! The clock of a host: `libfaketime`, loaded into the node, shifts what it reads. Monotonic time it leaves alone.
//!
//! A time namespace of the kernel shifts monotonic time and not this one, and a way to shift it in the node itself would
//! be a part of the product that only tests use.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a node may go by a clock that was set meanwhile, at most.
pub const NOTICED: Duration = Duration::from_millis(1_200);

/// The library, where it is installed.
pub fn library() -> Option<PathBuf> {
    let architectures = fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    architectures.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// The library, without which a test fails.
pub fn installed() -> PathBuf {
    library().unwrap_or_else(|| {
        panic!("this test needs libfaketime; as root: apt-get install -y --no-install-recommends libfaketime")
    })
}

pub struct Clock {
    library: PathBuf,
    /// Says by how much it is off.
    file: PathBuf,
}

impl Clock {
    /// A clock that is right. `dir` is for its file.
    pub fn new(library: &Path, dir: &Path, name: &str) -> Self {
        let clock = Self { library: library.to_owned(), file: dir.join(format!("clock-{name}")) };
        clock.set(0);
        clock
    }

    /// Sets it so many seconds ahead, or back. A process of [`Clock::environment`] notices within [`NOTICED`].
    pub fn set(&self, ahead: i64) {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{ahead:+}\n")).unwrap();
        // At once, so that half of it is never read.
        fs::rename(&next, &self.file).unwrap();
    }

    /// The settings of a process that goes by it and looks at its file each time it is asked for the time: slow, and at
    /// once.
    pub fn prompt_environment(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        self.environment().into_iter().chain([("FAKETIME_NO_CACHE", "1".to_owned())])
    }

    /// The settings of a process that goes by it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}

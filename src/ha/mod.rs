//! Who is master: the lock, the claim of an epoch, the control file, the fence.
//!
//! ```text
//! baton.lock          exclusive lock; never written, deleted or renamed
//! epochs/<n>          claim of epoch n, created with O_EXCL: no two processes own one epoch, even where locks lie
//! control             who owns which epoch: block n belongs to epoch n alone and is never reused
//! ```
//!
//! Order of use: [`Directory::open`](directory::Directory::open) checks the shared directory and changes nothing in
//! it; [`try_lock`](directory::Directory::try_lock) is polled by a standby; [`claim`](claim::claim) turns the lock
//! into a [`Mastership`](claim::Mastership), whose [`Fence`](fence::Fence) is checked after every sync and before
//! every effect; [`release`](claim::Mastership::release) ends it cleanly.
//!
//! Why that is enough. A claimer writes its block durably and only then reads the records of older epochs. A master
//! confirms a record only after a check that started after the record's sync and found no block behind its own. So
//! either the check sees the claimer's block and nothing is confirmed, or it came before that block, and then the
//! claimer reads the record. No clock is needed, and no lock; `tests/ha_model` tries every order of the steps.
//!
//! This layer knows nothing of records, connections, tasks or settings. Nothing here deletes, renames or truncates a
//! file. Every read is of a freshly opened file, never through a handle from before.

pub mod block;
pub mod claim;
pub mod control;
pub mod directory;
pub mod epochs;
pub mod fence;
pub mod identity;
pub mod lock;
pub mod view;

#[cfg(test)]
mod tests {
    //! The life of a master as another process sees it.

    use std::env;
    use std::io::{BufRead, BufReader, Read};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

    use super::block::Address;
    use super::claim::{Candidate, Mastership, ReleaseError, claim};
    use super::directory::{Create, Directory};
    use super::fence::{FenceError, FenceRead};
    use super::identity::Identity;
    use super::lock::{LockAttempt, StoreLock};
    use crate::model::id::Epoch;
    use crate::model::mode::Mode;
    use crate::model::name::Name;
    use crate::model::predecessor::Predecessor;

    const STORE: &str = "BATON_TEST_STORE";

    /// Exit code of a master that was not allowed to release.
    const SUPERSEDED: i32 = 9;

    fn become_master(lock: StoreLock) -> Mastership {
        let identity = Identity::of_this_process(Name::new("a").unwrap()).unwrap();
        let address = Address::new("127.0.0.1:7470").unwrap();
        claim(lock, Candidate { identity, address, mode: Mode::File }).unwrap()
    }

    /// What the other process runs; in the test run itself there is no store to serve.
    #[test]
    fn master_of_the_tests_below() {
        let Some(store) = env::var_os(STORE) else { return };
        let directory = Directory::open(Path::new(&store), Create::Allowed, None).unwrap();
        let LockAttempt::Acquired(lock) = directory.try_lock().unwrap() else { panic!("the lock is held") };
        let mastership = become_master(lock);
        println!("\nserving epoch {}", mastership.epoch());
        // Until the parent lets go of the pipe, or kills.
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        match mastership.release(FenceRead::Reopen) {
            Err(ReleaseError::Fence(FenceError::Superseded(_))) => std::process::exit(SUPERSEDED),
            released => released.unwrap(),
        }
    }

    fn start_master(store: &Path) -> Child {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "ha::tests::master_of_the_tests_below", "--nocapture"]).env(STORE, store);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap().starts_with("serving")).unwrap().unwrap();
        child
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_raw(child.id().try_into().unwrap()).unwrap()
    }

    #[test]
    fn a_killed_master_leaves_a_free_lock_and_is_known_to_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut master = start_master(dir.path());
        let standby = Directory::open(dir.path(), Create::Refused, None).unwrap();
        assert!(matches!(standby.try_lock(), Ok(LockAttempt::Held)));
        assert_eq!(standby.status().unwrap().unwrap().owner.pid, master.id());
        master.kill().unwrap();
        master.wait().unwrap();
        let LockAttempt::Acquired(lock) = standby.try_lock().unwrap() else { panic!("the lock is held") };
        let mastership = become_master(lock);
        assert_eq!((mastership.epoch(), mastership.predecessors().all()), (Epoch(2), Predecessor::Gone));
    }

    #[test]
    fn a_master_that_released_is_gone_and_one_that_is_paused_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = start_master(dir.path());
        drop(first.stdin.take());
        assert!(first.wait().unwrap().success());

        let mut second = start_master(dir.path());
        kill_process(pid(&second), Signal::STOP).unwrap();
        waitpid(Some(pid(&second)), WaitOptions::UNTRACED).unwrap();
        let standby = Directory::open(dir.path(), Create::Refused, None).unwrap();
        assert!(matches!(standby.try_lock(), Ok(LockAttempt::Held)));
        // As if its lock did not exclude.
        let third = become_master(StoreLock::lying(&standby));
        assert_eq!((third.epoch(), third.predecessors().all()), (Epoch(3), Predecessor::MayWrite));
        assert_eq!(third.predecessors().since(Epoch(3)), Predecessor::MayWrite);

        // It wakes, and is told to stop: its release must not touch its successor.
        kill_process(pid(&second), Signal::CONT).unwrap();
        drop(second.stdin.take());
        assert_eq!(second.wait().unwrap().code(), Some(SUPERSEDED));
        third.fence(FenceRead::Reopen).check().unwrap();
        third.release(FenceRead::Reopen).unwrap();
    }
}

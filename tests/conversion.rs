//! A conversion may end anywhere: the next epoch has everything, in one mode or the other, and goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod scene;

use std::fs;
use std::path::{Path, PathBuf};

use batonmq::model::id::{Epoch, TopicId};
use batonmq::offline::{self, OfflineError};
use batonmq::store::conversion::{Done, Old, clear, compare, convert};
use batonmq::store::manifest::Manifest;
use batonmq::store::{self, Fenced, Mode, StoreError};
use scene::whole::{MODES, check, close, digest, furnished, look, opener, options};
use scene::{Model, Scene, bodies, copy_dir, published};

fn other(mode: Mode) -> Mode {
    if mode == Mode::Database { Mode::File } else { Mode::Database }
}

fn newest(dir: &Path) -> Manifest {
    Manifest::newest(dir, Epoch(u64::MAX)).unwrap().unwrap()
}

/// What the next master does: it clears up, opens the store as the newest manifest has it, and goes on. Answers the
/// mode.
fn serve(dir: &Path, epoch: u64, model: &Model) -> Mode {
    clear(dir, Epoch(epoch), &mut || Ok(())).unwrap();
    let mode = newest(dir).mode;
    let (mut store, snapshot) = opener(mode)(&options(dir, mode, epoch)).unwrap();
    assert_eq!(snapshot, model.snapshot);
    model.check_everything(store.reader().unwrap().as_mut(), 1500);
    let topic = *snapshot.topics.keys().next().unwrap();
    let mut after = model.clone();
    let record = published(&after.snapshot, &[topic], None, &bodies(3, 100, 9));
    after.apply(std::slice::from_ref(&record));
    store.commit(&[record]).unwrap();
    store.close(&mut || after.snapshot.clone(), &mut || Ok(())).unwrap();
    check(look(dir), &after, 1500);
    mode
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// A store that was closed, in a directory of its own for each attempt.
struct Original(Scene);

impl Original {
    fn new(mode: Mode) -> Self {
        let mut scene = furnished(mode);
        close(&mut scene);
        Self(scene)
    }

    fn copy(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(self.0.dir.path(), dir.path());
        dir
    }
}

/// Converts in epoch 2, and lets the fence break at its `breaks`-th check. Answers how often it was checked.
fn convert_until(dir: &Path, to: Mode, old: Old, breaks: usize) -> (usize, Result<(), StoreError>) {
    let mut checks = 0;
    let converted = convert(&options(dir, to, 2), &newest(dir), old, &mut |_| {
        checks += 1;
        if checks == breaks { Err(Fenced::Unknown("on purpose".to_owned())) } else { Ok(()) }
    });
    (checks, converted.map(drop))
}

#[test]
fn wherever_a_conversion_ends_the_next_master_has_everything() {
    for from in MODES {
        let original = Original::new(from);
        for old in [Old::Removed, Old::Kept] {
            let whole = original.copy();
            let (checks, converted) = convert_until(whole.path(), other(from), old, usize::MAX);
            converted.unwrap();
            assert!(checks > 3, "{checks}");
            let mut modes = Vec::new();
            for breaks in 1..=checks {
                let dir = original.copy();
                let (_, converted) = convert_until(dir.path(), other(from), old, breaks);
                assert!(matches!(converted, Err(StoreError::Fenced(_))), "{breaks}: {converted:?}");
                let mode = serve(dir.path(), 3, &original.0.model);
                modes.push(mode);
                let kept = names(dir.path()).iter().any(|name| name.starts_with("kept-"));
                assert_eq!(kept, mode != from && old == Old::Kept, "{breaks}");
            }
            assert!(modes.contains(&from), "before the switch the old store counts");
            assert_eq!(modes.last(), Some(&other(from)), "after it the converted one does");
        }
    }
}

/// A conversion that was thought dead sealed the store between the claim of its successor and its recovery, which
/// then took the store for damaged.
#[test]
fn a_conversion_that_seals_late_is_not_taken_for_damage() {
    for from in MODES {
        let original = Original::new(from);
        let dir = original.copy();
        let (_, converted) = convert_until(dir.path(), other(from), Old::Removed, usize::MAX);
        converted.unwrap();
        let opened = store::open(&options(dir.path(), from, 3), &mut || Ok(()));
        let Err(StoreError::Fenced(Fenced::Converted { by: Epoch(2), to })) = opened else {
            panic!("{:?}", opened.map(drop));
        };
        assert_eq!(to, other(from));
        assert_eq!(serve(dir.path(), 4, &original.0.model), to);
    }
}

#[test]
fn a_conversion_that_ended_before_the_switch_starts_over() {
    for from in MODES {
        let original = Original::new(from);
        let dir = original.copy();
        let (_, converted) = convert_until(dir.path(), other(from), Old::Kept, 3);
        converted.unwrap_err();
        let from_manifest = newest(dir.path());
        convert(&options(dir.path(), other(from), 3), &from_manifest, Old::Removed, &mut |_| Ok(())).unwrap();
        assert_eq!(serve(dir.path(), 4, &original.0.model), other(from));
        assert!(!names(dir.path()).iter().any(|name| name.starts_with("kept-")));
    }
}

#[test]
fn what_is_kept_has_everything_and_what_is_not_kept_is_gone() {
    for from in MODES {
        let original = Original::new(from);
        let mut before = digest(look(original.0.dir.path()).as_mut());
        for old in [Old::Removed, Old::Kept] {
            let dir = original.copy();
            let copied =
                convert(&options(dir.path(), other(from), 2), &newest(dir.path()), old, &mut |_| Ok(()))
                    .unwrap();
            assert_eq!(before, copied);
            before = copied;
            let place = dir.path().join(format!("kept-{from}-00000000000000000002"));
            assert_eq!(place.exists(), old == Old::Kept);
            if old == Old::Kept {
                let kept = offline::look(&place).unwrap();
                assert_eq!(kept.manifest.mode, from);
                check(kept.image, &original.0.model, 1000);
            }
            let is_old = |name: &String| match from {
                Mode::Database => name.starts_with("baton-"),
                Mode::File => name == "journal",
            };
            assert!(!names(dir.path()).iter().any(is_old));
            // A later master leaves what is kept alone.
            serve(dir.path(), 3, &original.0.model);
            assert_eq!(place.exists(), old == Old::Kept);
        }
    }
}

/// Nothing that was there is removed, renamed or overwritten unless the fence was found whole just before.
#[test]
fn what_is_cleared_away_goes_only_while_the_fence_holds() {
    for from in MODES {
        let original = Original::new(from);
        let dir = original.copy();
        // Ends between the switch and the removal of the old store: by its last check.
        let (checks, _) = convert_until(original.copy().path(), other(from), Old::Removed, usize::MAX);
        let (_, converted) = convert_until(dir.path(), other(from), Old::Removed, checks);
        assert!(matches!(converted, Err(StoreError::Fenced(_))), "{converted:?}");
        assert_eq!(newest(dir.path()).mode, other(from));
        let before = files(dir.path());
        let refused = clear(dir.path(), Epoch(3), &mut || Err(Fenced::Superseded(Epoch(4))));
        assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
        assert_eq!(files(dir.path()), before);
        clear(dir.path(), Epoch(3), &mut || Ok(())).unwrap();
        assert!(files(dir.path()).len() < before.len());
    }
}

/// A process that was paused between its check and the removal, until later epochs had converted the store back, removed
/// the folder `journal` whole: with all that these had confirmed.
#[test]
fn a_late_removal_takes_nothing_of_a_later_epoch() {
    for from in MODES {
        let original = Original::new(from);
        for old in [Old::Removed, Old::Kept] {
            let (checks, _) = convert_until(original.copy().path(), other(from), old, usize::MAX);
            let dir = original.copy();
            // Ends between the switch and the removal of the old store.
            convert_until(dir.path(), other(from), old, checks).1.unwrap_err();
            let mut checks = 0;
            let cleared = clear(dir.path(), Epoch(3), &mut || {
                checks += 1;
                // What happens behind the check, and before it is known that it held.
                let converted = newest(dir.path());
                let back = options(dir.path(), from, 4);
                convert(&back, &converted, Old::Removed, &mut |_| Ok(())).unwrap();
                Ok(())
            });
            assert_eq!(checks, 1, "{from} {old:?}");
            // What is not there any more cannot be put away, which ends a process that has lost.
            assert!(cleared.is_ok() || old == Old::Kept, "{cleared:?}");
            assert_eq!(newest(dir.path()).epoch, Epoch(4));
            assert_eq!(serve(dir.path(), 5, &original.0.model), from);
        }
    }
}

/// A copy that lacks something never counts, whatever the reason.
#[test]
fn a_copy_that_is_not_the_same_is_not_switched_to() {
    for from in MODES {
        let original = Original::new(from);
        let dir = original.copy();
        let manifest = newest(dir.path());
        let before = digest(look(dir.path()).as_mut());
        let (mut checks, mut spoilt) = (0, false);
        let converted = convert(&options(dir.path(), other(from), 2), &manifest, Old::Removed, &mut |done| {
            checks += 1;
            // All is copied: what is on the disk of the new store is changed behind its back.
            if done.messages == done.of && !spoilt {
                spoilt = spoil(dir.path(), other(from));
            }
            Ok(())
        });
        assert!(spoilt && checks > 3, "{checks}");
        assert!(converted.is_err(), "{from}");
        assert_eq!(newest(dir.path()), manifest);
        assert_eq!(digest(look(dir.path()).as_mut()), before);
    }
}

/// Changes a byte of a message in the new files, if it is there; answers whether it was.
fn spoil(dir: &Path, mode: Mode) -> bool {
    let wanted = &bodies(9, 200, 20)[4];
    let is_new = |path: &PathBuf| match mode {
        Mode::Database => path.ends_with("baton-00000000000000000002.db"),
        Mode::File => path.to_str().is_some_and(|path| path.contains("/journal/")),
    };
    for path in files(dir).into_iter().filter(is_new) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            bytes[at + 50] ^= 4;
            fs::write(&path, bytes).unwrap();
            return true;
        }
    }
    false
}

#[test]
fn a_damaged_store_is_not_converted_and_stays_as_it_is() {
    for from in MODES {
        let original = Original::new(from);
        let dir = original.copy();
        // In the body of a message that is still there.
        let wanted = &bodies(9, 200, 20)[4];
        let place = |path: PathBuf| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(wanted.len()).position(|window| window == wanted)?;
            Some((path, bytes, at))
        };
        let (file, mut bytes, at) = files(dir.path()).into_iter().find_map(place).unwrap();
        bytes[at + 50] ^= 4;
        fs::write(&file, &bytes).unwrap();
        let refused =
            convert(&options(dir.path(), other(from), 2), &newest(dir.path()), Old::Removed, &mut |_| Ok(()));
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
        assert_eq!(newest(dir.path()).mode, from);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}

#[test]
fn offline_work_needs_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let refused = offline::look(dir.path()).map(|_| ());
    assert!(matches!(refused, Err(OfflineError::NoStore(_))), "{refused:?}");
    let refused = offline::convert(dir.path(), Mode::File, Old::Removed, &mut |_| {});
    assert!(matches!(refused, Err(OfflineError::Directory(_))), "{refused:?}");
}

/// A copy that lacks a message, or has one more, must never take the place of its original.
#[test]
fn a_copy_that_differs_is_found() {
    for mode in MODES {
        let mut one = furnished(mode);
        drop(one.store.take());
        let mut other = furnished(mode);
        other.publish(&[TopicId(1)], &bodies(1, 10, 1));
        drop(other.store.take());
        let digests = [&one, &other].map(|scene| digest(look(scene.dir.path()).as_mut()));
        for (original, copy, same) in [(0, &one, true), (1, &one, false), (0, &other, false)] {
            let mut done = Done::default();
            let compared =
                compare(&digests[original], look(copy.dir.path()).as_mut(), &mut done, &mut |_| Ok(()));
            assert_eq!(compared.is_ok(), same, "{compared:?}");
            assert!(same || matches!(compared, Err(StoreError::Differs(_))), "{compared:?}");
        }
    }
}

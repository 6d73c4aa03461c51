//! Is a name created once? Both sides create the same names at the same time, exclusively and by links.
//!
//! Baton claims epochs by exclusive creation. It does not link; that is tried because a file system that does not keep
//! its word there is to be mistrusted.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::CheckError;
use super::finding::Finding;
use super::lead::{Lead, Who};
use super::peer::PeerError;
use super::protocol::{Answer, Ask};

/// Names that both sides create.
pub const ROUNDS: u32 = 100;

/// How a name is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// With `O_EXCL`.
    Exclusive,
    /// As a link to a file.
    Link,
}

/// Creates all the names in `folder` that the other side has not created before; answers which.
///
/// # Errors
/// Where one cannot be created for another reason than that it is there.
pub fn race(folder: &Path, kind: Kind) -> io::Result<Vec<u32>> {
    let source = folder.join(format!("source-{}", Uuid::now_v7()));
    if kind == Kind::Link {
        File::create(&source)?;
    }
    let mut won = Vec::new();
    for round in 0..ROUNDS {
        let created = match kind {
            Kind::Exclusive => File::create_new(folder.join(format!("exclusive-{round}"))).map(drop),
            Kind::Link => fs::hard_link(&source, folder.join(format!("link-{round}"))),
        };
        match created {
            Ok(()) => won.push(round),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(won)
}

/// Tries both.
///
/// # Errors
/// Where it comes to no result.
pub fn test(lead: &mut Lead) -> Result<Vec<Finding>, CheckError> {
    [Kind::Exclusive, Kind::Link]
        .into_iter()
        .map(|kind| match lead.ask_both(Ask::Race(kind))? {
            (Answer::Raced(one), Answer::Raced(other)) => {
                Ok(judge(kind, [lead.name(Who::Lead), lead.name(Who::Second)], &[one, other]))
            }
            _ => Err(PeerError::OutOfOrder.into()),
        })
        .collect()
}

/// What it means that the sides have won these rounds.
fn judge(kind: Kind, names: [&str; 2], won: &[Result<Vec<u32>, String>; 2]) -> Finding {
    let (one, other) = match won {
        [Ok(one), Ok(other)] => (one, other),
        [Err(error), _] => return fail(kind, names[0], error),
        [_, Err(error)] => return fail(kind, names[1], error),
    };
    let twice = one.iter().filter(|round| other.contains(round)).count();
    let never = (0..ROUNDS).filter(|round| !one.contains(round) && !other.contains(round)).count();
    match (kind, twice, never) {
        (Kind::Exclusive, 0, 0) => Finding::good(
            "creation-exclusive",
            format!("of {ROUNDS} names that both sides created with O_EXCL at once, each was created once"),
        ),
        (Kind::Link, 0, 0) => Finding::good(
            "links-exclusive",
            format!("of {ROUNDS} links that both sides made at once, each was made once"),
        ),
        (Kind::Exclusive, 0, _) => Finding::doubt(
            "creation-lost",
            format!(
                "{never} of {ROUNDS} names were created and both sides were told that the other one had done it"
            ),
        ),
        (Kind::Exclusive, ..) => Finding::unfit(
            "creation-not-exclusive",
            format!(
                "{twice} of {ROUNDS} names were created by both sides, although with O_EXCL: two nodes could own one \
                 epoch; use another file system"
            ),
        ),
        (Kind::Link, ..) => Finding::doubt(
            "links-not-exclusive",
            format!("of {ROUNDS} links {twice} were made by both sides and {never} by none"),
        ),
    }
}

fn fail(kind: Kind, name: &str, error: &str) -> Finding {
    match kind {
        Kind::Exclusive => {
            Finding::unfit("creation-fails", format!("{name} cannot create files with O_EXCL: {error}"))
        }
        Kind::Link => {
            Finding::note("no-links", format!("{name} cannot make links: {error}; Baton does not need them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_race_each_name_has_one_winner() {
        for kind in [Kind::Exclusive, Kind::Link] {
            let dir = tempfile::tempdir().unwrap();
            let [one, other] = std::thread::scope(|scope| {
                let racers =
                    [(); 2].map(|()| scope.spawn(|| race(dir.path(), kind).map_err(|e| e.to_string())));
                racers.map(|racer| racer.join().unwrap())
            });
            let found = judge(kind, ["a", "b"], &[one, other]);
            assert!(found.code.ends_with("-exclusive") && !found.code.contains("not"), "{found:?}");
        }
    }

    #[test]
    fn names_with_two_winners_or_none_are_found() {
        let all = || Ok((0..ROUNDS).collect::<Vec<_>>());
        let code = |kind, won: [Result<Vec<u32>, String>; 2]| judge(kind, ["a", "b"], &won).code.into_owned();
        assert_eq!(code(Kind::Exclusive, [all(), Ok(vec![])]), "creation-exclusive");
        assert_eq!(code(Kind::Exclusive, [all(), Ok(vec![7])]), "creation-not-exclusive");
        assert_eq!(code(Kind::Exclusive, [Ok((1..ROUNDS).collect()), Ok(vec![])]), "creation-lost");
        assert_eq!(code(Kind::Exclusive, [all(), Err("no".to_owned())]), "creation-fails");
        assert_eq!(code(Kind::Link, [all(), Ok(vec![7])]), "links-not-exclusive");
        assert_eq!(code(Kind::Link, [Err("no".to_owned()), all()]), "no-links");
    }
}

//! The side that does as it is asked, until it is told what came of it all.

use std::path::Path;
use std::time::Duration;

use super::late_write::Writer;
use super::lead::{ANSWER_MAX, Saying};
use super::locking::Program;
use super::peer::{Link, PeerError};
use super::probes::Probes;
use super::protocol::{Answer, Ask};
use super::report::Report;
use super::worker::{Worker, look};
use super::{CheckError, time_text};

/// Serves a lead, which names the shared directory `store` as this side does. Answers what came of it.
///
/// # Errors
/// Where it comes to no result.
pub fn serve(
    mut link: Link,
    store: &Path,
    program: &Program,
    say: &mut dyn FnMut(Saying<'_>),
) -> Result<Report, CheckError> {
    let met = meet(&mut link, store, program);
    let mut worker = match met {
        Ok(worker) => worker,
        Err(error) => return Err(refuse(&mut link, error)),
    };
    loop {
        // The lead may wait for its own part, which takes no longer than an answer.
        match link.receive(ANSWER_MAX)? {
            Ask::End(report) => {
                link.send(&Answer::Done)?;
                return Ok(*report);
            }
            Ask::WriteLate { within_ms } => {
                let within = Duration::from_millis(within_ms);
                let writer = match Writer::begin(worker.probes().folder()) {
                    Ok(writer) => writer,
                    Err(error) => return Err(refuse(&mut link, error)),
                };
                link.send(&Answer::Done)?;
                say(Saying::Operator(&format!(
                    "this host is the one to be cut off from the storage, or paused, when and as long as the other \
                     checker says; this one writes meanwhile, for {} at most",
                    time_text(within)
                )));
                link.send(&Answer::Written(writer.run(within)))?;
            }
            ask => match worker.answer(&ask) {
                Ok(answer) => link.send(&answer)?,
                // The lead decides whether it can go on without.
                Err(error) => link.send(&Answer::Failed(error.to_string()))?,
            },
        }
    }
}

fn meet(link: &mut Link, store: &Path, program: &Program) -> Result<Worker, CheckError> {
    let Ask::Meet { run } = link.receive(ANSWER_MAX)? else { return Err(PeerError::OutOfOrder.into()) };
    let side = look(store)?;
    let probes = Probes::join(store, run)?;
    link.send(&Answer::Met { side: Box::new(side), token: probes.token() })?;
    Ok(Worker::new(probes, program.clone()))
}

/// Lets the other side know too.
fn refuse(link: &mut Link, error: CheckError) -> CheckError {
    // Where the connection is what failed, there is nobody to tell.
    let _ = link.send(&Answer::Failed(error.to_string()));
    error
}

//! `/health/live`, `/health/ready` and `/health/primary`: for load balancers, for check scripts of floating addresses,
//! and for whatever restarts what hangs. 200 where it is so, else 503; the body says what the node is, and why not.
//!
//! `/health/primary` goes by the same as the clients' listener: a master whose last check of the fence is too old is
//! none. It never makes a node master: it only says which one is.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use crate::protocol::response::Role;
use crate::server::{Server, Standing};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Does the process answer?
    Live,
    /// Does the node do what it is there for: serve, or wait for its turn?
    Ready,
    /// Is it the master, which clients should reach?
    Primary,
}

/// A body.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    node: &'a str,
    role: Role,
    epoch: u64,
    /// Why it is not so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The routes.
pub(super) fn routes(server: Arc<Server>) -> Router {
    let live = get(|State(server): State<Arc<Server>>| async move { answer(&server, Question::Live) });
    let ready = get(|State(server): State<Arc<Server>>| async move { answer(&server, Question::Ready) });
    let primary = get(|State(server): State<Arc<Server>>| async move { answer(&server, Question::Primary) });
    Router::new()
        .route("/health/live", live)
        .route("/health/ready", ready)
        .route("/health/primary", primary)
        .with_state(server)
}

fn answer(server: &Server, question: Question) -> Response {
    let standing = server.standing_now();
    let reason = why_not(question, &standing, server.unattended());
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let answer = Answer { node: &server.node, role: standing.role, epoch: standing.epoch.0, reason };
    let body = serde_json::to_string(&answer).unwrap_or_default() + "\n";
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (code, headers, body).into_response()
}

/// Why it is not so; `None` where it is. `unattended` is for how long a standby has not been able to look at the lock,
/// where that is too long.
fn why_not(question: Question, standing: &Standing, unattended: Option<Duration>) -> Option<String> {
    let stalled = |what: &str, time: Duration| {
        Some(format!("the storage does not answer: {what} is {} s ago", time.as_secs()))
    };
    match (question, standing.role) {
        (Question::Live, _) | (_, Role::Master) => None,
        (_, Role::Recovering) if standing.engine.is_some() => {
            stalled("the last check of the fence", standing.since.elapsed())
        }
        (_, Role::Recovering) => Some("it has the lock, and recovers the store".to_owned()),
        (Question::Ready, Role::Standby) => {
            unattended.and_then(|time| stalled("the last look at the lock", time))
        }
        (Question::Primary, Role::Standby) => Some(match &standing.master {
            Some(master) => format!("it is the standby of {master}"),
            None => "it is standby, and knows of no master".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::model::id::Epoch;
    use crate::store::Mode;

    const HUNG: Option<Duration> = Some(Duration::from_secs(20));

    fn standing(role: Role, master: Option<&str>) -> Standing {
        Standing {
            role,
            epoch: Epoch(3),
            master: master.map(str::to_owned),
            mode: Mode::File,
            store_id: String::new(),
            since: Instant::now(),
            recovery: None,
            engine: None,
            holdings: Arc::default(),
        }
    }

    #[test]
    fn each_role_is_answered_with_why_it_is_not_the_primary() {
        let why = |role, master| why_not(Question::Primary, &standing(role, master), None);
        assert_eq!(why(Role::Master, Some("a:1")), None);
        assert_eq!(why(Role::Standby, Some("a:1")).unwrap(), "it is the standby of a:1");
        assert_eq!(why(Role::Standby, None).unwrap(), "it is standby, and knows of no master");
        assert_eq!(why(Role::Recovering, None).unwrap(), "it has the lock, and recovers the store");
    }

    #[test]
    fn a_standby_is_ready_while_it_can_look_at_the_lock() {
        let why = |role, unattended| why_not(Question::Ready, &standing(role, None), unattended);
        assert_eq!(why(Role::Master, HUNG), None);
        assert_eq!(why(Role::Standby, None), None);
        assert_eq!(
            why(Role::Standby, HUNG).unwrap(),
            "the storage does not answer: the last look at the lock is 20 s ago"
        );
        assert!(why(Role::Recovering, None).is_some());
    }

    #[test]
    fn whatever_answers_is_alive() {
        for role in [Role::Standby, Role::Recovering, Role::Master] {
            assert_eq!(why_not(Question::Live, &standing(role, None), HUNG), None);
        }
    }
}

//! The thread that answers queries about the store, beside the engine.
//!
//! One at a time, so that queries neither take the processors from the messages nor add up in memory. An answer goes
//! through the engine: it shows what is committed, and so it leaves only after a check of the fence.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::inbox::{Inbox, Input};
use crate::model::id::SessionId;
use crate::model::limits::{
    QUERIES_MAX, QUERY_BYTES_MAX, QUERY_ROWS_MAX, QUERY_SECONDS_MAX, QUERY_TEXT_BYTES_MAX,
};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::request::RequestId;
use crate::store::query::{Inspector, QueryBounds, QueryError};
use crate::store::{Store, StoreError};

/// A query, and whose it is.
#[derive(Debug)]
struct Query {
    session: SessionId,
    request: RequestId,
    text: String,
}

/// The thread, where the store can be asked, and what waits for it.
#[derive(Debug)]
pub(super) struct Querying {
    thread: Option<(Sender<Query>, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
    /// Queries that were handed over and are not answered.
    waiting: usize,
}

impl Querying {
    /// Starts the thread, where the store can be asked.
    pub(super) fn start(store: &dyn Store, inbox: &Arc<Inbox>) -> Result<Self, StoreError> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = match store.inspector()? {
            None => None,
            Some(inspector) => {
                let (sender, queries) = channel();
                let (inbox, stop) = (Arc::clone(inbox), Arc::clone(&stop));
                let thread = thread::Builder::new()
                    .name("query".into())
                    .spawn(move || answer(inspector, &queries, &inbox, stop))
                    .map_err(|source| StoreError::Io {
                        action: "start a thread for",
                        path: "query".into(),
                        source,
                    })?;
                Some((sender, thread))
            }
        };
        Ok(Self { thread, stop, waiting: 0 })
    }

    /// Has a query answered; the answer comes into the inbox.
    ///
    /// # Errors
    /// Why it is not even tried.
    pub(super) fn ask(
        &mut self,
        session: SessionId,
        request: RequestId,
        text: String,
    ) -> Result<(), Refusal> {
        let Some((queries, _)) = &self.thread else {
            let text = "this store cannot be queried, it is in file mode: that needs mode = \"database\"; topics and \
                        groups can be listed in both";
            return Err(Refusal::new(ErrorCode::Invalid, text));
        };
        if text.len() > QUERY_TEXT_BYTES_MAX {
            let text = format!("the query has {} bytes, the limit is {QUERY_TEXT_BYTES_MAX}", text.len());
            return Err(Refusal::new(ErrorCode::Limit, text));
        }
        if self.waiting >= QUERIES_MAX {
            let text = format!("{QUERIES_MAX} queries wait for their answer already: try again later");
            return Err(Refusal::new(ErrorCode::Limit, text));
        }
        self.waiting += 1;
        // The thread ends only with this.
        let _ = queries.send(Query { session, request, text });
        Ok(())
    }

    /// An answer was taken out of the inbox.
    pub(super) fn answered(&mut self) {
        self.waiting -= 1;
    }

    /// Ends the thread, in the middle of a query too, so that nothing of this process has the store open when it is
    /// closed.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some((queries, thread)) = self.thread {
            drop(queries);
            // It has answered a panic, and closed its part of the store, all the same.
            let _ = thread.join();
        }
    }
}

fn answer(
    mut inspector: Box<dyn Inspector>,
    queries: &Receiver<Query>,
    inbox: &Inbox,
    stop: Arc<AtomicBool>,
) {
    let bounds = QueryBounds {
        rows_max: QUERY_ROWS_MAX,
        bytes_max: QUERY_BYTES_MAX,
        time_max: Some(Duration::from_secs(QUERY_SECONDS_MAX)),
        stop,
    };
    for Query { session, request, text } in queries {
        let answer = catch_unwind(AssertUnwindSafe(|| inspector.query(&text, &bounds)));
        let answer =
            answer.unwrap_or_else(|_| Err(QueryError::Failed("the node panicked, please report it".into())));
        if let Err(QueryError::Store(error)) = &answer {
            tracing::error!(%error, "a query met this");
        }
        inbox.put(Input::Answered(session, request, answer));
    }
}

/// What is said to whoever asked.
pub(super) fn refusal(error: &QueryError) -> Refusal {
    let code = match error {
        QueryError::Rows(_) | QueryError::Bytes(_) | QueryError::Value(_) | QueryError::Time(_) => {
            ErrorCode::Limit
        }
        QueryError::Stopped => ErrorCode::Draining,
        QueryError::Empty
        | QueryError::Several
        | QueryError::NotReading
        | QueryError::Text { .. }
        | QueryError::Failed(_)
        | QueryError::Store(_) => ErrorCode::Invalid,
    };
    Refusal::new(code, error.to_string())
}

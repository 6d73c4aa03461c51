//! A thread that works on the shared disk beside another one: jobs in, answers out, in order.
//!
//! Whoever has it neither waits to give it a job nor to ask whether there is an answer, only for an answer itself and
//! for the end. The jobs that it was given are done in any case, also where nobody waits for them any more.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::mount::{self, Mount};

/// The thread, and what goes to it and comes back.
pub struct Helper<J, A> {
    queue: Arc<Queue<J, A>>,
    /// `None` where a mount has the thread.
    thread: Option<JoinHandle<()>>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has nothing to do, and no answer waits.
    Idle,
    /// It works.
    UnderWay,
    /// An answer waits.
    Answered,
    /// It has ended: it has panicked.
    Gone,
}

struct Queue<J, A> {
    mount: Option<Arc<dyn Mount>>,
    state: Mutex<State<J, A>>,
    changed: Condvar,
}

struct State<J, A> {
    jobs: VecDeque<J>,
    answers: VecDeque<A>,
    /// It is at a job.
    is_working: bool,
    /// There will be no more jobs.
    is_closed: bool,
    has_ended: bool,
}

impl<J: Send + 'static, A: Send + 'static> Helper<J, A> {
    /// Starts a thread that works at `path`. It ends once this is dropped and the jobs that it has are done.
    ///
    /// # Errors
    /// Where there can be no further thread.
    pub fn start(
        path: &Path,
        name: &'static str,
        mut work: impl FnMut(J) -> A + Send + 'static,
    ) -> io::Result<Self> {
        let state = State {
            jobs: VecDeque::new(),
            answers: VecDeque::new(),
            is_working: false,
            is_closed: false,
            has_ended: false,
        };
        let queue =
            Arc::new(Queue { mount: mount::of(path), state: Mutex::new(state), changed: Condvar::new() });
        let its_queue = Arc::clone(&queue);
        let go_on = move || {
            let end = EndWhenDropped(its_queue);
            while let Some(job) = end.0.next() {
                let answer = work(job);
                end.0.answer(answer);
            }
        };
        let thread = match &queue.mount {
            None => Some(std::thread::Builder::new().name(name.into()).spawn(go_on)?),
            Some(mount) => {
                mount.start(name, Box::new(go_on))?;
                None
            }
        };
        Ok(Self { queue, thread })
    }

    /// Gives it a job; or gives that back, where it has ended.
    ///
    /// # Errors
    /// The job.
    pub fn give(&self, job: J) -> Result<(), J> {
        let mut state = self.queue.lock();
        if state.has_ended {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.queue.changed.notify_all();
        Ok(())
    }

    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        let state = self.queue.lock();
        match *state {
            State { ref answers, .. } if !answers.is_empty() => Stage::Answered,
            State { has_ended: true, .. } => Stage::Gone,
            State { ref jobs, is_working: false, .. } if jobs.is_empty() => Stage::Idle,
            _ => Stage::UnderWay,
        }
    }

    /// An answer, if one waits.
    #[must_use]
    pub fn try_take(&self) -> Option<A> {
        self.queue.lock().answers.pop_front()
    }

    /// The next answer, if one waits and is wanted.
    #[must_use]
    pub fn take_if(&self, is_wanted: impl FnOnce(&A) -> bool) -> Option<A> {
        let mut state = self.queue.lock();
        if state.answers.front().is_some_and(is_wanted) { state.answers.pop_front() } else { None }
    }

    /// Waits for an answer. `None` where it has ended and there will be none.
    #[must_use]
    pub fn take(&self) -> Option<A> {
        self.queue.wait(|state| !state.answers.is_empty() || state.has_ended).answers.pop_front()
    }

    /// Waits until its jobs are done and it has ended. Answers the answers that nobody has taken.
    #[must_use]
    pub fn end(mut self) -> VecDeque<A> {
        self.queue.close();
        let answers = std::mem::take(&mut self.queue.wait(|state| state.has_ended).answers);
        if let Some(thread) = self.thread.take() {
            // Where it has panicked there is no answer; nothing of it is under way any more.
            let _ = thread.join();
        }
        answers
    }
}

impl<J, A> Drop for Helper<J, A> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<J, A> Debug for Helper<J, A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helper").finish_non_exhaustive()
    }
}

impl<J, A> Queue<J, A> {
    fn lock(&self) -> MutexGuard<'_, State<J, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl<J: Send + 'static, A: Send + 'static> Queue<J, A> {
    fn next(self: &Arc<Self>) -> Option<J> {
        let mut state = self.wait(|state| !state.jobs.is_empty() || state.is_closed);
        let job = state.jobs.pop_front();
        state.is_working = job.is_some();
        job
    }

    fn answer(&self, answer: A) {
        let mut state = self.lock();
        state.answers.push_back(answer);
        state.is_working = false;
        drop(state);
        self.changed.notify_all();
    }

    /// The state once it is as wanted.
    fn wait(self: &Arc<Self>, is_so: fn(&State<J, A>) -> bool) -> MutexGuard<'_, State<J, A>> {
        let Some(mount) = &self.mount else {
            let waited = self.changed.wait_while(self.lock(), |state| !is_so(state));
            return waited.unwrap_or_else(PoisonError::into_inner);
        };
        let queue = Arc::clone(self);
        mount.wait(Arc::new(move || is_so(&queue.lock())));
        self.lock()
    }
}

/// Tells that the thread has ended, however it does.
struct EndWhenDropped<J, A>(Arc<Queue<J, A>>);

impl<J, A> Drop for EndWhenDropped<J, A> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.has_ended, state.is_working) = (true, false);
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn helper<J: Send + 'static, A: Send + 'static>(
        work: impl FnMut(J) -> A + Send + 'static,
    ) -> Helper<J, A> {
        Helper::start(Path::new("/"), "helper", work).unwrap()
    }

    #[test]
    fn jobs_are_answered_in_order_and_the_rest_at_the_end() {
        let (go_on, gate) = channel::<()>();
        let doubled = helper(move |number: u32| {
            gate.recv().unwrap();
            number * 2
        });
        assert_eq!(doubled.stage(), Stage::Idle);
        (1..=3).for_each(|number| doubled.give(number).unwrap());
        assert_eq!((doubled.stage(), doubled.try_take()), (Stage::UnderWay, None));
        (0..3).for_each(|_| go_on.send(()).unwrap());
        assert_eq!(doubled.take(), Some(2));
        assert_eq!(doubled.end(), [4, 6]);
    }

    #[test]
    fn a_helper_that_panics_is_gone_and_nobody_waits_for_it() {
        let panics = helper(|number: u32| if number == 1 { panic!("on purpose") } else { number });
        panics.give(1).unwrap();
        assert_eq!(panics.take(), None);
        assert_eq!(panics.stage(), Stage::Gone);
        assert_eq!(panics.give(2), Err(2));
        assert!(panics.end().is_empty());
    }

    #[test]
    fn what_was_given_to_one_that_is_dropped_is_done() {
        let (done, seen) = channel();
        let told = helper(move |number: u32| done.send(number).unwrap());
        (1..=3).for_each(|number| told.give(number).unwrap());
        drop(told);
        assert_eq!(seen.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }
}

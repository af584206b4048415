//! Work done on several threads whose results are wanted in order.
//!
//! ```text
//! jobs ─▶ worker ─┐
//!      ─▶ worker ─┼─▶ results, by number ─▶ consumer, in order
//!      ─▶ worker ─┘
//!          ▲ no job is begun more than `window` ahead of the consumer
//! ```
//!
//! What comes out is the same for any number of threads; memory is bounded by the window.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

/// Jobs that may be under way or waiting for the consumer, for each thread: enough that nobody waits for one slow job.
const WINDOW: usize = 3;

struct Shared<J, R> {
    state: Mutex<State<J, R>>,
    changed: Condvar,
    window: usize,
}

struct State<J, R> {
    jobs: J,
    /// Jobs handed out, and results consumed.
    begun: usize,
    consumed: usize,
    /// The number of jobs, once it is known.
    total: Option<usize>,
    results: BTreeMap<usize, R>,
    /// A failure or a panic: nobody begins anything more.
    is_stopped: bool,
}

impl<J, R> Shared<J, R> {
    /// No code of others runs while the lock is held but the iterator's, and whoever panics there stops all.
    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<J, R>>) -> MutexGuard<'a, State<J, R>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops all when it is dropped: at the end, at a failure and at a panic.
struct StopAtEnd<'a, J, R>(&'a Shared<J, R>);

impl<J, R> Drop for StopAtEnd<'_, J, R> {
    fn drop(&mut self) {
        self.0.lock().is_stopped = true;
        self.0.changed.notify_all();
    }
}

/// Does all `jobs` on `threads` threads, each with a worker of its own, and gives the results to `consume` in the order of the jobs,
/// on the caller's thread.
///
/// # Errors
/// The first failure, in the order of the jobs, of a worker or of `consume`; or that threads cannot be started.
pub fn in_order<J, W, R, E>(
    threads: NonZeroUsize,
    jobs: J,
    worker: impl Fn() -> W + Sync,
    mut consume: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    J: Iterator + Send,
    W: FnMut(J::Item) -> Result<R, E>,
    R: Send,
    E: Send + From<io::Error>,
{
    let state =
        State { jobs, begun: 0, consumed: 0, total: None, results: BTreeMap::new(), is_stopped: false };
    let window = threads.get().saturating_mul(WINDOW);
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), window };
    thread::scope(|scope| {
        let _stop = StopAtEnd(&shared);
        for number in 0..threads.get() {
            let (shared, worker) = (&shared, &worker);
            let name = format!("worker-{number}");
            thread::Builder::new().name(name).spawn_scoped(scope, move || work(shared, &mut worker()))?;
        }
        loop {
            let mut state = shared.lock();
            let result = loop {
                let number = state.consumed;
                if let Some(result) = state.results.remove(&number) {
                    break result;
                }
                // A worker that panicked: the panic goes on when the threads are joined.
                if state.is_stopped || state.total == Some(number) {
                    return Ok(());
                }
                state = shared.wait(state);
            };
            state.consumed += 1;
            drop(state);
            shared.changed.notify_all();
            consume(result?)?;
        }
    })
}

fn work<J, R, E>(shared: &Shared<J, Result<R, E>>, work: &mut impl FnMut(J::Item) -> Result<R, E>)
where
    J: Iterator,
{
    let mut panicked = PanicStops { shared, is_done: false };
    loop {
        let mut state = shared.lock();
        while !state.is_stopped && state.total.is_none() && state.begun >= state.consumed + shared.window {
            state = shared.wait(state);
        }
        if state.is_stopped || state.total.is_some() {
            break;
        }
        let Some(job) = state.jobs.next() else {
            state.total = Some(state.begun);
            drop(state);
            shared.changed.notify_all();
            break;
        };
        let number = state.begun;
        state.begun += 1;
        drop(state);
        let result = work(job);
        shared.lock().results.insert(number, result);
        shared.changed.notify_all();
    }
    panicked.is_done = true;
}

struct PanicStops<'a, J, R> {
    shared: &'a Shared<J, R>,
    is_done: bool,
}

impl<J, R> Drop for PanicStops<'_, J, R> {
    fn drop(&mut self) {
        if !self.is_done {
            drop(StopAtEnd(self.shared));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const THREADS: [usize; 4] = [1, 2, 3, 16];

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for threads in THREADS {
            let mut seen = Vec::new();
            let outcome = in_order(
                NonZeroUsize::new(threads).unwrap(),
                0..1000_u64,
                || |job: u64| Ok::<_, io::Error>(job * job),
                |result| {
                    seen.push(result);
                    Ok(())
                },
            );
            outcome.unwrap();
            assert!(seen == (0..1000).map(|job| job * job).collect::<Vec<_>>(), "{threads}");
        }
    }

    #[test]
    fn no_job_is_begun_far_ahead_of_the_consumer() {
        for threads in THREADS {
            let (begun, consumed) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let jobs = (0..500).inspect(|_| {
                let ahead = begun.fetch_add(1, Ordering::SeqCst) - consumed.load(Ordering::SeqCst);
                assert!(ahead <= threads * WINDOW, "{ahead}");
            });
            let threads = NonZeroUsize::new(threads).unwrap();
            let outcome = in_order(
                threads,
                jobs,
                || Ok::<_, io::Error>,
                |_| {
                    consumed.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
            );
            outcome.unwrap();
        }
    }

    #[test]
    fn the_first_failure_in_order_ends_it() {
        for threads in THREADS {
            let threads = NonZeroUsize::new(threads).unwrap();
            let worker =
                || |job: u64| if job >= 50 { Err(io::Error::other(job.to_string())) } else { Ok(job) };
            let error = in_order(threads, 0..1000, worker, |_| Ok(())).unwrap_err();
            assert_eq!(error.to_string(), "50");
            let refuse = |job| if job == 7 { Err(io::Error::other("full")) } else { Ok(()) };
            let error = in_order(threads, 0..1000, || Ok, refuse).unwrap_err();
            assert_eq!(error.to_string(), "full");
        }
    }

    #[test]
    fn a_panic_of_a_worker_is_passed_on() {
        let worker = || |job: u64| if job == 20 { panic!("job 20") } else { Ok::<_, io::Error>(job) };
        let outcome = std::panic::catch_unwind(|| {
            in_order(NonZeroUsize::new(2).unwrap(), 0..1000, worker, |_| Ok(())).unwrap();
        });
        assert!(outcome.is_err());
    }
}

//! Several hosts for one registry: which of them is asked, and what becomes of their answers.
//!
//! ```text
//! in order ──▶ one that may be asked for this ──answers──▶ done
//!                       │ fails: whatever the reason
//!                       └──▶ the next … ──none left──▶ the failure of the last, with the words of all
//! ```
//!
//! A host that could not be reached is asked after the others for a while: else each of a hundred small reads would wait for it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::origin::Origin;
use crate::retry::Outcome;
use crate::transport::Failure;

/// How long a host that did not answer is asked last.
const ABSENCE: Duration = Duration::from_secs(30);

/// The hosts that did not answer of late, and when that was.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    hosts: Mutex<HashMap<Origin, Instant>>,
}

impl Absent {
    /// What came of asking a host, if others could be asked instead.
    pub(crate) fn learn<T>(&self, endpoint: &Endpoint, asked: &Result<T, Failure>) {
        let is_absent = asked.as_ref().is_err_and(|failure| {
            matches!(failure.outcome, Outcome::Unreachable | Outcome::Interrupted | Outcome::Busy { .. })
        });
        match is_absent {
            true => self.doubt(endpoint),
            false => drop(self.lock().remove(&endpoint.origin)),
        }
    }

    /// It answered, and what it sent was of no use.
    pub(crate) fn doubt(&self, endpoint: &Endpoint) {
        self.lock().insert(endpoint.origin.clone(), Instant::now());
    }

    /// The numbers of the endpoints in the order in which they are to be asked: `first`, if that is known to have what is wanted, then
    /// those that are not away, then those that are.
    pub(crate) fn order(&self, endpoints: &[&Endpoint], first: Option<usize>) -> Vec<usize> {
        if endpoints.len() == 1 {
            return vec![0];
        }
        let absent = self.lock();
        let now = Instant::now();
        let is_away = |number: &usize| {
            let since = endpoints.get(*number).and_then(|endpoint| absent.get(&endpoint.origin));
            since.is_some_and(|since| now.saturating_duration_since(*since) < ABSENCE)
        };
        let mut order: Vec<usize> = (0..endpoints.len()).collect();
        // A stable sort leaves the rest as it is.
        order.sort_by_key(|number| (is_away(number), Some(*number) != first));
        order
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Instant>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks endpoints one after the other until one answers; tells which one that was.
///
/// # Errors
/// The failure of the last, and nothing if there is none to ask.
pub(crate) async fn first_answer<T, F>(
    absent: &Absent,
    endpoints: &[&Endpoint],
    first: Option<usize>,
    mut ask: impl FnMut(usize) -> F,
) -> Option<Result<(usize, T), Failure>>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut failures: Vec<Failure> = Vec::new();
    for number in absent.order(endpoints, first) {
        let asked = ask(number).await;
        if let Some(endpoint) = endpoints.get(number).filter(|_| endpoints.len() > 1) {
            absent.learn(endpoint, &asked);
        }
        match asked {
            Ok(answer) => return Some(Ok((number, answer))),
            Err(failure) => failures.push(failure),
        }
    }
    let last = failures.pop()?;
    Some(Err(failures.into_iter().rfold(last, |last, before| last.after(&before))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::ClientConfiguration;
    use crate::endpoint::Endpoints;
    use crate::error::ErrorKind;
    use crate::reference::ImageReference;

    fn endpoints() -> Vec<Endpoint> {
        let endpoint = |host: &str| {
            let ImageReference::Registry(reference) = format!("{host}/name").parse().unwrap() else {
                panic!()
            };
            Endpoints::new(&reference, &ClientConfiguration::default()).unwrap().written
        };
        ["a.example", "b.example", "c.example"].map(endpoint).into()
    }

    fn failed(outcome: Outcome, message: &str) -> Failure {
        Failure::new(ErrorKind::Unreachable, outcome, message)
    }

    #[test]
    fn who_did_not_answer_is_asked_last_until_he_does() {
        let all = endpoints();
        let all: Vec<&Endpoint> = all.iter().collect();
        let absent = Absent::default();
        assert_eq!(absent.order(&all, None), [0, 1, 2]);
        assert_eq!(absent.order(&all, Some(2)), [2, 0, 1]);
        absent.learn(all[0], &Err::<(), _>(failed(Outcome::Unreachable, "away")));
        assert_eq!(absent.order(&all, None), [1, 2, 0]);
        assert_eq!(absent.order(&all, Some(0)), [1, 2, 0], "what it had is no reason to wait for it");
        // It says that it lacks something, and so that it is there.
        absent.learn(all[0], &Err::<(), _>(failed(Outcome::Permanent, "404")));
        assert_eq!(absent.order(&all, None), [0, 1, 2]);
    }

    #[tokio::test]
    async fn hosts_are_asked_in_turn_and_all_failures_are_told() {
        let all = endpoints();
        let all: Vec<&Endpoint> = all.iter().collect();
        let absent = Absent::default();
        let answered = first_answer(&absent, &all, None, async |number| match number {
            2 => Ok("answer"),
            _ => Err(failed(Outcome::Permanent, "nothing")),
        });
        assert_eq!(answered.await.unwrap().unwrap(), (2, "answer"));
        let refused = first_answer(&absent, &all, None, async |number| {
            Err::<(), _>(failed(Outcome::Permanent, &format!("failure {number}")))
        });
        let failure = refused.await.unwrap().unwrap_err();
        assert_eq!(failure.message, "failure 0; failure 1; failure 2");
        assert!(first_answer(&absent, &[], None, async |_| Ok::<_, Failure>(())).await.is_none());
    }
}

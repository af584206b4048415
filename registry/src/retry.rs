//! When to try again.
//!
//! [`Policy::decide`] is a pure function of how often we tried, what happened, the time and a random number, so that
//! it is tested without a network or a clock. [`Retrier`] carries it through one operation: it counts, sleeps, and gives
//! up. Waiting grows exponentially, half of it random ("equal jitter"), so that readers that failed together do not come back together;
//! a `Retry-After` is a lower bound for it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use crate::statistics::Counters;
use crate::transport::Failure;

/// What happened to one attempt, as far as trying again depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Trying again cannot help: 401, 403, 404, a certificate that is not trusted.
    Permanent,
    /// The host could not be connected to.
    Unreachable,
    /// The connection broke, the body was cut, or nothing came for too long.
    Interrupted,
    /// The host answered 408, 429 or 5xx, perhaps with the time after which to come back.
    Busy { retry_after: Option<Duration> },
    /// The host broke the protocol or sent wrong content; a fault in transit is possible but unlikely.
    Malformed,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    RetryAfter(Duration),
    GiveUp,
}

/// How patient an operation is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Most attempts when the host cannot be connected to.
    unreachable_attempts: u32,
    /// Most attempts when the connection breaks.
    interrupted_attempts: u32,
}

/// Wait before the second attempt; it doubles from there.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// No wait of our own choice is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Most attempts of all.
const ATTEMPTS: u32 = 20;
/// Most attempts when the host breaks the protocol.
const MALFORMED_ATTEMPTS: u32 = 3;

impl Policy {
    /// Somebody waits at a terminal: a host that is not there is reported at once.
    pub(crate) const INTERACTIVE: Policy = Policy { unreachable_attempts: 3, interrupted_attempts: 6 };
    /// A mounted image is being read: a host that went away may come back before the deadline.
    pub(crate) const PATIENT: Policy =
        Policy { unreachable_attempts: ATTEMPTS, interrupted_attempts: ATTEMPTS };

    /// `attempt` counts from 1; `jitter` is random in `0.0..1.0`.
    pub(crate) fn decide(
        &self,
        attempt: u32,
        outcome: Outcome,
        now: Instant,
        deadline: Instant,
        jitter: f64,
    ) -> Decision {
        let (most_attempts, at_least) = match outcome {
            Outcome::Permanent => return Decision::GiveUp,
            Outcome::Unreachable => (self.unreachable_attempts, Duration::ZERO),
            Outcome::Interrupted => (self.interrupted_attempts, Duration::ZERO),
            Outcome::Busy { retry_after } => (ATTEMPTS, retry_after.unwrap_or(Duration::ZERO)),
            Outcome::Malformed => (MALFORMED_ATTEMPTS, Duration::ZERO),
        };
        if attempt >= most_attempts {
            return Decision::GiveUp;
        }
        let doublings = attempt.saturating_sub(1).min(16);
        let ceiling = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        let wait = ceiling.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        let wait = at_least.saturating_add(wait);
        match now.checked_add(wait) {
            Some(then) if then < deadline => Decision::RetryAfter(wait),
            _ => Decision::GiveUp,
        }
    }
}

/// Fewer bytes are no sign that a host recovered: it could be resumed for ever, a byte at a time.
const PROGRESS: u64 = 64 * 1024;

/// The retries of one operation.
#[derive(Debug)]
pub(crate) struct Retrier {
    policy: Policy,
    patience: Duration,
    /// Set by the first failure, so that a reader who pauses loses no patience.
    deadline: Option<Instant>,
    attempt: u32,
    /// Breaches of the protocol are counted apart: progress does not excuse them.
    malformed: u32,
    bytes: u64,
}

impl Retrier {
    /// `patience` is how long after a first failure the operation may go on without progress.
    pub(crate) fn new(policy: Policy, patience: Duration) -> Retrier {
        Retrier { policy, patience, deadline: None, attempt: 1, malformed: 0, bytes: 0 }
    }

    /// So many new bytes came. True if that is enough to forget earlier failures.
    pub(crate) fn progressed(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let enough = self.bytes >= PROGRESS;
        if enough {
            self.bytes = 0;
            self.attempt = 1;
            self.deadline = None;
        }
        enough
    }

    /// Waits until it is time for the next attempt, or gives the failure back for good.
    pub(crate) async fn wait_after(&mut self, failure: Failure, counters: &Counters) -> Result<(), Failure> {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert_with(|| deadline_after(now, self.patience));
        let attempt = match failure.outcome {
            Outcome::Malformed => {
                self.malformed += 1;
                self.malformed
            }
            _ => self.attempt,
        };
        match self.policy.decide(attempt, failure.outcome, now, deadline, random_fraction()) {
            Decision::GiveUp => Err(failure.after_attempts(attempt)),
            Decision::RetryAfter(wait) => {
                tracing::debug!(attempt, ?wait, failure = %failure.message, "trying again");
                counters.retried();
                self.attempt += 1;
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
    }
}

fn deadline_after(now: Instant, patience: Duration) -> Instant {
    // A patience of centuries means no deadline that anyone will see.
    now.checked_add(patience).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)))
}

/// Random in `0.0..1.0`; the standard library's hasher is keyed by the system's random numbers.
fn random_fraction() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// The wait that a `Retry-After` header asks for (RFC 9110, section 10.2.3): seconds, or a date.
pub(crate) fn retry_after(value: &str, unix_now: u64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    Some(Duration::from_secs(unix_seconds(value)?.saturating_sub(unix_now)))
}

/// Seconds since 1970 of an HTTP date in its preferred form, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn unix_seconds(date: &str) -> Option<u64> {
    let (_, date) = date.split_once(", ")?;
    let fields: Vec<&str> = date.split_ascii_whitespace().collect();
    let [day, month, year, time, "GMT"] = fields[..] else { return None };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year) = (day.parse::<u64>().ok()?, year.parse::<u64>().ok()?);
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else { return None };
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, with March as the first month so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_a_ceiling_and_jitter_takes_at_most_half() {
        let now = Instant::now();
        let decide = |attempt, jitter| {
            Policy::PATIENT.decide(attempt, Outcome::Interrupted, now, now + SECOND * 3600, jitter)
        };
        for (attempt, ceiling) in [(1, 100), (2, 200), (3, 400), (6, 3200), (7, 5000), (19, 5000)] {
            let ceiling = Duration::from_millis(ceiling);
            assert_eq!(decide(attempt, 0.0), Decision::RetryAfter(ceiling / 2));
            assert_eq!(decide(attempt, 1.0), Decision::RetryAfter(ceiling));
        }
        assert_eq!(decide(20, 0.0), Decision::GiveUp);
    }

    #[test]
    fn each_outcome_has_its_own_patience() {
        let now = Instant::now();
        let attempts = |policy: Policy, outcome| {
            (1..)
                .find(|attempt| {
                    policy.decide(*attempt, outcome, now, now + SECOND * 3600, 0.5) == Decision::GiveUp
                })
                .unwrap()
        };
        assert_eq!(attempts(Policy::INTERACTIVE, Outcome::Permanent), 1);
        assert_eq!(attempts(Policy::INTERACTIVE, Outcome::Unreachable), 3);
        assert_eq!(attempts(Policy::PATIENT, Outcome::Unreachable), 20);
        assert_eq!(attempts(Policy::INTERACTIVE, Outcome::Interrupted), 6);
        assert_eq!(attempts(Policy::PATIENT, Outcome::Malformed), 3);
        assert_eq!(attempts(Policy::INTERACTIVE, Outcome::Busy { retry_after: None }), 20);
    }

    #[test]
    fn retry_after_is_kept_and_the_deadline_wins() {
        let now = Instant::now();
        let outcome = Outcome::Busy { retry_after: Some(SECOND * 7) };
        let decide = |deadline| Policy::PATIENT.decide(1, outcome, now, now + deadline, 0.0);
        assert_eq!(decide(SECOND * 10), Decision::RetryAfter(SECOND * 7 + FIRST_WAIT / 2));
        assert_eq!(decide(SECOND * 7), Decision::GiveUp);
        let for_ever = Outcome::Busy { retry_after: Some(Duration::MAX) };
        assert_eq!(Policy::PATIENT.decide(1, for_ever, now, now + SECOND, 0.0), Decision::GiveUp);
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        // The example date of RFC 9110; its number from `date -d '1994-11-06 08:49:37 UTC' +%s`.
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(unix_seconds(date), Some(784_111_777));
        assert_eq!(unix_seconds("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(unix_seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(retry_after(date, 784_111_700), Some(SECOND * 77));
        assert_eq!(retry_after(date, 784_111_999), Some(Duration::ZERO));
        assert_eq!(retry_after(" 120 ", 0), Some(SECOND * 120));
        assert_eq!(retry_after("99999999999999999999999", 0), Some(Duration::from_secs(u64::MAX)));
        for text in ["", "soon", "-1", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 00 Nov 1994 08:49:37 GMT"] {
            assert_eq!(retry_after(text, 0), None, "{text:?}");
        }
    }
}

//! When a process that serves a mount is followed by another, once it has died: at once as a rule; later and later if it dies of itself,
//! and no more if none comes as far as serving.
//!
//! Readers wait meanwhile, and cannot be killed while what they asked for is with nobody. So there is an end.

use std::time::Duration;

/// A process that has not served so long has done nothing for anybody.
const USEFUL: Duration = Duration::from_millis(100);
/// One that died of itself, but served so long, may be followed at once.
const SOUND: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// So many useless ones after each other are enough: 11 seconds of waiting.
const MOST_USELESS: u32 = 16;

/// How a process that served came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// How long it had served; nothing if it did not come to that.
    pub served: Option<Duration>,
    /// Somebody killed it (SIGKILL), as an administrator or the kernel that needed memory.
    pub is_killed: bool,
}

/// What has happened since all was well.
#[derive(Debug, Default)]
pub struct Restarts {
    useless: u32,
    crashed: u32,
}

impl Restarts {
    /// How long to wait until the next one is started; nothing if none is to be.
    pub fn after(&mut self, death: Death) -> Option<Duration> {
        let served = death.served.unwrap_or_default();
        self.useless = if served < USEFUL { self.useless + 1 } else { 0 };
        self.crashed = if !death.is_killed && served < SOUND { self.crashed + 1 } else { 0 };
        if self.useless > MOST_USELESS {
            return None;
        }
        let doublings = match self.useless.max(self.crashed) {
            0 | 1 => return Some(Duration::ZERO),
            deaths => (deaths - 2).min(10),
        };
        Some((FIRST_DELAY * (1 << doublings)).min(LONGEST_DELAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Death = Death { served: Some(Duration::from_millis(150)), is_killed: true };
    const USELESS: Death = Death { served: None, is_killed: false };

    #[test]
    fn whoever_is_killed_is_followed_at_once_however_often() {
        let mut restarts = Restarts::default();
        assert!((0..1000).all(|_| restarts.after(KILLED) == Some(Duration::ZERO)));
    }

    #[test]
    fn after_useless_ones_it_is_waited_longer_and_longer_and_then_no_more() {
        let mut restarts = Restarts::default();
        let waited: Vec<_> = std::iter::from_fn(|| restarts.after(USELESS)).collect();
        assert_eq!(waited.len(), MOST_USELESS as usize);
        assert!(waited.is_sorted() && waited[0].is_zero() && waited[15] == LONGEST_DELAY, "{waited:?}");
        let all: Duration = waited.iter().sum();
        assert!(Duration::from_secs(5) < all && all < Duration::from_secs(15), "{all:?}");
    }

    #[test]
    fn one_that_served_makes_good_for_useless_ones() {
        let mut restarts = Restarts::default();
        for _ in 0..100 {
            for _ in 0..MOST_USELESS {
                assert!(restarts.after(USELESS).is_some());
            }
            assert_eq!(restarts.after(KILLED), Some(Duration::ZERO));
        }
    }

    #[test]
    fn one_that_crashes_again_and_again_is_followed_for_ever_but_ever_later() {
        let mut restarts = Restarts::default();
        let crash = Death { served: Some(Duration::from_secs(1)), is_killed: false };
        let waited: Vec<_> = (0..100).map(|_| restarts.after(crash).unwrap()).collect();
        assert!(waited.is_sorted() && waited[99] == LONGEST_DELAY, "{waited:?}");
        let sound = Death { served: Some(SOUND), is_killed: false };
        assert_eq!(restarts.after(sound), Some(Duration::ZERO));
    }
}

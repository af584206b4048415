//! When a process that serves a mount is followed by another, once it has died: at once as a rule; later and later if it dies of itself,
//! and no more if for some time none comes as far as serving.
//!
//! Readers wait meanwhile, and cannot be killed while what they asked for is with nobody. So there is an end.

use std::time::Duration;

/// A process that has not served so long has done nothing for anybody.
const USEFUL: Duration = Duration::from_millis(100);
/// One that died of itself, but served so long, may be followed at once.
const SOUND: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// After one that others killed, whose fault it is not.
const LONGEST_DELAY_IF_KILLED: Duration = Duration::from_millis(50);
/// So long nobody may be served.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a process that served came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// How long it lived.
    pub lasted: Duration,
    /// How long of that it had served; nothing if it did not come to that.
    pub served: Option<Duration>,
    /// Somebody killed it (SIGKILL), as an administrator or the kernel that needed memory.
    pub is_killed: bool,
}

/// What has happened since all was well.
#[derive(Debug, Default)]
pub struct Restarts {
    useless: u32,
    crashed: u32,
    /// How long nobody has been served.
    wasted: Duration,
}

impl Restarts {
    /// How long to wait until the next one is started; nothing if none is to be.
    pub fn after(&mut self, death: Death) -> Option<Duration> {
        let served = death.served.unwrap_or_default();
        if served < USEFUL {
            self.useless += 1;
            self.wasted += death.lasted;
        } else {
            (self.useless, self.wasted) = (0, Duration::ZERO);
        }
        self.crashed = if !death.is_killed && served < SOUND { self.crashed + 1 } else { 0 };
        if self.wasted > PATIENCE {
            return None;
        }
        let doublings = match self.useless.max(self.crashed) {
            0 | 1 => return Some(Duration::ZERO),
            deaths => (deaths - 2).min(10),
        };
        let longest = if death.is_killed { LONGEST_DELAY_IF_KILLED } else { LONGEST_DELAY };
        let delay = (FIRST_DELAY * (1 << doublings)).min(longest);
        self.wasted += delay;
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lived(milliseconds: u64, served: Option<u64>, is_killed: bool) -> Death {
        let served = served.map(Duration::from_millis);
        Death { lasted: Duration::from_millis(milliseconds), served, is_killed }
    }

    #[test]
    fn whoever_is_killed_is_followed_at_once_however_often() {
        let mut restarts = Restarts::default();
        assert!((0..1000).all(|_| restarts.after(lived(200, Some(150), true)) == Some(Duration::ZERO)));
    }

    #[test]
    fn after_useless_ones_it_is_waited_longer_and_longer_and_then_no_more() {
        for (is_killed, longest) in [(false, LONGEST_DELAY), (true, LONGEST_DELAY_IF_KILLED)] {
            let mut restarts = Restarts::default();
            let waited: Vec<_> = std::iter::from_fn(|| restarts.after(lived(20, None, is_killed))).collect();
            assert!(
                waited.is_sorted() && waited[0].is_zero() && waited.last() == Some(&longest),
                "{waited:?}"
            );
            let all = waited.iter().sum::<Duration>() + Duration::from_millis(20) * waited.len() as u32;
            assert!(PATIENCE < all + longest && all < PATIENCE + 2 * longest, "{all:?}");
        }
    }

    #[test]
    fn one_that_served_makes_good_for_useless_ones() {
        let mut restarts = Restarts::default();
        for _ in 0..100 {
            for _ in 0..12 {
                assert!(restarts.after(lived(20, Some(10), false)).is_some());
            }
            assert_eq!(restarts.after(lived(150, Some(120), true)), Some(Duration::ZERO));
        }
    }

    #[test]
    fn one_that_crashes_again_and_again_is_followed_for_ever_but_ever_later() {
        let mut restarts = Restarts::default();
        let waited: Vec<_> =
            (0..100).map(|_| restarts.after(lived(1100, Some(1000), false)).unwrap()).collect();
        assert!(waited.is_sorted() && waited[99] == LONGEST_DELAY, "{waited:?}");
        assert_eq!(restarts.after(lived(10_001, Some(10_000), false)), Some(Duration::ZERO));
    }
}

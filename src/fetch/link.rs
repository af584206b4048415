//! What the way to the hosts of an image carries, as its requests show: a round-trip time, and bytes per second.
//!
//! A request takes a round trip until its first bytes are here, and then the time for the others. The shortest of late tells the first,
//! those with many bytes the second; of several at once each gets less than the link carries, so the best of late counts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Requests with fewer bytes say nothing of the bandwidth.
const MANY_BYTES: u64 = 128 << 10;
/// Of what was measured, so much is forgotten with each request: a link that becomes slower is seen after some dozens.
const FORGETTING: f64 = 0.02;
/// Least and most bytes that a round trip is ever taken for: from a registry on this machine to one behind a satellite.
const BOUNDS: (f64, f64) = (192e3, 1536e3);

/// What is known of a link.
#[derive(Debug, Default)]
pub struct Link(Mutex<Measured>);

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Seconds; 0 if nothing is known.
    round_trip: f64,
    /// Bytes per second; 0 if nothing is known.
    bandwidth: f64,
}

impl Measured {
    fn learn(&mut self, bytes: u64, first: f64, all: f64) {
        let slower = self.round_trip * (1.0 + FORGETTING);
        self.round_trip = if self.round_trip == 0.0 { first } else { first.min(slower) };
        if bytes >= MANY_BYTES {
            // At least a tenth of it was for the bytes, whatever the clock says; and what came while the first waited for a thread of ours
            // did not come in no time.
            let transfer = (all - self.round_trip).max(all / 10.0);
            self.bandwidth = (bytes as f64 / transfer).max(self.bandwidth * (1.0 - FORGETTING));
        }
    }

    /// Bytes that the link carries in a round trip.
    fn bytes_in_a_round_trip(&self) -> u64 {
        let (least, most) = BOUNDS;
        // It is within bounds that fit.
        (self.round_trip * self.bandwidth).clamp(least, most) as u64
    }
}

impl Link {
    /// Learns of a request that brought so many bytes, the first and all of them after these times.
    pub fn learn(&self, bytes: u64, first: Duration, all: Duration) {
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.as_secs_f64().max(1e-6);
        measured.learn(bytes, first.as_secs_f64().clamp(1e-6, all), all);
    }

    /// Bytes that can be fetched in the time of one more request, about.
    pub fn bytes_in_a_round_trip(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes_in_a_round_trip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that come first.
    const PIECE: u64 = 16_000;

    /// Requests over a link of that round trip, in milliseconds, and that bandwidth, in bytes per millisecond.
    fn carried(round_trip: f64, bandwidth: f64, requests: &[u64]) -> u64 {
        let link = Link::default();
        for bytes in requests {
            let [first, all] = [*bytes.min(&PIECE), *bytes]
                .map(|bytes| Duration::from_secs_f64((round_trip + bytes as f64 / bandwidth) / 1e3));
            link.learn(*bytes, first, all);
        }
        link.bytes_in_a_round_trip()
    }

    #[test]
    fn a_link_is_known_by_its_requests() {
        let requests = [3_000, 300_000, 20_000, 1_000_000, 5_000, 300_000];
        for (round_trip, bandwidth, expected) in [
            (20.0, 25_000.0, 400_000..600_000),
            (50.0, 12_500.0, 500_000..750_000),
            (0.2, 500_000.0, 192_000..192_001),
            (600.0, 10_000.0, 1_536_000..1_536_001),
        ] {
            let found = carried(round_trip, bandwidth, &requests);
            assert!(expected.contains(&found), "{round_trip} ms, {bandwidth}: {found}");
        }
    }

    #[test]
    fn before_anything_is_known_a_round_trip_is_short() {
        assert_eq!(Link::default().bytes_in_a_round_trip(), 192_000);
        assert_eq!(carried(20.0, 25_000.0, &[100, 2_000]), 192_000);
    }
}

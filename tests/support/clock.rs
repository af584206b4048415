//! Waiting for what the clock alone brings.

use std::time::{SystemTime, UNIX_EPOCH};

/// Waits for the second to end: what expires in it has, and what is used next was used later.
pub fn next_second() {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let begun = second();
    while second() == begun {
        std::thread::yield_now();
    }
}

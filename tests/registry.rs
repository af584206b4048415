//! What the registry client promises, against a real registry and against one that misbehaves.

mod against_docker_registry;
mod authentication;
mod failures;
mod hosts;
mod layout;
mod ranges;
mod referrers;
mod resolving;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use peelfs_registry::{Blob, Client, ClientConfiguration, Error, Timeouts};

/// A client that waits longer than any test should take.
fn client() -> Client {
    client_with(ClientConfiguration::default())
}

/// A client that gives up soon, for hosts that will never answer.
fn hasty_client() -> Client {
    let timeouts = Timeouts {
        idle: Duration::from_millis(300),
        operation: Duration::from_millis(1500),
        ..Timeouts::default()
    };
    client_with(ClientConfiguration { timeouts, ..ClientConfiguration::default() })
}

fn client_with(configuration: ClientConfiguration) -> Client {
    Client::new(configuration).expect("a sound configuration")
}

/// All pieces of a stream, or its error.
async fn streamed(blob: &Blob, from: u64) -> Result<Vec<u8>, Error> {
    let pieces: Vec<_> = blob.stream(from).try_collect().await?;
    Ok(pieces.concat())
}

/// Bytes that differ everywhere, so that a wrong range is a wrong content.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|position| (position as u32).wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect()
}

/// The whole chain of an error, as a person would see it.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

//! The private parsers of what hosts send and files hold, for the fuzz targets alone. They are there only with the feature `fuzzing`,
//! and so no part of the interface.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::Sources;

/// The challenges of a `WWW-Authenticate` header: of each its scheme, and those parameters that are asked for.
pub fn challenges(header: &str) -> Vec<(String, Vec<String>)> {
    let told = |challenge: crate::challenge::Challenge| {
        let parameters = ["realm", "service", "scope"].iter().filter_map(|name| challenge.parameter(name));
        (challenge.scheme.clone(), parameters.map(str::to_owned).collect())
    };
    crate::challenge::challenges(header).into_iter().map(told).collect()
}

/// A `Content-Range` header.
pub fn content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    crate::content_range::parsed(header)
}

/// A `Retry-After` header that came at `unix_now`.
pub fn retry_after(header: &str, unix_now: u64) -> Option<Duration> {
    crate::retry::retry_after(header, unix_now)
}

/// Whether a file of Docker or podman has credentials for a repository; the text of the error if it is malformed. No helper is run.
pub fn credentials(file: PathBuf, host: &str, repository: &str) -> Result<bool, String> {
    let sources = Sources { files: vec![file], helper_directories: vec![], helper_timeout: Duration::ZERO };
    let found = crate::credentials::find(&sources, host, repository).map_err(|error| error.to_string())?;
    Ok(found.is_some())
}

//! Texts from outside (`registry/src/`): challenges, `Content-Range`, `Retry-After`, credential files; and what people
//! type: references, digests and platforms.
#![no_main]

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use peelfs_fuzz::{choice, file_of, one_of, seeds};
use peelfs_registry::{Digest, ImageReference, Platform, fuzzing};

#[derive(Clone, Copy)]
enum Text {
    Challenge,
    ContentRange,
    RetryAfter,
    Credentials,
    Reference,
    Digest,
    Platform,
}

const TEXTS: [Text; 7] = [
    Text::Challenge,
    Text::ContentRange,
    Text::RetryAfter,
    Text::Credentials,
    Text::Reference,
    Text::Digest,
    Text::Platform,
];

fuzz_target!(init: seeds::plant(seeds::headers), |bytes: &[u8]| {
    let mut bytes = bytes;
    let text = one_of(choice(&mut bytes), &TEXTS);
    match text {
        Text::Credentials => check_credentials(bytes),
        _ => {
            if let Ok(string) = std::str::from_utf8(bytes) {
                check(text, string);
            }
        }
    }
});

fn check(kind: Text, text: &str) {
    match kind {
        Text::Challenge => {
            let challenges = fuzzing::challenges(text);
            let lengths = challenges.iter().map(|(scheme, parameters)| {
                assert!(!scheme.is_empty());
                scheme.len() + parameters.iter().map(String::len).sum::<usize>()
            });
            assert!(lengths.sum::<usize>() <= text.len(), "more than was there");
        }
        Text::ContentRange => {
            if let Some((range, size)) = fuzzing::content_range(text) {
                assert!(range.start < range.end && size.is_none_or(|size| range.end <= size));
                let size = size.map_or("*".to_owned(), |size| size.to_string());
                let again = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                assert_eq!(fuzzing::content_range(&again).map(|(again, _)| again), Some(range));
            }
        }
        Text::RetryAfter => {
            for now in [0, 1_700_000_000, u64::MAX] {
                std::hint::black_box(fuzzing::retry_after(text, now));
            }
        }
        Text::Reference => {
            if let Ok(reference) = text.parse::<ImageReference>() {
                check_reference(&reference);
            }
        }
        Text::Digest => {
            if let Ok(digest) = text.parse::<Digest>() {
                assert_eq!(digest.as_str(), text);
                assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
        Text::Platform => {
            if let Ok(platform) = text.parse::<Platform>() {
                assert_eq!(platform.to_string().parse(), Ok(platform), "{text:?}");
            }
        }
        Text::Credentials => {}
    }
}

fn check_credentials(bytes: &[u8]) {
    let file = file_of(bytes);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    for (host, repository) in [("docker.io", "library/python"), ("quay.io", "org/name"), ("h:5000", "x")] {
        if let Err(error) = fuzzing::credentials(path.clone(), host, repository) {
            assert!(error.contains("/proc/self/fd/") || error.contains("credential helper"), "{error}");
        }
    }
}

/// What is shown means the same when it is typed again; and nothing of it leads elsewhere in a URL.
fn check_reference(reference: &ImageReference) {
    assert_eq!(reference.to_string().parse().as_ref(), Ok(reference));
    if let ImageReference::Registry(reference) = reference {
        let url_parts = [reference.host(), reference.repository(), reference.tag().unwrap_or_default()];
        for part in url_parts {
            assert!(part.bytes().all(|byte| byte.is_ascii_graphic()), "{part:?}");
            assert!(!part.contains(['?', '#', '@', '%', '\\']), "{part:?}");
            assert!(part.split('/').all(|name| name != "." && name != ".."), "{part:?}");
        }
    }
}

//! Numbers as Prometheus reads them, and a reader that is stricter than it is: what the format does not say is an error.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Numbers by name and labels, as they are written.
#[derive(Clone, Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asks at a unix socket.
    pub fn ask(socket: &Path) -> Metrics {
        let (head, body) = http(UnixStream::connect(socket).expect("somebody listens"), "GET /metrics");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
        Metrics::read(&body)
    }

    /// Text format 0.0.4: each family once, with help and type before its numbers; no number twice; counters named as such.
    fn read(text: &str) -> Metrics {
        let mut numbers = BTreeMap::new();
        let mut families: BTreeMap<&str, &str> = BTreeMap::new();
        let (mut helped, mut family) = ("", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                helped = rest.split_once(' ').expect("a help text").0;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, helped, "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert!(name.starts_with("peel_"), "{line}");
                assert!(families.insert(name, kind).is_none(), "{name} comes twice");
                family = name;
            } else {
                let (key, value) = line.rsplit_once(' ').expect("a number");
                let name = key.split('{').next().unwrap();
                let end = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} stands below {family}"));
                let ends: &[&str] =
                    if families[family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(ends.contains(&end), "{line}");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
                assert!(value >= 0.0 && numbers.insert(key.to_owned(), value).is_none(), "{line}");
            }
        }
        Metrics(numbers)
    }

    /// A number, by its name and labels as they are written; 0 if it is not there.
    pub fn get(&self, key: &str) -> f64 {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// The sum of all whose name and labels contain all these words.
    pub fn sum(&self, words: &[&str]) -> f64 {
        let such = self.0.iter().filter(|(key, _)| words.iter().all(|word| key.contains(word)));
        such.map(|(_, value)| value).sum()
    }

    /// All counters are at least what they were.
    #[track_caller]
    pub fn has_not_fallen_behind(&self, before: &Metrics) {
        for (key, value) in &before.0 {
            let counts = ["_total", "_count", "_bucket"]
                .iter()
                .any(|end| key.split('{').next().unwrap().ends_with(end));
            assert!(!counts || self.get(key) >= *value, "{key} was {value} and is {}", self.get(key));
        }
    }
}

/// A request without a body, and the answer's head and body.
pub fn http(mut stream: impl Read + Write, request: &str) -> (String, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: peel\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

//! Numbers as Prometheus reads them: its text format, version 0.0.4.
//!
//! ```text
//! # HELP peel_reads_total Reads of the kernel.
//! # TYPE peel_reads_total counter
//! peel_reads_total{answer="local"} 12
//! ```

use std::fmt::{Display, Write as _};

use crate::meter::{BOUNDS, TimingCounts};

/// The media type of the format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a number is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// It never grows less.
    Counter,
    /// It comes and goes.
    Gauge,
    /// Durations, sorted.
    Histogram,
}

/// Labels with their values, in the order in which they are written.
pub type LabelPairs<'a> = &'a [(&'a str, &'a str)];

/// A text that grows by a family of numbers at a time.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// Numbers of one name.
pub struct Family<'a> {
    name: &'a str,
    text: &'a mut String,
}

impl Exposition {
    /// Begins a family; `help` has neither backslashes nor line ends.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // To write into a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { name, text: &mut self.0 }
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A number of it.
    pub fn number(&mut self, labels: LabelPairs<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// The parts of durations, each with all that lie below, and their sum and count; in seconds.
    pub fn durations(&mut self, labels: LabelPairs<'_>, durations: &TimingCounts) -> &mut Self {
        let mut count = 0_u64;
        let ends = BOUNDS.iter().map(|bound| (*bound as f64 / 1e6).to_string()).chain(["+Inf".to_owned()]);
        for (end, part) in ends.zip(durations.parts) {
            count = count.saturating_add(part);
            self.line("_bucket", labels, Some(&end), count);
        }
        self.line("_sum", labels, None, durations.nanoseconds as f64 / 1e9);
        self.line("_count", labels, None, count);
        self
    }

    fn line(&mut self, end: &str, labels: LabelPairs<'_>, bound: Option<&str>, value: impl Display) {
        let text = &mut *self.text;
        text.push_str(self.name);
        text.push_str(end);
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        for (number, (label, value)) in all.enumerate() {
            text.push(if number == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    letter => text.push(letter),
                }
            }
            text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_are_written_as_the_format_says() {
        let mut text = Exposition::default();
        text.family("a_total", Kind::Counter, "What is counted.")
            .number(&[], 7)
            .number(&[("host", "a\\b\"c\nd"), ("kind", "")], u64::MAX);
        let mut durations = TimingCounts::default();
        for milliseconds in [1, 3, 300, 100_000] {
            durations.add(Duration::from_millis(milliseconds));
        }
        text.family("b_seconds", Kind::Histogram, "How long.").durations(&[("m", "x")], &durations);
        let expected = "# HELP a_total What is counted.\n# TYPE a_total counter\na_total 7\n\
            a_total{host=\"a\\\\b\\\"c\\nd\",kind=\"\"} 18446744073709551615\n\
            # HELP b_seconds How long.\n# TYPE b_seconds histogram\n";
        let text = text.into_text();
        let (head, buckets) = text.split_at(expected.len());
        assert_eq!(head, expected);
        for line in [
            "b_seconds_bucket{m=\"x\",le=\"0.001\"} 1\n",
            "b_seconds_bucket{m=\"x\",le=\"0.005\"} 2\n",
            "b_seconds_bucket{m=\"x\",le=\"0.5\"} 3\n",
            "b_seconds_bucket{m=\"x\",le=\"60\"} 3\n",
            "b_seconds_bucket{m=\"x\",le=\"+Inf\"} 4\n",
            "b_seconds_sum{m=\"x\"} 100.304\n",
            "b_seconds_count{m=\"x\"} 4\n",
        ] {
            assert!(buckets.contains(line), "{line}{buckets}");
        }
        assert_eq!(buckets.lines().count(), 15);
    }
}

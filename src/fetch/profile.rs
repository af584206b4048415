//! Access profiles: which files of an image its mounts read, in which order, and which parts of large ones.
//!
//! ```text
//! profile ─┬─ run (a mount) ── files, in the order of their first touches
//!          ├─ run …             each with the time, and of a large file the parts that were touched
//!          └─ "earlier"         what runs before the last eight came to
//! ```
//!
//! What they come to ([`Profile::typical`]): a file's position is the lower median of its positions in the runs that touched it, so
//! that one run that went another way does not move it. Files touched in less than a quarter as many runs as the file that was
//! touched in most are *seldom*, and come after all others. Among equals the number
//! of runs decides, and then the path: the result depends on the runs alone.
//!
//! Of more than [`MAXIMUM_RUNS`] runs the two oldest become one, by the same rule: nothing is forgotten, but what happened long ago
//! counts as one run.

pub mod format;
pub mod kept;
mod record;
pub mod referrer;

use std::collections::BTreeMap;
use std::ops::Range;

pub use record::record;

/// Runs that are told apart.
pub const MAXIMUM_RUNS: usize = 8;
/// Most files of a run; those touched after them are not recorded.
pub const MAXIMUM_FILES: usize = 1 << 15;
/// Most parts of a file.
pub const MAXIMUM_PARTS: usize = 64;
/// Longest path of a file, in bytes.
pub const MAXIMUM_PATH: usize = 4096;

/// Name of the run into which the oldest ones are folded. If there is one, it is the first.
const EARLIER: &str = "earlier";

/// What mounts of an image read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Reference of the image, as it was mounted last.
    pub image: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// The oldest first.
    pub runs: Vec<Run>,
}

/// What one mount read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Tells it from all other runs.
    pub name: String,
    /// In the order of their first touches; no path comes twice.
    pub files: Vec<TouchedFile>,
}

/// A file, and what was read of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TouchedFile {
    /// From the root, without a slash before or after.
    pub path: Vec<u8>,
    /// When it was touched first, in milliseconds since the mount.
    pub milliseconds: u64,
    /// The parts that were touched, in bytes of the file, ascending and apart. None: all of it.
    pub parts: Vec<Range<u64>>,
}

/// A file as several runs read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypicalFile {
    /// With the lower median of the times; all parts that any run touched, where it is known.
    pub file: TouchedFile,
    /// How many runs touched it.
    pub runs: usize,
    /// See the head of this module.
    pub is_seldom: bool,
}

impl Profile {
    /// What the runs come to: all files, the most wanted first.
    pub fn typical(&self) -> Vec<TypicalFile> {
        typical(&self.runs)
    }

    /// Keeps the files of which `kept` is true, and the runs that have any.
    pub fn retain(&mut self, mut kept: impl FnMut(&mut TouchedFile) -> bool) {
        for run in &mut self.runs {
            run.files.retain_mut(&mut kept);
        }
        self.runs.retain(|run| !run.files.is_empty());
    }
}

/// What is known of a file in several runs.
#[derive(Default)]
struct Touches<'a> {
    positions: Vec<usize>,
    milliseconds: Vec<u64>,
    parts: Vec<&'a Range<u64>>,
}

/// What these runs come to, as one.
fn folded(runs: &[Run]) -> Run {
    let files = typical(runs).into_iter().take(MAXIMUM_FILES).map(|typical| typical.file);
    Run { name: EARLIER.to_owned(), files: files.collect() }
}

fn typical(runs: &[Run]) -> Vec<TypicalFile> {
    let mut by_path: BTreeMap<&[u8], Touches<'_>> = BTreeMap::new();
    for run in runs {
        for (position, file) in run.files.iter().enumerate() {
            let touches = by_path.entry(&file.path).or_default();
            touches.positions.push(position);
            touches.milliseconds.push(file.milliseconds);
            touches.parts.extend(&file.parts);
        }
    }
    let most = by_path.values().map(|touches| touches.positions.len()).max().unwrap_or(0);
    let files = by_path.into_iter().filter_map(|(path, touches)| {
        let runs = touches.positions.len();
        let position = lower_median(touches.positions)?;
        let milliseconds = lower_median(touches.milliseconds)?;
        let parts = joined(touches.parts);
        let file = TouchedFile { path: path.to_owned(), milliseconds, parts };
        Some((position, TypicalFile { file, runs, is_seldom: runs * 4 < most }))
    });
    let mut files: Vec<(usize, TypicalFile)> = files.collect();
    // Sorted by path before, and stable.
    files.sort_by_key(|(position, file)| (file.is_seldom, *position, std::cmp::Reverse(file.runs)));
    files.into_iter().map(|(_, file)| file).collect()
}

fn lower_median<T: Ord + Copy>(mut values: Vec<T>) -> Option<T> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// The union of ranges; where it has too many, the smallest gaps are closed.
fn joined(mut ranges: Vec<&Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut union: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range.clone()),
        }
    }
    while union.len() > MAXIMUM_PARTS {
        let gaps = union.windows(2).map(|pair| pair[1].start - pair[0].end);
        // There are at least two ranges, and so a gap.
        let Some((place, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { break };
        let after = union.remove(place + 1);
        union[place].end = after.end;
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, milliseconds: u64) -> TouchedFile {
        TouchedFile { path: path.into(), milliseconds, parts: vec![] }
    }

    /// A run of files with names of one letter.
    fn run(name: &str, files: &str) -> Run {
        let files = files.chars().zip(0..).map(|(letter, at)| file(&letter.to_string(), at));
        Run { name: name.to_owned(), files: files.collect() }
    }

    fn profile(runs: &[&str]) -> Profile {
        let runs = runs.iter().enumerate().map(|(number, files)| run(&number.to_string(), files));
        Profile { runs: runs.collect(), ..Profile::default() }
    }

    /// The files of one letter, with a bar before those that are seldom touched.
    pub(super) fn order(profile: &Profile) -> String {
        let mut order = String::new();
        for typical in profile.typical() {
            if typical.is_seldom && !order.contains('|') {
                order.push('|');
            }
            order.push_str(std::str::from_utf8(&typical.file.path).unwrap());
        }
        order
    }

    #[test]
    fn several_runs_come_to_the_earliest_typical_order() {
        for (runs, expected) in [
            (&["bac"][..], "bac"),
            (&["abc", "abc", "cba"], "abc"),
            // One run went another way first.
            (&["xyabc", "abc", "abc"], "axbyc"),
            (&["abc", "bac"], "abc"),
            // Neither workload is more typical than the other.
            (&["lab", "lcd"], "lacbd"),
            // In less than a quarter as many runs as the file that all touch.
            (&["lxa", "la", "la", "la", "la"], "la|x"),
            (&["lxa", "la", "la", "la"], "lax"),
            (&[], ""),
        ] {
            assert_eq!(order(&profile(runs)), expected, "{runs:?}");
        }
    }

    #[test]
    fn parts_of_all_runs_are_joined_where_they_are_known() {
        let with_parts = |name: &str, parts: Vec<Range<u64>>| {
            let file = TouchedFile { parts, ..file("a", 0) };
            Run { name: name.to_owned(), files: vec![file] }
        };
        let mut profile = Profile::default();
        profile.runs.push(with_parts("opened whole", vec![]));
        assert_eq!(profile.typical()[0].file.parts, []);
        profile.runs.push(with_parts("one", vec![0..10, 40..50]));
        profile.runs.push(with_parts("two", vec![10..20, 45..60]));
        assert_eq!(profile.typical()[0].file.parts, [0..20, 40..60]);
        let many: Vec<Range<u64>> =
            (0..100).map(|number| number * 100..number * 100 + 50 + number / 50).collect();
        profile.runs.push(with_parts("many", many));
        let parts = &profile.typical()[0].file.parts;
        assert_eq!((parts.len(), parts[0].start, parts.last().unwrap().end), (MAXIMUM_PARTS, 0, 9951));
    }

    #[test]
    fn of_another_image_only_files_that_are_there_are_kept() {
        let mut profile = profile(&["ab", "a", "b"]);
        profile.retain(|file| file.path == b"b");
        assert_eq!((profile.runs.len(), order(&profile)), (2, "b".to_owned()));
    }
}

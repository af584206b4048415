//! The text of an access profile: lines of JSON, which people and `jq` can read, and which is the same for the same profile.
//!
//! ```text
//! {"format":"peel-profile","version":1,"image":"docker.io/library/python:3.12","manifest":"sha256:…","runs":2,"crc32":3735928559}
//! {"run":"1795269780-4242","files":2}
//! {"path":"usr/bin/python3.12","ms":3,"parts":[[0,262144],[1048576,1310720]]}
//! {"path":"usr/lib/100%25.so","ms":9}
//! {"run":…
//! ```
//!
//! In a path, `%` and bytes that are not UTF-8 are `%` and two hexadecimal digits. A text that does not say all that its counts
//! promise was cut off, and is refused as a whole; so is one that its checksum does not fit. Who changes it by hand takes the checksum out.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{EARLIER, MAXIMUM_FILES, MAXIMUM_PARTS, MAXIMUM_PATH, MAXIMUM_RUNS, Profile, Run, TouchedFile};
use crate::layer::path::components;

const FORMAT: &str = "peel-profile";
const VERSION: u32 = 1;
/// Bytes of files that are written of one run, so that all of them stay below what the store keeps.
const MAXIMUM_RUN: usize = 4_000_000;
/// Longest name of a run or reference of an image, in bytes.
const MAXIMUM_LABEL: usize = 4096;

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is something else.
    #[error("it is not an access profile")]
    NotAProfile,
    /// A later version wrote it.
    #[error("it is an access profile of version {found}, and only {VERSION} is known; use a newer peel")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It is not as it was written.
    #[error("the access profile was cut off or changed: its checksum differs")]
    Changed,
    /// A line of it cannot be used.
    #[error("line {line} of the access profile {reason}")]
    Line {
        /// Which, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    image: String,
    manifest: String,
    runs: usize,
    /// Checksum of all that follows; one that was written by hand has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct RunLine {
    run: String,
    files: usize,
}

#[derive(Serialize, Deserialize)]
struct FileLine {
    path: String,
    ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<(u64, u64)>,
}

/// Whether a text claims to be a profile: a list of paths has no such first line.
pub fn claims_to_be_a_profile(text: &[u8]) -> bool {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<Header>(line).is_ok_and(|header| header.format == FORMAT)
}

/// What stands of one run in a text.
pub(super) struct Section<'a> {
    pub name: String,
    files: usize,
    /// One for each file.
    lines: Cow<'a, [u8]>,
    /// Where they begin in the text, in lines.
    begin: usize,
}

/// The text of a profile.
pub fn write(profile: &Profile) -> Vec<u8> {
    let sections: Vec<Section<'_>> = profile.runs.iter().map(Section::of).collect();
    assembled(&profile.image, &profile.manifest, &sections)
}

/// The text of a profile with these runs, the oldest first.
pub(super) fn assembled(image: &str, manifest: &str, sections: &[Section<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for section in sections {
        body.extend(line(&RunLine { run: section.name.clone(), files: section.files }).as_bytes());
        body.extend_from_slice(&section.lines);
    }
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        image: image.to_owned(),
        manifest: manifest.to_owned(),
        runs: sections.len(),
        crc32: Some(crc32fast::hash(&body)),
    };
    let mut text = line(&header).into_bytes();
    text.append(&mut body);
    text
}

impl Section<'_> {
    /// Of a run, with as many of its files as may be.
    pub(super) fn of(run: &Run) -> Section<'static> {
        let (mut lines, mut files) = (String::new(), 0);
        for file in run.files.iter().take(MAXIMUM_FILES) {
            let parts = file.parts.iter().map(|part| (part.start, part.end)).collect();
            let added = line(&FileLine { path: escaped(&file.path), ms: file.milliseconds, parts });
            if lines.len() + added.len() > MAXIMUM_RUN {
                break;
            }
            lines += &added;
            files += 1;
        }
        Section { name: run.name.clone(), files, lines: Cow::Owned(lines.into_bytes()), begin: 0 }
    }

    /// The run.
    pub(super) fn read(&self) -> Result<Run, ProfileError> {
        let mut lines = Lines { rest: &self.lines, number: self.begin };
        Ok(Run { name: self.name.clone(), files: read_files(&mut lines, self.files)? })
    }
}

fn line(value: &impl Serialize) -> String {
    // Plain structures of texts and numbers always are JSON.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Reads the text of a profile.
///
/// # Errors
/// [`ProfileError`]: nothing of a text with a wrong line is used.
pub fn read(text: &[u8]) -> Result<Profile, ProfileError> {
    let (image, manifest, sections) = sections(text)?;
    let runs = sections.iter().map(Section::read).collect::<Result<_, _>>()?;
    Ok(Profile { image, manifest, runs })
}

/// Image, manifest and runs of a text; what it says of files is not looked at.
pub(super) fn sections(text: &[u8]) -> Result<(String, String, Vec<Section<'_>>), ProfileError> {
    let mut lines = Lines { rest: text, number: 0 };
    let header: Header = lines.next().map_err(|_| ProfileError::NotAProfile)?;
    if header.format != FORMAT {
        return Err(ProfileError::NotAProfile);
    }
    if header.version != VERSION {
        return Err(ProfileError::Version { found: header.version });
    }
    lines.check(header.runs <= MAXIMUM_RUNS, "names too many runs")?;
    lines.check(
        header.image.len() <= MAXIMUM_LABEL && header.manifest.len() <= MAXIMUM_LABEL,
        "is too long",
    )?;
    if header.crc32.is_some_and(|checksum| checksum != crc32fast::hash(lines.rest)) {
        return Err(ProfileError::Changed);
    }
    let mut sections: Vec<Section<'_>> = Vec::with_capacity(header.runs);
    for _ in 0..header.runs {
        let RunLine { run: name, files } = lines.next()?;
        lines.check(files <= MAXIMUM_FILES, "names too many files")?;
        lines.check(name.len() <= MAXIMUM_LABEL, "is too long")?;
        lines.check(sections.iter().all(|known| known.name != name), "names a run again")?;
        lines.check(sections.is_empty() || name != EARLIER, "comes too late")?;
        let begin = lines.number;
        sections.push(Section { name, files, lines: Cow::Borrowed(lines.skip(files)?), begin });
    }
    lines.check(lines.rest.is_empty(), "is followed by more than it promises")?;
    Ok((header.image, header.manifest, sections))
}

fn read_files(lines: &mut Lines<'_>, count: usize) -> Result<Vec<TouchedFile>, ProfileError> {
    let mut files: Vec<TouchedFile> = Vec::new();
    let mut paths = HashSet::new();
    for _ in 0..count {
        let line: FileLine = lines.next()?;
        let path = unescaped(&line.path);
        let path = path.filter(|path| is_clean(path)).ok_or_else(|| lines.wrong("names no file"))?;
        lines.check(paths.insert(path.clone()), "names a file again")?;
        lines.check(line.parts.len() <= MAXIMUM_PARTS, "has too many parts")?;
        let parts: Vec<Range<u64>> = line.parts.iter().map(|(start, end)| *start..*end).collect();
        let are_apart = parts.windows(2).all(|pair| pair[0].end < pair[1].start);
        lines.check(are_apart && parts.iter().all(|part| part.start < part.end), "has parts out of order")?;
        files.push(TouchedFile { path, milliseconds: line.ms, parts });
    }
    Ok(files)
}

/// Whether a path is one as profiles have them.
fn is_clean(path: &[u8]) -> bool {
    !path.is_empty()
        && path.len() <= MAXIMUM_PATH
        && components(path).is_ok_and(|components| components.join(&b'/') == path)
}

struct Lines<'a> {
    rest: &'a [u8],
    /// Of the line that was read last, counted from 1.
    number: usize,
}

impl<'a> Lines<'a> {
    fn next<T: for<'b> Deserialize<'b>>(&mut self) -> Result<T, ProfileError> {
        let line = self.skip(1)?;
        serde_json::from_slice(line).map_err(|error| self.wrong(&format!("cannot be read: {error}")))
    }

    /// So many lines as they stand.
    fn skip(&mut self, count: usize) -> Result<&'a [u8], ProfileError> {
        let mut length = 0;
        for _ in 0..count {
            self.number += 1;
            let end = self.rest[length..].iter().position(|byte| *byte == b'\n');
            length += 1 + end.ok_or_else(|| self.wrong("is missing or cut off"))?;
        }
        let (lines, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(lines)
    }

    fn check(&self, holds: bool, otherwise: &str) -> Result<(), ProfileError> {
        if holds { Ok(()) } else { Err(self.wrong(otherwise)) }
    }

    fn wrong(&self, reason: &str) -> ProfileError {
        ProfileError::Line { line: self.number, reason: reason.to_owned() }
    }
}

/// A path as text: see the head of this module.
pub fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text += &chunk.valid().replace('%', "%25");
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut path = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        path.push(u8::from_str_radix(digits, 16).ok()?);
        path.extend_from_slice(rest.as_bytes());
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[u8], milliseconds: u64, parts: &[Range<u64>]) -> TouchedFile {
        TouchedFile { path: path.to_vec(), milliseconds, parts: parts.to_vec() }
    }

    fn profile() -> Profile {
        let files = vec![
            file(b"usr/bin/python3", 3, &[0..262_144, 1 << 20..5 << 20]),
            file(b"100% \xff\xfe\n\"\\.so", 9, &[]),
            file("größe/日本".as_bytes(), u64::MAX, &[0..1, u64::MAX - 1..u64::MAX]),
        ];
        let runs = vec![
            Run { name: "one".into(), files },
            Run { name: "two".into(), files: vec![file(b"x", 0, &[])] },
        ];
        Profile { image: "host:5000/name:tag".into(), manifest: "sha256:0a".into(), runs }
    }

    #[test]
    fn what_was_written_is_read() {
        let text = write(&profile());
        assert!(claims_to_be_a_profile(&text));
        assert_eq!(read(&text).unwrap(), profile());
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(r#"{"path":"100%25 %FF%FE\n\"\\.so","ms":9}"#), "{text}");
    }

    #[test]
    fn a_profile_that_is_cut_or_changed_is_refused() {
        let text = write(&profile());
        for length in 0..text.len() {
            assert!(read(&text[..length]).is_err(), "cut to {length}");
        }
        let header = text.iter().position(|byte| *byte == b'\n').unwrap();
        for place in 0..text.len() {
            let mut changed = text.clone();
            changed[place] ^= 0x10;
            // What the header says of the image may be anything.
            assert!(read(&changed).is_err() || place < header, "changed at {place}");
        }
        let by_hand = String::from_utf8(text.clone()).unwrap().replacen(",\"crc32\":", ",\"was\":", 1);
        assert_eq!(read(by_hand.replace("python3", "python4").as_bytes()).unwrap().runs.len(), 2);
        assert!(read(&[&text[..], b"\n"].concat()).is_err());
        assert!(!claims_to_be_a_profile(b"usr/bin/python3\n{\"format\":\"peel-profile\"}"));
    }

    #[test]
    fn hostile_lines_are_refused() {
        let good = r#"{"path":"a","ms":0}"#;
        let text = |runs: &str, run: &str, files: &[&str]| {
            let header = format!(
                r#"{{"format":"peel-profile","version":1,"image":"i","manifest":"m","runs":{runs}}}"#
            );
            format!("{header}\n{run}\n{}\n", files.join("\n"))
        };
        let run = |files: &str| format!(r#"{{"run":"r","files":{files}}}"#);
        assert!(read(text("1", &run("1"), &[good]).as_bytes()).is_ok());
        for bad in [
            text("9", &run("1"), &[good]),
            text("-1", &run("1"), &[good]),
            text("1", &run("32769"), &[good]),
            text("1", &run("18446744073709551616"), &[good]),
            text("1", &run("2"), &[good, good]),
            text("2", &run("1"), &[good, &run("1"), good]),
            text("1", "[]", &[good]),
            text("2", &run("1"), &[good, r#"{"run":"earlier","files":1}"#, good]),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        for path in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            "./a",
            "a%",
            "a%2",
            "a%zz",
            "a%+1",
            "a%00b",
            "a\\u0000b",
        ] {
            let line = format!(r#"{{"path":"{path}","ms":0}}"#);
            assert!(read(text("1", &run("1"), &[&line]).as_bytes()).is_err(), "{path}");
        }
        let long = format!(r#"{{"path":"{}","ms":0}}"#, "a/".repeat(2050) + "a");
        assert!(read(text("1", &run("1"), &[&long]).as_bytes()).is_err());
        let many = (0..65)
            .map(|number| format!("[{},{}]", number * 2, number * 2 + 1))
            .collect::<Vec<_>>()
            .join(",");
        for parts in ["[0,0]", "[2,1]", "[0,5],[5,6]", "[5,6],[0,1]", "[-1,2]", &many] {
            let line = format!(r#"{{"path":"a","ms":0,"parts":[{parts}]}}"#);
            assert!(read(text("1", &run("1"), &[&line]).as_bytes()).is_err(), "{parts}");
        }
        let newer = r#"{"format":"peel-profile","version":2,"image":"","manifest":"","runs":0}"#;
        assert!(matches!(read(format!("{newer}\n").as_bytes()), Err(ProfileError::Version { found: 2 })));
        assert!(matches!(read(b"usr/bin/python3\n"), Err(ProfileError::NotAProfile)));
    }

    #[test]
    fn a_run_is_cut_before_the_profile_is_too_long_to_be_kept() {
        let files = (0..MAXIMUM_FILES).map(|number| {
            let path = format!("{number}/{}x", "some-long-name/".repeat(200));
            file(path.as_bytes(), 0, &[])
        });
        let files: Vec<TouchedFile> = files.collect();
        let runs = (0..MAXIMUM_RUNS).map(|number| Run { name: number.to_string(), files: files.clone() });
        let text = write(&Profile { runs: runs.collect(), ..Profile::default() });
        assert!((text.len() as u64) < crate::store::MAXIMUM_PROFILE);
        let read = read(&text).unwrap();
        assert!(read.runs.iter().all(|run| run.files.len() > 1000 && files.starts_with(&run.files)));
    }
}

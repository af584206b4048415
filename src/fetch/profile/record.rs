//! Records a run in the text of a profile. A mount does that again and again while it is served, so what stands there of other runs is
//! taken over as it is; only where two become one they are read.

use super::format::{ProfileError, Section, assembled, sections};
use super::{MAXIMUM_RUNS, Run, folded};

/// The text of a profile, or none, with what a run read so far in place of what was recorded of it before; `image` and `manifest` are
/// the reference by which the image was mounted, and its digest.
///
/// # Errors
/// If the text is not a profile's.
pub fn record(text: Option<&[u8]>, image: &str, manifest: &str, run: &Run) -> Result<Vec<u8>, ProfileError> {
    let mut runs = match text {
        Some(text) => sections(text)?.2,
        None => Vec::new(),
    };
    runs.retain(|known| known.name != run.name);
    runs.push(Section::of(run));
    while runs.len() > MAXIMUM_RUNS {
        let folded = folded(&[runs[0].read()?, runs[1].read()?]);
        runs.splice(..2, [Section::of(&folded)]);
    }
    Ok(assembled(image, manifest, &runs))
}

#[cfg(test)]
mod tests {
    use super::super::format::{read, write};
    use super::super::tests::order;
    use super::super::{EARLIER, Profile, TouchedFile};
    use super::*;

    fn run(name: &str, files: &str) -> Run {
        let file =
            |letter: char| TouchedFile { path: letter.to_string().into_bytes(), ..TouchedFile::default() };
        Run { name: name.to_owned(), files: files.chars().map(file).collect() }
    }

    fn recorded(text: &mut Option<Vec<u8>>, run: &Run) -> Profile {
        let new = record(text.as_deref(), "image", "manifest", run).unwrap();
        let profile = read(&new).unwrap();
        assert_eq!(write(&profile), new, "the same profile has the same text");
        *text = Some(new);
        profile
    }

    #[test]
    fn a_run_that_goes_on_replaces_itself_and_no_other() {
        let mut text = None;
        recorded(&mut text, &run("0", "ab"));
        recorded(&mut text, &run("1", "c"));
        let profile = recorded(&mut text, &run("0", "abd"));
        assert_eq!(profile.runs, [run("1", "c"), run("0", "abd")]);
    }

    #[test]
    fn what_happened_long_ago_counts_once_and_is_not_forgotten() {
        let mut text = None;
        let mut profile = recorded(&mut text, &run("0", "abcdefgh"));
        for number in 1..100 {
            profile = recorded(&mut text, &run(&number.to_string(), "z"));
        }
        assert_eq!(profile.runs.len(), MAXIMUM_RUNS);
        assert_eq!((profile.runs[0].name.as_str(), profile.runs[0].files.len()), (EARLIER, 9));
        assert_eq!(order(&profile), "z|abcdefgh");
        // A run that still goes on does not take with it what was folded.
        assert_eq!(recorded(&mut text, &run("0", "abc")).typical().len(), 9);
    }

    #[test]
    fn nothing_is_recorded_in_what_is_no_profile() {
        let good = write(&Profile { runs: vec![run("0", "ab")], ..Profile::default() });
        for bad in [&b""[..], b"usr/bin\n", &good[..good.len() - 1]] {
            assert!(record(Some(bad), "", "", &run("1", "a")).is_err());
        }
    }
}

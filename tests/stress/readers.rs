//! Those who read: whole files, parts of them, mapped ones, and all that is metadata. Each holds what he gets against the model.

use super::choices::Choices;
use super::images::{Expected, Image, What};
use super::watch::Worker;
use super::{Slot, Stress};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

pub fn read(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>) {
    while stress.goes_on() {
        let slot = choices.one(&stress.slots);
        // Who panicked holding it has said why.
        let Ok(mounted) = slot.gate.read() else { return };
        if *mounted {
            read_something(stress, choices, worker, slot);
        }
    }
}

fn read_something(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>, slot: &Slot) {
    let image = &stress.images[slot.image];
    match choices.below(20) {
        0 => worker.does(&format!("listing {}", slot.name()), || lists(&slot.path, image)),
        1 => worker.does(&format!("looking at all of {}", slot.name()), || looks(&slot.path, image)),
        2 => {
            // All files, in the order in which they lie, as who copies the image.
            for number in 0..image.files.len() {
                reads(stress, choices, worker, slot, number, Manner::Whole);
            }
        }
        3..=5 => {
            // One directory, as a program that starts.
            let first = choices.below(image.files.len() as u64) as usize;
            for number in first..(first + 20).min(image.files.len()) {
                reads(stress, choices, worker, slot, number, Manner::Whole);
            }
        }
        _ => {
            // Some files are read by everybody.
            let bound = if choices.once_in(3) { 4 } else { image.files.len() as u64 };
            let number = choices.below(bound) as usize;
            let manner = *choices.one(&[Manner::Whole, Manner::Parts, Manner::Parts, Manner::Mapped]);
            reads(stress, choices, worker, slot, number, manner);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Manner {
    Whole,
    Parts,
    Mapped,
}

fn reads(
    stress: &Stress<'_>,
    choices: &mut Choices,
    worker: &Worker<'_>,
    slot: &Slot,
    number: usize,
    manner: Manner,
) {
    if !stress.goes_on() {
        return;
    }
    let (path, expected) = stress.images[slot.image].file(number);
    let what = format!("reading {}/{path} ({manner:?})", slot.name());
    let file = worker.does(&what, || File::open(slot.path.join(path)));
    let file = file.unwrap_or_else(|error| panic!("{what}: opening: {error}"));
    arrives(stress, worker, &what, || match manner {
        Manner::Whole => whole(&file, expected, &what),
        Manner::Parts => parts(&file, expected, choices, &what),
        Manner::Mapped => mapped(&file, expected, &what),
    });
    // Past the kernel's page cache, next time.
    if choices.below(4) > 0 {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// Reads until it succeeds, or fails for a reason.
pub fn arrives(
    stress: &Stress<'_>,
    worker: &Worker<'_>,
    what: &str,
    mut read: impl FnMut() -> io::Result<usize>,
) {
    let mut failed_in_calm = 0;
    loop {
        let weather = stress.weather();
        let error = match worker.does(what, &mut read) {
            Ok(bytes) => {
                stress.count("reads", 1);
                stress.count("bytes read", bytes as u64);
                return;
            }
            Err(error) => error,
        };
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{what}: {error}");
        if !stress.was_calm_since(weather) {
            stress.count("reads that failed in a storm", 1);
            return;
        }
        failed_in_calm += 1;
        stress.count("reads that failed in calm, for what was under way", 1);
        assert!(failed_in_calm < 3, "{what}: no registry misbehaved, and it failed {failed_in_calm} times");
    }
}

#[track_caller]
fn is_right(what: &str, offset: usize, bytes: &[u8], expected: &[u8]) {
    if bytes == expected {
        return;
    }
    let differs = bytes.iter().zip(expected).position(|(one, other)| one != other);
    let (length, of) = (bytes.len(), expected.len());
    match differs {
        Some(place) => panic!(
            "WRONG BYTES: {what}: byte {} is {:#04x}, not {:#04x}; of {length} at {offset}, {} are wrong",
            offset + place,
            bytes[place],
            expected[place],
            bytes.iter().zip(expected).filter(|(one, other)| one != other).count()
        ),
        None => panic!("WRONG BYTES: {what}: {length} bytes at {offset}, not {of}"),
    }
}

pub fn whole(mut file: &File, expected: &[u8], what: &str) -> io::Result<usize> {
    use io::Seek;
    let mut bytes = Vec::with_capacity(expected.len() + 1);
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    is_right(what, 0, &bytes, expected);
    Ok(bytes.len())
}

fn parts(file: &File, expected: &[u8], choices: &mut Choices, what: &str) -> io::Result<usize> {
    let mut read = 0;
    for _ in 0..8 {
        let offset = choices.below(expected.len() as u64 + 1) as usize;
        let length = 1 + choices.below(70_000) as usize;
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut bytes[filled..], (offset + filled) as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        is_right(what, offset, &bytes[..filled], &expected[offset..expected.len().min(offset + length)]);
        read += filled;
    }
    Ok(read)
}

fn mapped(file: &File, expected: &[u8], what: &str) -> io::Result<usize> {
    if expected.is_empty() {
        return Ok(0);
    }
    // SAFETY: nobody can write to an image, or make a file of it shorter.
    let map = unsafe { memmap2::Mmap::map(file)? };
    // Brings the pages, and says so if that fails; who touched them first would be killed by SIGBUS.
    map.advise(memmap2::Advice::PopulateRead).map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::FAULT.raw_os_error() => {
            io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
        }
        _ => error,
    })?;
    is_right(what, 0, &map, expected);
    Ok(map.len())
}

/// Each directory has the names that it should have.
fn lists(root: &Path, image: &Image) {
    for Expected { path, what, .. } in &image.paths {
        let What::Directory(names) = what else { continue };
        let path = root.join(path);
        let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut listed: Vec<_> = entries
            .map(|entry| entry.unwrap_or_else(|error| panic!("in {}: {error}", path.display())))
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        listed.sort();
        assert!(listed.iter().eq(names), "{}: {listed:?}, not {names:?}", path.display());
    }
}

/// Each path has the attributes that it should have; and one that is not there is not.
fn looks(root: &Path, image: &Image) {
    for expected in &image.paths {
        let path = root.join(&expected.path);
        let found = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(found.mode() & 0o7777, expected.mode, "the mode of {}", path.display());
        match &expected.what {
            What::File(bytes) => assert_eq!(
                (found.is_file(), found.len(), found.nlink()),
                (true, bytes.len() as u64, expected.links),
                "{}",
                path.display()
            ),
            What::Directory(_) => assert!(found.is_dir(), "{}", path.display()),
            What::Symlink(target) => {
                let found =
                    fs::read_link(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert_eq!(found, Path::new(target), "{}", path.display());
            }
        }
        let absent = root.join(format!("{}-absent", expected.path));
        let error = absent.symlink_metadata().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}: {error}", absent.display());
    }
    rustix::fs::statfs(root).unwrap();
}

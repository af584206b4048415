//! Promise: a program of an image that is not here starts after few round trips: who reads waits for what he reads and not for what comes with it, and
//! what a program needs to start comes with its beginning.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::{Peel, run_to_end};
use crate::support::registry::{FakeRegistry, Fault, Kind, Request};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the files that are read by the way.
const SMALL: u64 = 4000;

fn small(number: u64) -> Content {
    Content::Noise { seed: number, length: SMALL }
}

/// Requests for blobs, but for their heads: these are of the archive alone, and asked for when all else is here, for the layer's proof.
fn blob_requests(registry: &FakeRegistry) -> usize {
    let is_head = |range: &str| range.starts_with("bytes=0-");
    let of_files =
        |request: &&Request| request.kind == Kind::Blob && !request.header("range").is_some_and(is_head);
    registry.requests().iter().filter(of_files).count()
}

#[test]
fn a_reader_has_what_he_reads_while_what_comes_with_it_is_still_under_way() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let name = |number| format!("directory/file-{number}");
    let mut files = vec![TestEntry::file("aaa", Content::Noise { seed: 1000, length: 300_000 })];
    // As many as are guessed over the fastest link.
    files.extend((0..5).map(|number| TestEntry::file(name(number), small(number))));
    layout.image("test", &[files], Form::ESTARGZ);
    let reference = layout.serve(&registry, "name", "test");
    let mount = peel.mount(&reference);
    // Who wanted as much may guess as much.
    fs::read(mount.join("aaa")).unwrap();
    let before = blob_requests(&registry);
    // No file is longer than this in the blob, and no two are shorter.
    registry.set_fault("blobs/", Fault::StallAfter(SMALL * 3 / 2));
    assert_eq!(fs::read(mount.join(&name(0))).unwrap(), small(0).to_vec());
    registry.wait_for_stalled(1);
    registry.clear_faults();
    registry.release();
    for number in 1..5 {
        assert_eq!(fs::read(mount.join(&name(number))).unwrap(), small(number).to_vec());
    }
    assert_eq!(blob_requests(&registry) - before, 1, "its neighbours came with it");
}

/// The files that a program of this machine needs, itself first, as its own loader finds them.
fn program_and_libraries(program: &Path, scratch: &Path) -> Vec<PathBuf> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let outcome = run_to_end(command, scratch);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let libraries = outcome.stdout.split_whitespace().filter(|word| word.starts_with('/'));
    std::iter::once(program).chain(libraries.map(Path::new)).map(Path::to_owned).collect()
}

fn below_root(path: &Path) -> &str {
    path.to_str().unwrap().strip_prefix('/').unwrap()
}

/// The links on the way to a file of this machine, whose directories may be links at the root.
fn links(path: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let link = |path: &Path| Some((path.to_owned(), fs::read_link(path).ok()?));
    let mut found = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let top: PathBuf = path.components().take(2).collect();
        let place = fs::canonicalize(path.parent().unwrap()).unwrap().join(path.file_name().unwrap());
        found.extend(link(&top).filter(|_| top != path));
        if let Ok(target) = fs::read_link(&place) {
            found.extend(link(&place));
            left.push(place.parent().unwrap().join(target));
        }
    }
    found
}

#[test]
fn what_a_program_needs_comes_with_its_beginning() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let program = fs::canonicalize("/usr/bin/env").unwrap();
    let paths = program_and_libraries(&program, peel.scratch());
    assert!(paths.len() >= 3, "a program, its loader and a library: {paths:?}");
    // Each behind a file that is too long to be fetched with it, in a tree as those of distributions.
    let mut files = vec![TestEntry::symlink("script-runner", program.to_str().unwrap())];
    let links: BTreeMap<_, _> = paths.iter().flat_map(|path| links(path)).collect();
    files.extend(
        links.iter().map(|(path, target)| TestEntry::symlink(below_root(path), target.to_str().unwrap())),
    );
    for (number, path) in paths.iter().enumerate() {
        let noise = Content::Noise { seed: number as u64, length: 200_000 };
        files.push(TestEntry::file(format!("between-{number}"), noise));
        let content = Content::Bytes(fs::read(path).unwrap().into());
        files.push(TestEntry::file(below_root(&fs::canonicalize(path).unwrap()), content));
    }
    let script = "#!/script-runner --flag\n";
    files.push(TestEntry::file("script", script));
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[files], Form::ESTARGZ);
    let reference = layout.serve(&registry, "name", "test");

    for (begins_with, host) in
        [(below_root(&program), None), ("script", None), ("script", Some(Fault::IgnoreParts))]
    {
        if let Some(fault) = &host {
            registry.set_fault("blobs/", fault.clone());
        }
        let peel = Peel::new();
        let mount = peel.mount(&reference);
        let before = blob_requests(&registry);
        let mut beginning = [0; 2];
        File::open(mount.join(begins_with)).unwrap().read_exact_at(&mut beginning, 0).unwrap();
        // Its own, and one for the others; a script's own comes before that of what runs it. From a host that gives no several ranges at
        // once, one for each of the others, and the one that showed that.
        let of_script = usize::from(begins_with == "script");
        let all = if host.is_some() { paths.len() + of_script + 1 } else { 2 + of_script };
        let files: Vec<PathBuf> = paths.iter().map(|path| fs::canonicalize(path).unwrap()).collect();
        let is_here = |file: &PathBuf, listed: &str| {
            let lines = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            lines.into_iter().any(|line| line["path"] == file.to_str().unwrap() && line["content"] == "local")
        };
        peel.wait_for(|| {
            let listed = peel.succeed(&["tree", &reference, "--json"]);
            files.iter().all(|file| is_here(file, &listed))
        });
        // What is asked for together depends on what is known by then, and may be less.
        let asked = blob_requests(&registry) - before;
        assert!(asked <= all, "{asked} requests");
        for file in &files {
            assert!(fs::read(mount.join(below_root(file))).unwrap() == fs::read(file).unwrap(), "{file:?}");
        }
        assert_eq!(blob_requests(&registry) - before, asked, "reading them asked for nothing more");

        // Who does not want it, does not get it.
        let other = Peel::new();
        let mount = other.mount_with(&reference, &["--prefetch", "none"]);
        let before = blob_requests(&registry);
        fs::read(mount.join(begins_with)).unwrap();
        assert_eq!(fs::read_to_string(mount.join("script")).unwrap(), script);
        assert!(blob_requests(&registry) - before <= 2);
    }
}

//! Promise: a program of an image that is not here starts after few round trips: who reads waits for what he reads and not for what comes with it.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::Peel;
use crate::support::registry::{FakeRegistry, Fault, Kind};
use std::fs;

/// Bytes of the files that are read by the way.
const SMALL: u64 = 4000;

fn small(number: u64) -> Content {
    Content::Noise { seed: number, length: SMALL }
}

/// Requests for blobs.
fn blob_requests(registry: &FakeRegistry) -> usize {
    registry.requests().iter().filter(|request| request.kind == Kind::Blob).count()
}

#[test]
fn a_reader_has_what_he_reads_while_what_comes_with_it_is_still_under_way() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let name = |number| format!("directory/file-{number}");
    let mut files = vec![TestEntry::file("aaa", Content::Noise { seed: 1000, length: 300_000 })];
    files.extend((0..8).map(|number| TestEntry::file(name(number), small(number))));
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
    for number in 1..8 {
        assert_eq!(fs::read(mount.join(&name(number))).unwrap(), small(number).to_vec());
    }
    assert_eq!(blob_requests(&registry) - before, 1, "its neighbours came with it");
}

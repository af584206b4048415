//! Random layers with few names, so that entries of different layers meet: files over directories, links to what is replaced,
//! whiteouts of what the same layer makes.

use super::archive::{Kind, TestEntry};
use super::content::Content;
use proptest::prelude::*;

/// A stack of small layers, lowest first.
pub fn stacks() -> impl Strategy<Value = Vec<Vec<TestEntry>>> {
    proptest::collection::vec(proptest::collection::vec(entries(), 0..8), 1..4)
}

fn entries() -> impl Strategy<Value = TestEntry> {
    let attributes = (
        prop_oneof![Just(0o644_u32), Just(0o755), Just(0o4711), Just(0o1777), Just(0)],
        prop_oneof![Just(0_u32), Just(1000), Just(u32::MAX - 1)],
        prop_oneof![Just((0_i64, 0_u32)), Just((1_600_000_000, 123_456_789)), Just((5_000_000_000, 1))],
        prop_oneof![3 => Just(None), 1 => Just(Some(("user.one", b"\x00\xff".as_slice()))),
            1 => Just(Some(("trusted.two", b"2".as_slice())))],
    );
    (paths(), 0_u8..20, paths(), attributes, any::<u64>()).prop_map(
        |(path, kind, target, (mode, owner, modified, xattr), seed)| {
            let name_of = |path: &str| path.to_owned();
            let mut entry = match kind {
                0..=4 => {
                    TestEntry::file(path, Content::Noise { seed, length: [0, 1, 700][(seed % 3) as usize] })
                }
                5..=8 => TestEntry::directory(path),
                9 | 10 => TestEntry::symlink(path, name_of(&target)),
                11 => TestEntry::symlink(path, format!("/{target}")),
                12 => TestEntry::symlink(path, format!("../{target}")),
                13 | 14 => TestEntry::hardlink(path, name_of(&target)),
                15 => TestEntry::fifo(path),
                16 => TestEntry::character_device(path, 5, (seed % 300) as u32),
                17 | 18 => return TestEntry::whiteout(path),
                _ => return TestEntry::opaque(path),
            };
            // No Linux file system keeps user attributes on these, so no other tool can be asked.
            let xattr = xattr.filter(|(name, _)| {
                matches!(entry.kind, Kind::File(_) | Kind::Directory) || name.starts_with("trusted")
            });
            (entry.mode, entry.uid, entry.gid, entry.modified) = (mode, owner, owner, modified);
            if let Some((name, value)) = xattr {
                entry = entry.xattr(name, value);
            }
            entry
        },
    )
}

/// One to three components of an alphabet of three.
fn paths() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        3 => name().prop_map(str::to_owned),
        4 => (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")),
        2 => (name(), name(), name()).prop_map(|(a, b, c)| format!("{a}/{b}/{c}")),
    ]
}

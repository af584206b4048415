//! Directories: complete, resumable at every entry, and kept.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use peelfs_fuse::ROOT_INODE;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek};

use super::toy_tree::ToyTree;
use super::{Mounted, require_fuse};

#[test]
fn a_directory_of_10_000_names_is_listed_whole_again_and_again() {
    require_fuse!();
    let mut tree = ToyTree::new();
    let mut expected = BTreeSet::new();
    for index in 0..10_000u32 {
        let mut path = format!("name {index} ").into_bytes();
        path.resize(20 + index as usize % 235, b'x');
        path.push(0x80 + (index % 128) as u8);
        match index % 3 {
            0 => tree.directory(ROOT_INODE, &path),
            1 => tree.symlink(ROOT_INODE, &path, b"target"),
            _ => tree.file(ROOT_INODE, &path, b""),
        };
        expected.insert((path, u64::from(index) + 2, index % 3));
    }
    let mounted = Mounted::new(tree);
    let list = || -> BTreeSet<(Vec<u8>, u64, u32)> {
        let entries =
            fs::read_dir(mounted.mountpoint.path()).expect("listed").map(|entry| entry.expect("read"));
        entries
            .map(|entry| {
                let kind = entry.file_type().expect("known");
                let kind = if kind.is_dir() {
                    0
                } else if kind.is_symlink() {
                    1
                } else {
                    2
                };
                (entry.file_name().as_bytes().to_vec(), std::os::unix::fs::DirEntryExt::ino(&entry), kind)
            })
            .collect()
    };
    assert!(list() == expected, "the first listing");
    let asked = mounted.tree.counts.listings.load(Ordering::SeqCst);
    assert!(list() == expected, "a second listing");
    assert_eq!(mounted.tree.counts.listings.load(Ordering::SeqCst), asked, "comes from the kernel's cache");
}

#[test]
fn a_directory_can_be_resumed_at_every_entry() {
    require_fuse!();
    let mut tree = ToyTree::new();
    let directory = tree.directory(ROOT_INODE, b"directory");
    for index in 0..300 {
        tree.file(directory, format!("file {index}").as_bytes(), b"");
    }
    let mounted = Mounted::new(tree);
    let open = || {
        openat(CWD, mounted.mountpoint.join("directory"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .expect("opened")
    };
    let read_from = |directory: &rustix::fd::OwnedFd, position: u64| -> Vec<(Vec<u8>, u64, u64)> {
        seek(directory, SeekFrom::Start(position)).expect("seeked");
        let mut buffer = vec![MaybeUninit::uninit(); 1024];
        let mut entries = Vec::new();
        let mut reader = RawDir::new(directory, &mut buffer);
        while let Some(entry) = reader.next() {
            let entry = entry.expect("read");
            entries.push((entry.file_name().to_bytes().to_vec(), entry.ino(), entry.next_entry_cookie()));
        }
        entries
    };
    let all = read_from(&open(), 0);
    assert_eq!(all.len(), 302);
    assert_eq!((&all[0].0[..], all[0].1), (&b"."[..], 2));
    assert_eq!((&all[1].0[..], all[1].1), (&b".."[..], 1));
    // Once the kernel has the directory in its cache, and once it asks us: a new mount has nothing cached.
    for resumed in [1, 2, 3, 100, 299, 301, 302] {
        let position = all[resumed - 1].2;
        assert_eq!(read_from(&open(), position), all[resumed..], "after entry {resumed}");
    }
    let directory = open();
    for resumed in [301, 5, 0, 200] {
        let position = if resumed == 0 { 0 } else { all[resumed - 1].2 };
        assert_eq!(read_from(&directory, position), all[resumed..], "back and forth, after entry {resumed}");
    }
}

#[test]
fn a_cold_directory_can_be_resumed_in_its_middle() {
    require_fuse!();
    for resumed in [0u64, 1, 2, 50] {
        let mut tree = ToyTree::new();
        for index in 0..100 {
            tree.file(ROOT_INODE, format!("file {index}").as_bytes(), b"");
        }
        let mounted = Mounted::new(tree);
        let directory = File::open(mounted.mountpoint.path()).expect("opened");
        seek(&directory, SeekFrom::Start(resumed)).expect("seeked");
        let mut buffer = vec![MaybeUninit::uninit(); 8192];
        let mut reader = RawDir::new(&directory, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = reader.next() {
            names.push(entry.expect("read").file_name().to_bytes().to_vec());
        }
        let all: Vec<Vec<u8>> = [b".".to_vec(), b"..".to_vec()]
            .into_iter()
            .chain((0..100).map(|index| format!("file {index}").into_bytes()))
            .collect();
        assert_eq!(names, all[resumed as usize..], "from {resumed}");
    }
}

#[test]
fn names_that_no_path_can_hold_hide_only_themselves() {
    require_fuse!();
    let mut tree = ToyTree::new();
    for bad in [&b""[..], b".", b"..", b"a/b", b"nul\0", &[b'x'; 256], &[b'y'; 5000]] {
        tree.file(ROOT_INODE, bad, b"");
    }
    tree.file(ROOT_INODE, &[b'z'; 255], b"");
    let mounted = Mounted::new(tree);
    let names: Vec<_> =
        fs::read_dir(mounted.mountpoint.path()).expect("listed").map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [OsStr::from_bytes(&[b'z'; 255])]);
}

//! The oracle is GNU tar: what it packs must be read as it lies on disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{Kept, read};
use crate::layer::entry::{Content, Entry, EntryKind};

fn run(command: &mut Command) {
    let output = command.output().expect("the command is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `root` as GNU tar packs it with these options.
fn packed(root: &Path, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command
        .env("LC_ALL", "C")
        .arg("--sort=name")
        .args(options)
        .arg("-cf")
        .arg("-")
        .arg("-C")
        .arg(root)
        .arg(".");
    let output = command.output().expect("GNU tar is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The bytes of the regular file that is the entry of that number.
fn bytes(kept: &Kept, number: usize) -> Vec<u8> {
    let EntryKind::Regular { size, content } = &kept.entries[number].kind else { panic!("a regular file") };
    let mut bytes = vec![0; *size as usize];
    let Some((start, data)) = &kept.payloads[number] else {
        assert!(bytes.is_empty() || *content == Content::Sparse(vec![]));
        return bytes;
    };
    match content {
        Content::Contiguous(at) => {
            assert_eq!(at, start);
            bytes.copy_from_slice(data);
        }
        Content::Sparse(extents) => {
            for extent in extents {
                let from = (extent.decoded_offset - start) as usize;
                let data = &data[from..from + extent.length as usize];
                bytes[extent.file_offset as usize..][..data.len()].copy_from_slice(data);
            }
        }
    }
    bytes
}

fn make_sparse(path: &Path, pieces: &[(u64, usize)], size: u64) {
    let file = File::create(path).unwrap();
    for (number, (at, length)) in pieces.iter().enumerate() {
        file.write_all_at(&vec![number as u8 + 1; *length], *at).unwrap();
    }
    file.set_len(size).unwrap();
}

fn sparse_tree(root: &Path) {
    make_sparse(&root.join("empty"), &[], 0);
    make_sparse(&root.join("hole"), &[], 1 << 20);
    make_sparse(&root.join("dense"), &[(0, 10_000)], 10_000);
    make_sparse(&root.join("start"), &[(0, 4096)], 1 << 20);
    make_sparse(&root.join("end"), &[((1 << 20) - 100, 100)], 1 << 20);
    make_sparse(&root.join("middle"), &[(65_536, 5000), (262_144, 1)], 300_001);
    let many: Vec<_> = (0..130).map(|number| (number * 32_768, 4096)).collect();
    make_sparse(&root.join("many"), &many, 130 * 32_768);
    let long = root.join("l".repeat(120));
    make_sparse(&long, &[(65_536, 1)], 200_000);
}

#[test]
fn sparse_files_in_every_encoding_have_their_bytes() {
    let root = tempfile::tempdir().unwrap();
    sparse_tree(root.path());
    let encodings: [&[&str]; 5] = [
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
    ];
    for encoding in encodings {
        let archive = packed(root.path(), encoding);
        for piece in [100, archive.len()] {
            let kept = read(&archive, piece).unwrap();
            let mut sparse = 0;
            for (number, entry) in kept.entries.iter().enumerate() {
                let path = root.path().join(std::ffi::OsStr::from_bytes(&entry.path));
                if let EntryKind::Regular { content, .. } = &entry.kind {
                    assert!(bytes(&kept, number) == fs::read(&path).unwrap(), "{encoding:?} {path:?}");
                    sparse += usize::from(matches!(content, Content::Sparse(_)));
                }
            }
            assert_eq!(kept.entries.len(), 9, "the root and eight files");
            assert_eq!(sparse > 0, encoding.contains(&"--sparse"), "{encoding:?} was put to use");
        }
    }
}

fn attribute_tree(root: &Path) {
    let deep = root.join("a".repeat(90)).join("b".repeat(90)).join("c".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("d".repeat(90)), "deep").unwrap();
    fs::write(root.join("file"), "content").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe")), "name").unwrap();
    fs::write(root.join("new\nline"), "name").unwrap();
    fs::write(root.join("with=equals sign"), "name").unwrap();
    fs::hard_link(root.join("file"), root.join("hardlink")).unwrap();
    symlink("t".repeat(300), root.join("symlink")).unwrap();
    symlink("file", root.join("short-symlink")).unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    run(Command::new("mkfifo").arg(root.join("fifo")));
    for (name, time) in
        [("before", "-1.5"), ("long-before", "-2208988800.25"), ("fine", "1700000000.123456789")]
    {
        fs::write(root.join(name), "").unwrap();
        run(Command::new("touch").arg("-d").arg(format!("@{time}")).arg(root.join(name)));
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Checks an entry against what lies on disk. `nanoseconds`: the format has them.
fn check(entry: &Entry, root: &Path, nanoseconds: bool) {
    let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
    let metadata = fs::symlink_metadata(&path).unwrap();
    let file_type = metadata.mode() & 0o170_000;
    match &entry.kind {
        EntryKind::Regular { size, .. } => assert_eq!((file_type, *size), (0o100_000, metadata.size())),
        EntryKind::Directory => assert_eq!(file_type, 0o040_000),
        EntryKind::Symlink { target } => {
            assert_eq!(target, fs::read_link(&path).unwrap().as_os_str().as_bytes());
        }
        EntryKind::Hardlink { target } => {
            let target = root.join(std::ffi::OsStr::from_bytes(target));
            assert_eq!(fs::symlink_metadata(target).unwrap().ino(), metadata.ino());
        }
        EntryKind::Fifo => assert_eq!(file_type, 0o010_000),
        EntryKind::CharacterDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            assert_eq!(rustix::fs::makedev(*major, *minor), metadata.rdev());
        }
    }
    assert_eq!(entry.mode, metadata.mode() & 0o7777, "{path:?}");
    assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()));
    assert_eq!(entry.modified.seconds, metadata.mtime(), "{path:?}");
    let expected = if nanoseconds { metadata.mtime_nsec() as u32 } else { 0 };
    assert_eq!(entry.modified.nanoseconds, expected, "{path:?}");
}

#[test]
fn entries_are_what_lies_on_disk() {
    let root = tempfile::tempdir().unwrap();
    attribute_tree(root.path());
    if is_root() {
        run(Command::new("mknod").arg(root.path().join("character")).args(["c", "300", "70000"]));
        run(Command::new("mknod").arg(root.path().join("block")).args(["b", "8", "3"]));
        run(Command::new("chown").arg("-h").arg("4000000000:3000000").arg(root.path().join("symlink")));
    }
    for (format, nanoseconds) in [("gnu", false), ("pax", true), ("posix", true)] {
        let archive = packed(root.path(), &[&format!("--format={format}")]);
        let kept = read(&archive, 1000).unwrap();
        assert_eq!(kept.entries.len(), if is_root() { 17 } else { 15 } + 1, "{format}");
        for (number, entry) in kept.entries.iter().enumerate() {
            check(entry, root.path(), nanoseconds);
            if matches!(entry.kind, EntryKind::Regular { .. }) {
                let path = root.path().join(std::ffi::OsStr::from_bytes(&entry.path));
                assert_eq!(bytes(&kept, number), fs::read(path).unwrap());
            }
        }
    }
}

/// These formats have no room for what the tree above holds.
#[test]
fn the_oldest_formats_are_read() {
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("a".repeat(60)).join("b".repeat(30));
    fs::create_dir_all(&deep).unwrap();
    fs::write(root.path().join("file"), "content").unwrap();
    fs::hard_link(root.path().join("file"), root.path().join("hardlink")).unwrap();
    symlink("file", root.path().join("symlink")).unwrap();
    for format in ["v7", "oldgnu", "ustar"] {
        if format == "ustar" {
            fs::write(deep.join("c".repeat(90)), "prefix and name").unwrap();
        }
        let kept = read(&packed(root.path(), &[&format!("--format={format}")]), 1000).unwrap();
        assert_eq!(kept.entries.len(), if format == "ustar" { 7 } else { 6 }, "{format}");
        kept.entries.iter().for_each(|entry| check(entry, root.path(), false));
    }
}

#[test]
fn extended_attributes_keep_every_byte() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "content").unwrap();
    let attributes: [(&str, &[u8]); 4] = [
        ("user.text", b"value"),
        ("user.binary", b"\0\n=\xff\n"),
        ("user.empty", b""),
        ("user.pax", b"12 a=b\n"),
    ];
    for (name, value) in attributes {
        let set = rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty());
        set.expect("the temporary folder's file system has extended attributes");
    }
    let kept =
        read(&packed(root.path(), &["--format=pax", "--xattrs", "--xattrs-include=user.*"]), 100).unwrap();
    let entry = kept.entries.iter().find(|entry| entry.path == b"./file").unwrap();
    let expected: BTreeMap<_, _> =
        attributes.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    assert_eq!(entry.xattrs.iter().cloned().collect::<BTreeMap<_, _>>(), expected);
}

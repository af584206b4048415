//! What programs see of a tree.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use peelfs_fuse::{Device, ROOT_INODE, Timestamp};
use rustix::fs::{AtFlags, CWD, Mode};

use super::toy_tree::{STATISTICS, ToyTree, generated};
use super::{Mounted, errno, require_fuse};

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[test]
fn every_attribute_is_shown_exactly() {
    require_fuse!();
    let mut tree = ToyTree::new();
    let cases: [(&[u8], u32, Device); 8] = [
        (b"setuid", libc::S_IFREG | 0o4755, Device::default()),
        (b"setgid", libc::S_IFREG | 0o2755, Device::default()),
        (b"locked", libc::S_IFREG, Device::default()),
        (b"fifo", libc::S_IFIFO | 0o600, Device::default()),
        (b"socket", libc::S_IFSOCK | 0o666, Device::default()),
        (b"null", libc::S_IFCHR | 0o666, Device { major: 1, minor: 3 }),
        (b"disk", libc::S_IFBLK | 0o660, Device { major: 259, minor: 1_048_575 }),
        (b"\xff\xfe not utf-8 \n", libc::S_IFREG | 0o644, Device::default()),
    ];
    let times = [
        Timestamp { seconds: 0, nanoseconds: 1 },
        Timestamp { seconds: -1, nanoseconds: 999_999_999 },
        Timestamp { seconds: -86_400 * 365 * 40, nanoseconds: 0 },
        Timestamp { seconds: 4_102_444_800, nanoseconds: 123_456_789 },
    ];
    let mut expected = Vec::new();
    for (index, (path, mode, device)) in cases.into_iter().enumerate() {
        let inode = tree.special(ROOT_INODE, path, mode, device);
        let attributes = tree.attributes_mut(inode);
        attributes.link_count = index as u32 + 1;
        attributes.uid = 100_000 + index as u32;
        attributes.gid = u32::MAX - 2;
        attributes.blocks = 8 * index as u64;
        attributes.modified = times[index % times.len()];
        if mode & libc::S_IFMT == libc::S_IFREG {
            attributes.size = 1 << (4 * index);
        }
        expected.push((path, *attributes));
    }
    let sticky = tree.directory(ROOT_INODE, b"sticky");
    tree.attributes_mut(sticky).mode = libc::S_IFDIR | 0o1777;
    expected.push((b"sticky", *tree.attributes_mut(sticky)));
    let mounted = Mounted::new(tree);

    // Twice: by a lookup each, and as readdirplus has filled them in.
    for listed_before in [false, true] {
        if listed_before {
            assert_eq!(fs::read_dir(mounted.mountpoint.path()).expect("listed").count(), expected.len());
        }
        for (path, wanted) in &expected {
            let seen = fs::symlink_metadata(mounted.mountpoint.join(name(path))).expect("there");
            let what = String::from_utf8_lossy(path);
            assert_eq!(seen.ino(), wanted.inode, "{what}");
            assert_eq!(seen.mode(), wanted.mode, "{what}");
            assert_eq!(seen.nlink(), u64::from(wanted.link_count), "{what}");
            assert_eq!((seen.uid(), seen.gid()), (wanted.uid, wanted.gid), "{what}");
            assert_eq!((seen.size(), seen.blocks()), (wanted.size, wanted.blocks), "{what}");
            assert_eq!(seen.rdev(), libc::makedev(wanted.device.major, wanted.device.minor), "{what}");
            let time = (wanted.modified.seconds, i64::from(wanted.modified.nanoseconds));
            assert_eq!((seen.mtime(), seen.mtime_nsec()), time, "{what}: mtime");
            assert_eq!((seen.ctime(), seen.ctime_nsec()), time, "{what}: ctime");
            assert_eq!((seen.atime(), seen.atime_nsec()), time, "{what}: atime");
        }
    }
}

#[test]
fn a_device_number_that_would_be_cut_is_never_another_device() {
    require_fuse!();
    let mut tree = ToyTree::new();
    // Cut to 12 bits of major it would be 1:3, /dev/null.
    tree.special(ROOT_INODE, b"far", libc::S_IFCHR | 0o666, Device { major: 4096 + 1, minor: 3 });
    tree.file(ROOT_INODE, b"near", b"");
    let mounted = Mounted::new(tree);
    assert_eq!(errno(fs::symlink_metadata(mounted.mountpoint.join("far"))), Some(libc::EOVERFLOW));
    // The rest of the directory is not lost for it.
    let names: Vec<_> =
        fs::read_dir(mounted.mountpoint.path()).expect("listed").map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["near"]);
}

#[test]
fn extended_attributes_keep_every_byte() {
    require_fuse!();
    // A valid ACL: version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    // cap_net_raw=ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let large = generated(0, 60_000);
    let values: [(&str, &[u8]); 6] = [
        ("security.capability", &capability),
        ("system.posix_acl_access", &acl),
        ("trusted.hidden", b"\0\xff"),
        ("user.binary", &[0, 1, 255, 0]),
        ("user.empty", b""),
        ("user.large", &large),
    ];
    let mut tree = ToyTree::new();
    let file = tree.file(ROOT_INODE, b"file", b"");
    tree.file(ROOT_INODE, b"plain", b"");
    for (name, value) in values {
        tree.set_xattr(file, name, value);
    }
    let mounted = Mounted::new(tree);
    let file = mounted.mountpoint.join("file");
    for (name, value) in values {
        let mut buffer = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(&file, name, &mut buffer[..]).expect(name);
        assert_eq!(&buffer[..length], value, "{name}");
        assert_eq!(rustix::fs::lgetxattr_query(&file, name), Ok(value.len()), "{name}: its length");
        if value.len() > 1 {
            let mut small = vec![0; value.len() - 1];
            let refused = rustix::fs::lgetxattr(&file, name, &mut small[..]);
            assert_eq!(refused, Err(rustix::io::Errno::RANGE), "{name}: too small a buffer");
        }
    }
    let mut list = vec![0; 1024];
    let length = rustix::fs::llistxattr(&file, &mut list[..]).expect("listed");
    let listed: BTreeSet<&[u8]> = list[..length].split_inclusive(|byte| *byte == 0).collect();
    let expected: Vec<Vec<u8>> = values.iter().map(|(name, _)| [name.as_bytes(), b"\0"].concat()).collect();
    assert_eq!(listed, expected.iter().map(Vec::as_slice).collect());
    assert_eq!(rustix::fs::llistxattr_query(&file), Ok(length));
    let mut small = vec![0; length - 1];
    assert_eq!(rustix::fs::llistxattr(&file, &mut small[..]), Err(rustix::io::Errno::RANGE));

    let plain = mounted.mountpoint.join("plain");
    assert_eq!(rustix::fs::llistxattr(&plain, &mut list[..]), Ok(0));
    assert_eq!(rustix::fs::lgetxattr(&plain, "user.none", &mut list[..]), Err(rustix::io::Errno::NODATA));
}

#[test]
fn symlinks_keep_every_byte_and_are_asked_for_once() {
    require_fuse!();
    let longest = [b'/'; 4095];
    let targets: [&[u8]; 4] = [b"relative/../target", b"/\xff\xfe", b"dangling", &longest];
    let mut tree = ToyTree::new();
    for (index, target) in targets.into_iter().enumerate() {
        tree.symlink(ROOT_INODE, format!("link {index}").as_bytes(), target);
    }
    tree.symlink(ROOT_INODE, b"too long", &[b'x'; 4096]);
    let mounted = Mounted::new(tree);
    for _ in 0..3 {
        for (index, target) in targets.into_iter().enumerate() {
            let seen = fs::read_link(mounted.mountpoint.join(format!("link {index}"))).expect("read");
            assert_eq!(seen.as_os_str().as_bytes(), target);
        }
    }
    assert_eq!(mounted.tree.counts.symlinks.load(Ordering::SeqCst), targets.len() as u64);
    assert_eq!(errno(fs::read_link(mounted.mountpoint.join("too long"))), Some(libc::ENAMETOOLONG));
}

#[test]
fn nothing_can_be_written() {
    require_fuse!();
    let mut tree = ToyTree::new();
    let file = tree.file(ROOT_INODE, b"file", b"content");
    tree.set_xattr(file, "user.known", b"value");
    tree.directory(ROOT_INODE, b"directory");
    let mounted = Mounted::new(tree);
    let file = mounted.mountpoint.join("file");
    let new = mounted.mountpoint.join("new");
    let directory = mounted.mountpoint.join("directory");
    let known = CString::new("user.known").expect("no NUL");
    let attempts: [(&str, io::Result<()>); 15] = [
        ("create", File::create(&new).map(drop)),
        ("open for writing", File::options().write(true).open(&file).map(drop)),
        ("open to append", File::options().append(true).open(&file).map(drop)),
        ("truncate", rustix_result(truncate(&file))),
        ("mkdir", fs::create_dir(&new)),
        ("rmdir", fs::remove_dir(&directory)),
        ("unlink", fs::remove_file(&file)),
        ("symlink", std::os::unix::fs::symlink("target", &new)),
        ("link", fs::hard_link(&file, &new)),
        ("rename", fs::rename(&file, &new)),
        ("chmod", fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))),
        ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
        ("mkfifo", rustix_result(rustix::fs::mknodat(CWD, &new, rustix::fs::FileType::Fifo, Mode::RUSR, 0))),
        (
            "setxattr",
            rustix_result(rustix::fs::setxattr(&file, &known, b"", rustix::fs::XattrFlags::empty())),
        ),
        ("removexattr", rustix_result(rustix::fs::removexattr(&file, &known))),
    ];
    for (attempt, result) in attempts {
        assert_eq!(errno(result), Some(libc::EROFS), "{attempt}");
    }
    let touched = rustix::fs::utimensat(
        CWD,
        &file,
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        },
        AtFlags::empty(),
    );
    assert_eq!(touched, Err(rustix::io::Errno::ROFS), "utimensat");
    assert_eq!(fs::read(&file).expect("read"), b"content");
}

fn truncate(path: &std::path::Path) -> rustix::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path is a valid C string for the time of the call.
    match unsafe { libc::truncate(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).expect("a number")),
    }
}

fn rustix_result(result: rustix::io::Result<()>) -> io::Result<()> {
    result.map_err(io::Error::from)
}

#[test]
fn the_kernel_asks_everything_only_once() {
    require_fuse!();
    let mut tree = ToyTree::new();
    let directory = tree.directory(ROOT_INODE, b"directory");
    tree.file(directory, b"file", &generated(0, 100_000));
    let mounted = Mounted::new(tree);
    let file = mounted.mountpoint.join("directory/file");
    let missing = mounted.mountpoint.join("directory/missing");
    let look = || {
        assert_eq!(fs::read(&file).expect("read"), generated(0, 100_000));
        assert_eq!(fs::metadata(&file).expect("there").len(), 100_000);
        assert_eq!(errno(fs::metadata(&missing)), Some(libc::ENOENT));
        assert_eq!(fs::read_dir(mounted.mountpoint.join("directory")).expect("listed").count(), 1);
    };
    look();
    let reads = mounted.tree.reads();
    let listings = mounted.tree.counts.listings.load(Ordering::SeqCst);
    let attributes = mounted.tree.counts.attributes.load(Ordering::SeqCst);
    for _ in 0..10 {
        look();
    }
    assert_eq!(mounted.tree.reads(), reads, "pages are kept when a file is opened again");
    assert_eq!(mounted.tree.counts.listings.load(Ordering::SeqCst), listings, "directories are kept");
    assert_eq!(mounted.tree.counts.attributes.load(Ordering::SeqCst), attributes, "attributes are kept");
    for name in ["directory", "file", "missing"] {
        assert_eq!(mounted.tree.lookups_of(name), 1, "{name}");
    }
}

#[test]
fn statfs_tells_what_the_tree_tells() {
    require_fuse!();
    let mounted = Mounted::new(ToyTree::new());
    let seen = rustix::fs::statvfs(mounted.mountpoint.path()).expect("told");
    assert_eq!((seen.f_blocks, seen.f_bfree, seen.f_bavail), (STATISTICS.blocks, 0, 0));
    assert_eq!((seen.f_files, seen.f_ffree), (STATISTICS.files, 0));
    assert_eq!((seen.f_bsize, seen.f_frsize, seen.f_namemax), (4096, 4096, 255));
    assert!(seen.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    assert!(seen.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    assert!(seen.f_flag.contains(rustix::fs::StatVfsMountFlags::NODEV));
}

//! What programs see of a tree.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peelfs_fuse::{Device, ROOT_INODE, Timestamp};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek};

use super::toy_tree::{Content, STATISTICS, ToyTree, generated, generated_byte};
use super::{Mounted, require_fuse};

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
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
    assert_eq!(names, [name(&[b'z'; 255])]);
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
fn holes_are_found_and_read_as_zeros() {
    require_fuse!();
    let size = 5 << 30;
    let pieces = vec![(4096, b"first".to_vec()), (3 << 30, vec![7; 10_000])];
    let mut tree = ToyTree::new();
    tree.content(ROOT_INODE, b"sparse", size, Content::Sparse(pieces));
    tree.file(ROOT_INODE, b"dense", b"0123456789");
    let mounted = Mounted::new(tree);
    let file = File::open(mounted.mountpoint.join("sparse")).expect("opened");
    for (whence, found) in [
        (SeekFrom::Data(0), Ok(4096)),
        (SeekFrom::Data(4100), Ok(4100)),
        (SeekFrom::Hole(0), Ok(0)),
        (SeekFrom::Hole(4096), Ok(4101)),
        (SeekFrom::Data(4101), Ok(3 << 30)),
        (SeekFrom::Hole(3 << 30), Ok((3 << 30) + 10_000)),
        (SeekFrom::Data((3 << 30) + 10_000), Err(rustix::io::Errno::NXIO)),
        (SeekFrom::Hole(size), Err(rustix::io::Errno::NXIO)),
        (SeekFrom::End(0), Ok(size)),
    ] {
        assert_eq!(seek(&file, whence), found, "{whence:?}");
    }
    let mut bytes = [1; 12];
    file.read_exact_at(&mut bytes, 4093).expect("read");
    assert_eq!(&bytes, b"\0\0\0first\0\0\0\0");
    let dense = File::open(mounted.mountpoint.join("dense")).expect("opened");
    assert_eq!(seek(&dense, SeekFrom::Hole(0)), Ok(10));
}

#[test]
fn what_is_read_is_what_the_tree_gave_whoever_answers() {
    require_fuse!();
    let size = 20 * 1024 * 1024 + 12_345;
    let mut tree = ToyTree::new();
    tree.content(ROOT_INODE, b"at once", size, Content::Generated);
    tree.content(ROOT_INODE, b"later", size, Content::Later);
    let mounted = Mounted::new(tree);
    let expected = generated(0, size as usize);
    for file in ["at once", "later"] {
        let bytes = fs::read(mounted.mountpoint.join(file)).expect("read");
        assert!(bytes == expected, "{file}: the whole file");
        let file = File::open(mounted.mountpoint.join(file)).expect("opened");
        let mut bytes = Vec::new();
        (&file).take(0).read_to_end(&mut bytes).expect("nothing");
        assert_eq!(file.read_at(&mut [0; 10], size).expect("at the end"), 0);
        assert_eq!(file.read_at(&mut [0; 10], size - 3).expect("near the end"), 3);
    }
    // 1 MiB requests: more than 4 requests a MiB would mean that max_pages was not agreed.
    assert!(mounted.tree.reads() < 2 * 4 * 21, "{} requests for 40 MiB", mounted.tree.reads());
}

#[test]
fn many_readers_at_once_get_their_own_bytes() {
    require_fuse!();
    let size: u64 = 4 << 20;
    let mut tree = ToyTree::new();
    for index in 0..4 {
        let content = if index % 2 == 0 { Content::Later } else { Content::Generated };
        tree.content(ROOT_INODE, format!("file {index}").as_bytes(), size, content);
    }
    let mounted = Mounted::new(tree);
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let path = mounted.mountpoint.join(format!("file {}", reader % 4));
            scope.spawn(move || {
                let file = File::open(path).expect("opened");
                for step in 0..200u64 {
                    let offset = (reader * 7919 + step * 104_729) % (size - 5000);
                    let mut bytes = [0; 5000];
                    file.read_exact_at(&mut bytes, offset).expect("read");
                    let differs = (offset..).zip(bytes).find(|(at, byte)| generated_byte(*at) != *byte);
                    assert_eq!(differs, None, "reader {reader} at {offset}");
                }
            });
        }
    });
}

#[test]
fn an_answer_that_is_missing_short_or_a_panic_is_an_io_error_and_nothing_more() {
    require_fuse!();
    let mut tree = ToyTree::new();
    for (name, content) in
        [("silent", Content::Silent), ("short", Content::Short), ("broken", Content::Broken)]
    {
        tree.content(ROOT_INODE, name.as_bytes(), 5000, content);
    }
    tree.file(ROOT_INODE, b"good", b"good");
    // One thread: were it lost, the rest of this test would hang.
    let mounted = Mounted::with(tree, |options| options.threads = 1);
    for _ in 0..3 {
        for bad in ["silent", "short", "broken"] {
            assert_eq!(errno(fs::read(mounted.mountpoint.join(bad))), Some(libc::EIO), "{bad}");
            assert_eq!(
                fs::metadata(mounted.mountpoint.join(bad)).expect("there").len(),
                5000,
                "{bad} was not cut"
            );
        }
        assert_eq!(fs::read(mounted.mountpoint.join("good")).expect("read"), b"good");
    }
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

#[test]
fn a_whole_file_is_read_without_us() {
    require_fuse!();
    let size = 3 << 20;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("whole");
    fs::write(&path, generated(0, size)).expect("written");
    let local = Arc::new(File::open(&path).expect("opened"));
    let mut tree = ToyTree::new();
    tree.content(ROOT_INODE, b"whole", size as u64, Content::Whole(Arc::clone(&local)));
    tree.content(ROOT_INODE, b"remote", size as u64, Content::Generated);
    tree.content(ROOT_INODE, b"small", 1000, Content::Whole(local));
    let mounted = Mounted::with(tree, |options| options.passthrough = true);
    let whole = mounted.mountpoint.join("whole");

    // Opened twice at once, and again after the last close.
    for _ in 0..3 {
        let first = File::open(&whole).expect("opened");
        let second = File::open(&whole).expect("opened again");
        for mut file in [first, second] {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).expect("read");
            assert!(bytes == generated(0, size));
        }
    }
    let passed_through = mounted.tree.reads() == 0;
    assert!(passed_through || !kernel_can_pass_through(), "{} reads came to us", mounted.tree.reads());
    for (name, length) in [("remote", size), ("small", 1000)] {
        let reads = mounted.tree.reads();
        assert!(fs::read(mounted.mountpoint.join(name)).expect("read") == generated(0, length), "{name}");
        assert!(mounted.tree.reads() > reads, "{name} is read through us");
    }
}

#[test]
fn files_open_and_close_from_many_threads_whichever_way_they_are_read() {
    require_fuse!();
    let size = 1 << 20;
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("whole"), generated(0, size)).expect("written");
    let local = Arc::new(File::open(directory.path().join("whole")).expect("opened"));
    let mut tree = ToyTree::new();
    tree.content(ROOT_INODE, b"whole", size as u64, Content::Whole(local));
    tree.content(ROOT_INODE, b"remote", size as u64, Content::Generated);
    let mounted = Mounted::with(tree, |options| {
        options.passthrough = true;
        options.threads = 4;
    });
    std::thread::scope(|scope| {
        for reader in 0..8u64 {
            let path = mounted.mountpoint.join(if reader % 4 == 3 { "remote" } else { "whole" });
            scope.spawn(move || {
                for step in 0..300u64 {
                    let file =
                        File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    let offset = (reader * 7919 + step * 104_729) % (size as u64 - 100);
                    let mut bytes = [0; 100];
                    file.read_exact_at(&mut bytes, offset).expect("read");
                    assert_eq!(bytes[..], generated(offset, 100), "{} at {offset}", path.display());
                }
            });
        }
    });
}

/// Passthrough came with Linux 6.9 and needs root.
fn kernel_can_pass_through() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9)) && rustix::process::geteuid().is_root()
}

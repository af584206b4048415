//! Bytes: those of the tree and no others, whoever answers, however many ask, whichever way they come.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use peelfs_fuse::{OpenRecords, ROOT_INODE};
use rustix::fs::{SeekFrom, seek};

use super::toy_tree::{Content, ToyTree, generated, generated_byte};
use super::{Mounted, errno, require_fuse};

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
    // Far more requests than the readahead makes of it would mean that max_pages was not agreed. The readahead is 1 MiB, but
    // 128 KiB where /sys cannot be written, as in a container that is not privileged.
    let expected_requests = 2 * size / readahead_bytes(mounted.mountpoint.path());
    let most = 4 * (expected_requests + 2);
    assert!(mounted.tree.reads() <= most, "{} requests for 40 MiB", mounted.tree.reads());
}

/// How far the kernel reads ahead on the file system at that path.
fn readahead_bytes(path: &Path) -> u64 {
    let device = fs::metadata(path).expect("mounted").dev();
    let setting = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    fs::read_to_string(setting).expect("a setting of the kernel").trim().parse::<u64>().expect("a number")
        << 10
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
    let mounted = Mounted::with(tree, |options| options.passthrough = Some(open_records()));
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
        options.passthrough = Some(open_records());
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

fn open_records() -> Arc<OpenRecords> {
    let file = tempfile::tempfile().expect("a file");
    Arc::new(OpenRecords::create(file, 100).expect("written"))
}

/// Passthrough came with Linux 6.9 and needs root.
fn kernel_can_pass_through() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9)) && rustix::process::geteuid().is_root()
}

//! What is done to a mounted image by those who write to it.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

fn set_modified(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn append(path: &Path, text: &str) {
    fs::File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Something of every kind, to the image of [`small_layers`](super::small_layers).
pub fn change_everything(root: &Path) {
    let at = |path: &str| root.join(path);
    // Files of the image: content, attributes, name, type.
    append(&at("etc/passwd"), "me:x:1:1\n");
    set_modified(&at("etc/passwd"), 1_650_000_000, 987_654_321);
    fs::set_permissions(at("opt/app/data/one"), fs::Permissions::from_mode(0o2701)).unwrap();
    fs::rename(at("opt/app/data/two"), at("opt/app/renamed")).unwrap();
    fs::remove_file(at("usr/share/doc/readme")).unwrap();
    fs::remove_file(at("bin")).unwrap();
    fs::create_dir(at("bin")).unwrap();
    fs::write(at("bin/inside"), "a link became a directory").unwrap();
    // Directories of the image: attributes alone; removed and made again; become a file.
    chown(at("usr/bin"), Some(7), Some(8)).unwrap();
    fs::remove_dir_all(at("opt/app/data")).unwrap();
    fs::create_dir(at("opt/app/data")).unwrap();
    fs::write(at("opt/app/data/three"), "3").unwrap();
    fs::remove_dir_all(at("usr/share")).unwrap();
    fs::write(at("usr/share"), "a directory became a file").unwrap();
    // A directory of the image keeps its name, as where container engines mount.
    let renamed = fs::rename(at("usr/bin"), at("usr/moved")).unwrap_err();
    assert_eq!(renamed.raw_os_error(), Some(rustix::io::Errno::XDEV.raw_os_error()));
    // New files.
    fs::create_dir(at("new")).unwrap();
    fs::write(at("new/first"), "linked").unwrap();
    fs::hard_link(at("new/first"), at("new/second")).unwrap();
    fs::hard_link(at("new/first"), at("etc/third")).unwrap();
    lchown(at("new/first"), Some(123_456), Some(3_000_000_000)).unwrap();
    symlink("../etc/passwd", at("new/link")).unwrap();
    symlink("x".repeat(300), at("new/dangling")).unwrap();
    lchown(at("new/link"), Some(5), Some(6)).unwrap();
    set_modified(&at("new/link"), -1, 250_000_000);
    rustix::fs::mknodat(CWD, at("new/fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let device = rustix::fs::makedev(259, 65_537);
    rustix::fs::mknodat(CWD, at("new/device"), FileType::BlockDevice, Mode::from_raw_mode(0o600), device)
        .unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("new/socket")));
    let odd = root.join("new").join(std::ffi::OsStr::from_bytes(b"not\xffUTF-8\n"));
    fs::write(odd, "odd name").unwrap();
    fs::write(at(&format!("new/{}", "n".repeat(255))), "long name").unwrap();
    let attributes: [(&str, &[u8]); 3] = [
        ("user.new", b"\x00\xff="),
        ("trusted.new", b"value"),
        // cap_net_raw+ep, revision 2.
        ("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    fs::write(at("new/attributes"), "has some").unwrap();
    for (name, value) in attributes {
        rustix::fs::setxattr(at("new/attributes"), name, value, XattrFlags::empty()).unwrap();
    }
    let mut sparse = fs::File::create(at("new/sparse")).unwrap();
    for place in [70_000, 9_000_000] {
        sparse.seek(SeekFrom::Start(place)).unwrap();
        sparse.write_all(b"data").unwrap();
    }
    sparse.set_len(20_000_001).unwrap();
    fs::create_dir(at("new/made")).unwrap();
    fs::rename(at("new/made"), at("new/directory")).unwrap();
    fs::set_permissions(at("new/directory"), fs::Permissions::from_mode(0o1777)).unwrap();
    // As deep as umoci reaches.
    make_deep(&at("new/deep"), 60);
    set_modified(root, 1_660_000_000, 5);
}

/// A file below so many directories of long names.
pub fn make_deep(path: &Path, depth: usize) {
    fs::create_dir(path).unwrap();
    let open = |at: Option<&OwnedFd>, name: &[u8]| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match at {
            Some(at) => rustix::fs::openat(at, name, flags, Mode::empty()).unwrap(),
            None => rustix::fs::openat(CWD, path, flags, Mode::empty()).unwrap(),
        }
    };
    let mut directory = open(None, b"");
    for number in 0..depth {
        let name = format!("{number}-{}", "d".repeat(50));
        rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o755)).unwrap();
        directory = open(Some(&directory), name.as_bytes());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, "bottom", flags, Mode::from_raw_mode(0o644)).unwrap();
    fs::File::from(file).write_all(b"deep").unwrap();
}

/// Changes an attribute of everything that a path reaches, so that all of it is copied up.
pub fn touch_everything(root: &Path) {
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        // Of several names, one is copied up alone, and is no link any more.
        if std::os::unix::fs::MetadataExt::nlink(&found) == 1 || found.is_dir() {
            set_modified(&path, 1_234_567_890, 1);
        }
    }
}

/// Numbers that look random, the same for each seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // Steele and others, "Fast splittable pseudorandom number generators" (SplitMix64).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn path(&mut self) -> String {
        const NAMES: [&str; 7] = ["etc", "passwd", "opt", "app", "data", "usr", "x"];
        let names: Vec<&str> = (0..=self.below(3)).map(|_| NAMES[self.below(7) as usize]).collect();
        names.join("/")
    }
}

/// The same forty operations to each of these directories, which are alike. What fails in one must fail in all.
pub fn change_at_random(roots: &[&Path], seed: u64) {
    let mut random = Random(seed);
    for step in 0..40 {
        let (kind, one, two, number) =
            (random.below(12), random.path(), random.path(), random.below(1 << 16));
        let outcomes: Vec<bool> =
            roots.iter().map(|root| change(kind, &root.join(&one), &root.join(&two), number)).collect();
        assert!(
            outcomes.iter().all(|outcome| *outcome == outcomes[0]),
            "seed {seed}, step {step}: operation {kind} with {one}, {two}: {outcomes:?}"
        );
    }
}

/// One operation; whether it could be done.
fn change(kind: u64, one: &Path, two: &Path, number: u64) -> bool {
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    match kind {
        0 | 1 => fs::write(one, number.to_string().repeat(number as usize % 50)).is_ok(),
        2 => fs::create_dir(one).is_ok(),
        3 => fs::remove_file(one).is_ok(),
        4 => fs::remove_dir_all(one).is_ok(),
        // A directory of the image cannot be renamed in the mount, which is tested elsewhere.
        5 => !is_directory(one) && !is_directory(two) && fs::rename(one, two).is_ok(),
        // Nor does a link to a file of several names copy up the others.
        6 => is_single(one) && fs::hard_link(one, two).is_ok(),
        7 => symlink("passwd", one).is_ok(),
        8 => {
            is_single(one)
                && fs::set_permissions(one, fs::Permissions::from_mode(number as u32 & 0o7777 | 0o400))
                    .is_ok()
        }
        9 => is_single(one) && chown(one, Some(number as u32), Some(1)).is_ok(),
        10 => is_directory(one) && fs::remove_dir_all(one).and_then(|()| fs::create_dir(one)).is_ok(),
        _ => {
            let value = number.to_string();
            fs::symlink_metadata(one).is_ok_and(|found| !found.is_symlink())
                && is_single(one)
                && rustix::fs::setxattr(one, "user.random", value.as_bytes(), XattrFlags::empty()).is_ok()
        }
    }
}

fn is_single(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_dir() || (!found.is_symlink() && std::os::unix::fs::MetadataExt::nlink(&found) == 1)
    })
}

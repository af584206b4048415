//! How a mount begins and ends.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use peelfs_fuse::{
    FILESYSTEM_TYPE, MountError, MountOptions, ROOT_INODE, UnmountError, User, is_mountpoint, mount,
    mount_at, mounts, unmount,
};
use rustix::mount::{MountFlags, UnmountFlags};

use super::toy_tree::{Content, ToyTree, generated};
use super::{Mounted, require_fuse, tree_with_a_file, unmount_unused};
use crate::support::mounts::Mountpoint;

#[test]
fn a_mount_is_usable_when_mount_returns_and_gone_when_unmount_does() {
    require_fuse!();
    let Mounted { session, tree, mountpoint } = Mounted::new(tree_with_a_file());
    let entry = mount_at(mountpoint.path()).expect("looked at").expect("a mount");
    assert_eq!(entry.filesystem_type, FILESYSTEM_TYPE);
    assert_eq!(entry.source, "toy, with a comma");
    assert!(entry.is_ours() && !entry.is_dead());
    assert!(mounts().expect("listed").contains(&entry));
    assert_eq!(session.mountpoint(), mountpoint.path().canonicalize().expect("resolved"));

    unmount_unused(|| session.unmount(false)).expect("nobody uses it");
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"));
    assert_eq!(session.wait().map_err(|error| error.to_string()), Ok(()));
    assert_eq!(Arc::strong_count(&tree), 1, "the tree is let go");
    session.unmount(false).expect("a second time, it is gone already");
}

#[test]
fn a_session_ends_when_somebody_else_unmounts() {
    require_fuse!();
    let by_the_library = |path: &Path| unmount_unused(|| unmount(path, false)).is_ok();
    let by_the_system = |path: &Path| rustix::mount::unmount(path, UnmountFlags::DETACH).is_ok();
    for take_away in [&by_the_library as &dyn Fn(&Path) -> bool, &by_the_system] {
        let mounted = Mounted::new(ToyTree::new());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| mounted.session.wait());
            let unmounted = take_away(mounted.mountpoint.path());
            if !unmounted {
                // Lest the scope wait for ever.
                mounted.session.unmount(true).expect("lazily");
            }
            waiting.join().expect("no panic").expect("an ordinary end");
            assert!(unmounted);
        });
    }
}

#[test]
fn dropping_a_session_unmounts_and_serves_those_who_still_read() {
    require_fuse!();
    let mut tree = ToyTree::new();
    tree.content(ROOT_INODE, b"file", 1 << 20, Content::Generated);
    let Mounted { session, mountpoint, .. } = Mounted::new(tree);
    let mut file = File::open(mountpoint.join("file")).expect("opened");
    drop(session);
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("still served");
    assert!(bytes == generated(0, 1 << 20));
}

#[test]
fn a_busy_mount_is_refused_with_the_name_of_its_user() {
    require_fuse!();
    let mounted = Mounted::new(tree_with_a_file());
    let file = File::open(mounted.mountpoint.join("file")).expect("opened");
    let refused = mounted.session.unmount(false).expect_err("in use");
    assert!(refused.to_string().contains("lazily"), "{refused}");
    let UnmountError::Busy { users, .. } = refused else { panic!("{refused}") };
    let me = std::process::id();
    assert!(
        users.iter().any(|user| matches!(user, User::Process { pid, uses: "open file", .. } if *pid == me))
    );
    assert_eq!(fs::read(mounted.mountpoint.join("file")).expect("still there"), b"content");

    mounted.session.unmount(true).expect("lazily");
    assert!(!is_mountpoint(mounted.mountpoint.path()).expect("looked at"));
    drop(file);
    mounted.session.wait().expect("ends with its last user");
}

/// A file system of the kernel's own, and its end.
struct Foreign(PathBuf);

impl Foreign {
    fn mount(path: &Path) -> Foreign {
        rustix::mount::mount("foreign", path, "tmpfs", MountFlags::empty(), None).expect("mounted");
        Foreign(path.to_owned())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn what_is_mounted_over_or_in_a_mount_is_never_taken_away_with_it() {
    require_fuse!();
    let mut tree = ToyTree::new();
    tree.directory(ROOT_INODE, b"inside");
    let mounted = Mounted::new(tree);
    for place in [mounted.mountpoint.path().to_owned(), mounted.mountpoint.join("inside")] {
        let foreign = Foreign::mount(&place);
        match mounted.session.unmount(false) {
            Err(UnmountError::Busy { users, .. }) => {
                assert!(users.iter().any(
                    |user| matches!(user, User::Mount { filesystem_type, .. } if filesystem_type == "tmpfs")
                ));
            }
            other => panic!("{}: {other:?}", place.display()),
        }
        assert!(is_mountpoint(&place).expect("looked at"));
        drop(foreign);
    }
    unmount_unused(|| mounted.session.unmount(false)).expect("free again");
}

#[test]
fn an_unmounter_that_outlives_its_mount_leaves_the_next_one_alone() {
    require_fuse!();
    let mountpoint = Mountpoint::new();
    let options = MountOptions::new(mountpoint.path(), "toy");
    // The kernel gives the next mount the same numbers, as a rule.
    for _ in 0..5 {
        let first = mount(Arc::new(ToyTree::new()), &options).expect("mounted");
        let unmounter = first.unmounter();
        unmount_unused(|| unmounter.unmount(false)).expect("its own");
        first.wait().expect("ended");
        let second = mount(Arc::new(ToyTree::new()), &options).expect("mounted again");
        unmounter.unmount(true).expect("nothing left to do");
        assert!(is_mountpoint(mountpoint.path()).expect("looked at"));
        drop(second);
    }
}

#[test]
fn a_directory_that_cannot_be_mounted_at_is_refused_with_the_reason() {
    require_fuse!();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("written");
    let attempt = |path: &Path| mount(Arc::new(ToyTree::new()), &MountOptions::new(path, "toy")).map(drop);

    let missing = directory.path().join("missing");
    assert!(matches!(attempt(&missing), Err(MountError::Missing { mountpoint }) if mountpoint == missing));
    assert!(matches!(attempt(&file), Err(MountError::NotADirectory { .. })));
    let refused = attempt(directory.path());
    assert!(matches!(&refused, Err(MountError::NotEmpty { entry, .. }) if entry == "file"), "{refused:?}");
    let refused = attempt(Path::new("/proc"));
    assert!(
        matches!(&refused, Err(MountError::AlreadyMounted { filesystem_type: kind, .. }) if kind == "proc"),
        "{refused:?}"
    );

    let mounted = Mounted::new(ToyTree::new());
    let refused = attempt(mounted.mountpoint.path()).expect_err("a live mount");
    assert!(
        matches!(&refused, MountError::AlreadyMounted { source_name: name, .. } if name == "toy, with a comma")
    );
    assert!(refused.to_string().contains(&*mounted.mountpoint.path().to_string_lossy()), "{refused}");

    let mut rootless = ToyTree::new();
    rootless.attributes_mut(ROOT_INODE).mode = libc::S_IFREG | 0o644;
    let mountpoint = Mountpoint::new();
    let refused = mount(Arc::new(rootless), &MountOptions::new(mountpoint.path(), "toy")).map(drop);
    assert!(matches!(refused, Err(MountError::NoRoot { .. })), "{refused:?}");
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"));
}

#[test]
fn only_our_own_mounts_are_unmounted() {
    require_fuse!();
    let directory = tempfile::tempdir().expect("a directory");
    assert!(matches!(unmount(directory.path(), false), Err(UnmountError::NotMounted { .. })));
    let foreign = Foreign::mount(directory.path());
    let refused = unmount(directory.path(), true);
    assert!(
        matches!(&refused, Err(UnmountError::NotOurs { filesystem_type, .. }) if filesystem_type == "tmpfs")
    );
    assert!(is_mountpoint(directory.path()).expect("looked at"));
    drop(foreign);
}

#[test]
fn of_two_who_mount_at_one_directory_at_once_one_succeeds() {
    require_fuse!();
    for _ in 0..10 {
        let mountpoint = Mountpoint::new();
        let barrier = std::sync::Barrier::new(2);
        let attempt = || {
            barrier.wait();
            mount(Arc::new(ToyTree::new()), &MountOptions::new(mountpoint.path(), "toy"))
        };
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(attempt);
            (attempt(), one.join().expect("no panic"))
        });
        assert_eq!(one.is_ok() as u8 + other.is_ok() as u8, 1, "{one:?} {other:?}");
        let refused = one.as_ref().err().or(other.as_ref().err()).expect("one is refused");
        assert!(
            matches!(refused, MountError::Contended { .. } | MountError::AlreadyMounted { .. }),
            "{refused}"
        );
        assert_eq!(mounts().expect("listed").iter().filter(|m| m.mountpoint == mountpoint.path()).count(), 1);
    }
}

/// Not a test: the body of the processes that the tests below start.
#[test]
#[ignore = "the body of a process that other tests start"]
fn child_that_serves() {
    let Some(place) = std::env::var_os("PEEL_TEST_SERVE_AT") else { return };
    let session = mount(Arc::new(tree_with_a_file()), &MountOptions::new(place, "child")).expect("mounted");
    println!("\nserving");
    session.wait().expect("an ordinary end");
}

/// A process that serves a mount. Killed when this is dropped.
struct Server {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(mountpoint: &Path) -> Server {
        let mut command = Command::new(std::env::current_exe().expect("known"));
        command
            .args(["--exact", "fuse::lifecycle::child_that_serves", "--ignored", "--nocapture"])
            .env("PEEL_TEST_SERVE_AT", mountpoint)
            .stdout(Stdio::piped());
        let mut process = command.spawn().expect("started");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut server = Server { process, output };
        server.wait_for("serving");
        server
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("read") > 0 {
            if line.trim() == word {
                return;
            }
            line.clear();
        }
        panic!("the process ended without saying {word:?}");
    }

    fn kill(mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("gone");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_mount_of_a_killed_process_is_cleaned_by_unmounting_and_by_mounting() {
    require_fuse!();
    let mountpoint = Mountpoint::new();
    let dead_mount = || {
        let server = Server::start(mountpoint.path());
        assert_eq!(fs::read(mountpoint.join("file")).expect("served"), b"content");
        server.kill();
        let entry = mount_at(mountpoint.path()).expect("looked at").expect("left behind");
        assert!(entry.is_ours() && entry.is_dead());
    };
    dead_mount();
    unmount(mountpoint.path(), false).expect("cleaned");
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"));

    dead_mount();
    let session =
        mount(Arc::new(tree_with_a_file()), &MountOptions::new(mountpoint.path(), "toy")).expect("mounted");
    assert_eq!(fs::read(mountpoint.join("file")).expect("served"), b"content");
    drop(session);
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"), "the dead one is not below");
}

#[test]
fn a_dead_mount_goes_away_even_while_somebody_stands_in_it() {
    require_fuse!();
    let mountpoint = Mountpoint::new();
    let server = Server::start(mountpoint.path());
    let inside = File::open(mountpoint.path()).expect("opened");
    server.kill();
    unmount(mountpoint.path(), false).expect("cleaned");
    assert!(!is_mountpoint(mountpoint.path()).expect("looked at"));
    drop(inside);
}

#[test]
fn a_reader_that_waits_for_bytes_can_be_killed_and_others_read_on() {
    require_fuse!();
    let mut tree = tree_with_a_file();
    let (content, arrivals, gate) = Content::held();
    tree.content(ROOT_INODE, b"held", 100_000, content);
    let mounted = Mounted::with(tree, |options| options.threads = 1);
    let mut reader = Command::new("cat")
        .arg(mounted.mountpoint.join("held"))
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    arrivals.recv().expect("the read has arrived");
    assert_eq!(fs::read(mounted.mountpoint.join("file")).expect("read meanwhile"), b"content");
    reader.kill().expect("killed");
    reader.wait().expect("it is gone, though its read is not answered");

    drop(gate);
    assert!(fs::read(mounted.mountpoint.join("held")).expect("read") == generated(0, 100_000));
}

#[test]
fn a_file_handle_outlives_the_mount() {
    require_fuse!();
    let tree = || {
        let mut tree = ToyTree::new();
        let outer = tree.directory(ROOT_INODE, b"outer");
        let inner = tree.directory(outer, b"inner");
        tree.file(inner, b"file", b"content");
        tree
    };
    let Mounted { session, mountpoint, .. } = Mounted::new(tree());
    let file = FileHandle::of(&mountpoint.join("outer/inner/file"));
    let inner = FileHandle::of(&mountpoint.join("outer/inner"));
    unmount_unused(|| session.unmount(false)).expect("nobody uses it");
    session.wait().expect("ended");

    // The kernel has nothing of the first mount left, and must ask us.
    let session =
        mount(Arc::new(tree()), &MountOptions::new(mountpoint.path(), "toy")).expect("mounted again");
    let mut content = String::new();
    File::from(file.open(mountpoint.path())).read_to_string(&mut content).expect("read");
    assert_eq!(content, "content");
    let inner = inner.open(mountpoint.path());
    let place = fs::read_link(format!("/proc/self/fd/{}", inner.as_raw_fd())).expect("resolved");
    assert_eq!(place, mountpoint.join("outer/inner"));
    drop(inner);
    drop(session);
}

/// `struct file_handle` with room for its variable end.
#[repr(C)]
struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; libc::MAX_HANDLE_SZ as usize],
}

impl FileHandle {
    fn of(path: &Path) -> FileHandle {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        let mut handle = FileHandle { length: libc::MAX_HANDLE_SZ as u32, kind: 0, bytes: [0; _] };
        let mut mount = 0;
        // SAFETY: the handle has the layout and the room that its first field tells the kernel.
        let done = unsafe {
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &mut mount, 0)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        handle
    }

    fn open(mut self, mountpoint: &Path) -> OwnedFd {
        let mountpoint = File::open(mountpoint).expect("opened");
        // SAFETY: as above; what is returned is a new descriptor, and ours.
        unsafe {
            let opened =
                libc::open_by_handle_at(mountpoint.as_raw_fd(), (&raw mut self).cast(), libc::O_RDONLY);
            assert!(opened >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(opened)
        }
    }
}

#[test]
fn a_mount_can_be_the_lower_directory_of_an_overlay() {
    require_fuse!();
    let mut tree = tree_with_a_file();
    let directory = tree.directory(ROOT_INODE, b"directory");
    let file = tree.file(directory, b"changed", b"before");
    tree.set_xattr(file, "user.kept", b"value");
    let mounted = Mounted::with(tree, |options| options.allow_other = true);
    let scratch = tempfile::tempdir().expect("a directory");
    let part = |name: &str| scratch.path().join(name);
    // Overlays want an upper directory on an ordinary file system.
    fs::create_dir(part("disk")).expect("made");
    let disk = Foreign::mount(&part("disk"));
    for name in ["disk/upper", "disk/work", "merged"] {
        fs::create_dir(part(name)).expect("made");
    }
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        mounted.mountpoint.path().display(),
        part("disk/upper").display(),
        part("disk/work").display()
    );
    let data = std::ffi::CString::new(data).expect("no NUL");
    rustix::mount::mount("overlay", part("merged"), "overlay", MountFlags::empty(), Some(&*data))
        .expect("mounted");
    let overlay = Foreign(part("merged"));

    assert_eq!(fs::read(part("merged/file")).expect("read"), b"content");
    fs::write(part("merged/directory/changed"), "after").expect("copied up");
    assert_eq!(fs::read(part("merged/directory/changed")).expect("read"), b"after");
    let mut value = [0; 10];
    let length = rustix::fs::lgetxattr(part("merged/directory/changed"), "user.kept", &mut value[..]);
    assert_eq!(length.map(|length| &value[..length]), Ok(&b"value"[..]));
    assert_eq!(fs::read(mounted.mountpoint.join("directory/changed")).expect("read"), b"before");
    drop(overlay);
    drop(disk);
}

#[test]
fn the_kernel_reads_ahead_as_far_as_asked() {
    require_fuse!();
    let mounted = Mounted::with(ToyTree::new(), |options| options.readahead_bytes = 768 * 1024);
    let device = fs::metadata(mounted.mountpoint.path()).expect("there").dev();
    let setting = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    if File::options().write(true).open(&setting).is_err() {
        eprintln!("skipped: {setting} cannot be written here");
        return;
    }
    assert_eq!(fs::read_to_string(setting).expect("read").trim(), "768");
}

//! Mounting without the right to mount.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use peelfs_fuse::{
    FILESYSTEM_TYPE, MountError, MountOptions, Session, UnmountError, is_mountpoint, mount, mount_at,
};

use super::{require_fuse, tree_with_a_file};

/// Not a test: the body of the processes that the next one starts.
#[test]
#[ignore = "the body of processes that another test starts"]
fn child_without_rights() {
    let Some(place) = std::env::var_os("PEEL_TEST_MOUNT_AT") else { return };
    assert!(!rustix::process::geteuid().is_root());
    let place = Path::new(&place);
    let mounted = mount(Arc::new(tree_with_a_file()), &MountOptions::new(place, "child"));
    match std::env::var("PEEL_TEST_EXPECTS").expect("set").as_str() {
        "a mount" => use_and_unmount(mounted.expect("mounted"), place),
        "forbidden" => assert!(matches!(mounted, Err(MountError::DeviceForbidden { .. })), "{mounted:?}"),
        "missing" => assert!(matches!(mounted, Err(MountError::DeviceMissing { .. })), "{mounted:?}"),
        "not permitted" => assert!(matches!(mounted, Err(MountError::NotPermitted { .. })), "{mounted:?}"),
        "refused" => assert!(matches!(mounted, Err(MountError::Fusermount { .. })), "{mounted:?}"),
        other => panic!("no such expectation: {other}"),
    }
    assert!(!is_mountpoint(place).expect("looked at"));
}

fn use_and_unmount(session: Session, place: &Path) {
    let entry = mount_at(place).expect("looked at").expect("a mount");
    assert_eq!((entry.filesystem_type.as_str(), entry.source.as_str()), (FILESYSTEM_TYPE, "child"));
    assert_eq!(fs::read(place.join("file")).expect("read"), b"content");

    let open = File::open(place.join("file")).expect("opened");
    assert!(matches!(session.unmount(false), Err(UnmountError::Busy { .. })));
    drop(open);
    session.unmount(false).expect("unmounted");
    session.wait().expect("an ordinary end");
}

#[test]
fn somebody_who_may_not_mount_does_it_with_fusermount3_or_learns_why_not() {
    require_fuse!();
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/bin/fusermount3").exists() {
        eprintln!("skipped: needs root, to become somebody else, and fusermount3");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let part = |name: &str| directory.path().join(name);
    // Where nobody can read: the test's own program may lie in a private directory.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("opened up");
    fs::copy(std::env::current_exe().expect("known"), part("tests")).expect("copied");
    fs::create_dir(part("mountpoint")).expect("made");
    chown(part("mountpoint"), Some(65_534), Some(65_534)).expect("given away");
    // Each in mounts of its own, so that this machine's device stays as it is.
    let device = |mode: &str| {
        format!(
            "mount -t tmpfs tmpfs /mnt; mknod -m {mode} /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse"
        )
    };
    for (expects, prepare) in [
        ("a mount", device("666")),
        ("forbidden", device("600")),
        ("not permitted", format!("{}; cp /usr/bin/setpriv /mnt; mount --bind /mnt /usr/bin", device("666"))),
        ("refused", format!("{}; chown 0:0 {}", device("666"), part("mountpoint").display())),
        ("missing", "mount -t tmpfs tmpfs /dev".to_owned()),
    ] {
        let script =
            format!("set -e; {prepare}; exec setpriv --reuid 65534 --regid 65534 --clear-groups -- \"$@\"");
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
            .arg(part("tests"))
            .args(["--exact", "fuse::rights::child_without_rights", "--ignored", "--nocapture"])
            .env("PEEL_TEST_MOUNT_AT", part("mountpoint"))
            .env("PEEL_TEST_EXPECTS", expects)
            .current_dir("/")
            .output()
            .expect("started");
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(output.status.success() && said.contains("1 passed"), "{expects}: {said}");
    }
}

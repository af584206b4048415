//! Promise: where this machine does not let one mount or unmount, it is said why, and nothing is lost.

use super::*;

#[test]
fn mounting_where_one_cannot_says_why() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[layer()], Form::GZIP);
    let mount_at = |path: &std::path::Path| peel.run(&["mount", &reference, path.to_str().unwrap()]);
    let fails = |outcome: &Outcome, path: &std::path::Path| {
        assert_eq!(outcome.code, Some(THIS_MACHINE), "{outcome:?}");
        assert!(outcome.stderr.contains(path.to_str().unwrap()), "{outcome:?}");
    };
    let missing = peel.scratch().join("missing");
    fails(&mount_at(&missing), &missing);
    assert!(!missing.exists());

    let file = peel.scratch().join("file");
    fs::write(&file, "content").unwrap();
    fails(&mount_at(&file), &file);

    let full = peel.mount_point();
    fs::write(full.join("file"), "content").unwrap();
    fails(&mount_at(&full), &full);
    assert_eq!(fs::read(full.join("file")).unwrap(), b"content");

    let mount = peel.mount(&reference);
    fails(&mount_at(mount.path()), mount.path());
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small", "the first mount goes on");

    let outcome = peel.run(&["unmount", full.to_str().unwrap()]);
    assert!(outcome.code.is_some_and(|code| code != 0), "{outcome:?}");
    assert_eq!(fs::read(full.join("file")).unwrap(), b"content");
}

#[test]
fn mounting_without_dev_fuse_says_so() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[layer()], Form::GZIP);
    let keep_null = "mknod -m 666 /dev/null c 1 3";
    for (what, prepare) in [
        ("missing", format!("mount -t tmpfs none /dev && {keep_null}")),
        (
            "forbidden",
            format!(
                "mount -t tmpfs none /dev && {keep_null} && mknod /dev/fuse c 10 229 && mount -o remount,nodev /dev"
            ),
        ),
    ] {
        let point = peel.mount_point();
        let inner = peel.command(&["mount", &reference, point.to_str().unwrap()]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        let outcome = run_to_end(command, peel.scratch());
        assert_eq!(outcome.code, Some(THIS_MACHINE), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains("/dev/fuse"), "{what}: {outcome:?}");
        assert!(!is_mount_point(&point), "{what}");
    }
    assert_eq!(fs::read(peel.mount(&reference).join("small")).unwrap(), b"small");
}

#[test]
fn unmounting_what_is_no_mount_says_so() {
    let peel = Peel::new();
    let path = peel.mount_point();
    let outcome = peel.run(&["unmount", path.to_str().unwrap()]);
    assert!(outcome.code.is_some_and(|code| code != 0), "{outcome:?}");
    assert!(outcome.stderr.contains(path.to_str().unwrap()), "{outcome:?}");
    let missing = fs::metadata(path.join("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

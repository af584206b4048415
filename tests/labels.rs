//! Promise: all files of a mount with an SELinux label show that label and no other, whatever the image says; where SELinux is not enabled, that
//! is said, and nothing else changes.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::image::Layout;
use crate::support::peel::Peel;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn layers() -> Vec<Vec<TestEntry>> {
    vec![vec![
        TestEntry::file("labelled", "x")
            .xattr("security.selinux", "system_u:object_r:shadow_t:s0\0")
            .xattr("user.other", "kept"),
        TestEntry::file("plain", "y"),
        TestEntry::directory("directory").xattr("security.selinux", "system_u:object_r:shadow_t:s0\0"),
        TestEntry::symlink("link", "plain"),
    ]]
}

/// An attribute of the file itself, as the kernel gives it.
fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let name = CString::new(name).unwrap();
    let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn attribute_names(path: &Path) -> Vec<String> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
}

fn selinux_is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Options of the file system that is mounted there, as the kernel lists them.
fn options(path: &Path) -> String {
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_there = |line: &&str| {
        line.split(' ').nth(4).is_some_and(|place| place.as_bytes() == path.as_os_str().as_bytes())
    };
    list.lines().find(is_there).unwrap().to_owned()
}

#[test]
fn all_files_of_a_mount_show_its_label_and_no_other() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers(), Form::ESTARGZ);
    let expected = [LABEL.as_bytes(), b"\0"].concat();
    let plain = peel.mount(&reference);
    for typed in [LABEL.to_owned(), format!("context=\"{LABEL}\"")] {
        for name in ["--label", "--mount-label"] {
            let mount = peel.mount_with(&reference, &[name, &typed]);
            for file in ["", "labelled", "plain", "directory", "link"] {
                let path = mount.join(file);
                assert_eq!(attribute(&path, "security.selinux"), Some(expected.clone()), "{file:?}");
                let names = attribute_names(&path);
                assert_eq!(
                    names.iter().filter(|name| *name == "security.selinux").count(),
                    1,
                    "{file:?}: {names:?}"
                );
            }
            assert_eq!(attribute(&mount.join("labelled"), "user.other").as_deref(), Some(&b"kept"[..]));
            assert_eq!(options(mount.path()).contains("context="), selinux_is_enabled());
            assert!(fs::write(mount.join("plain"), "no").is_err());
            mount.unmount();
        }
    }
    if !selinux_is_enabled() {
        // Of no label nothing is said, and the image's is what it says.
        assert_eq!(attribute(&plain.join("plain"), "security.selinux"), None);
        assert_eq!(
            attribute(&plain.join("labelled"), "security.selinux").as_deref(),
            Some(&b"system_u:object_r:shadow_t:s0\0"[..])
        );
    }
    plain.unmount();
}

#[test]
fn a_writable_mount_shows_its_label_on_the_files_of_the_image() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers(), Form::GZIP);
    let mount = peel.mount_with(&reference, &["--writable", "--snapshot", "one", "--label", LABEL]);
    let expected = [LABEL.as_bytes(), b"\0"].concat();
    for file in ["labelled", "plain", "directory"] {
        assert_eq!(attribute(&mount.join(file), "security.selinux"), Some(expected.clone()), "{file}");
    }
    assert_eq!(options(mount.path()).contains("context="), selinux_is_enabled());
    fs::write(mount.join("new"), "written").unwrap();
    // What is committed has no label of this machine.
    peel.succeed(&["commit", mount.path().to_str().unwrap(), "--tag", "localhost/made:one"]);
    mount.unmount();
    let made = peel.mount("localhost/made:one");
    assert_eq!(attribute(&made.join("new"), "security.selinux"), None);
    assert_eq!(fs::read_to_string(made.join("new")).unwrap(), "written");
    made.unmount();
}

#[test]
fn a_label_that_is_none_is_refused_and_one_that_nobody_enforces_is_said_to_be() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers(), Form::GZIP);
    let point = peel.mount_point();
    let directory = point.to_str().unwrap();
    for wrong in ["", "container_file_t", "u:r:t,dev:s0", "u:r:t\n:s0", "fscontext=u:r:t:s0"] {
        let outcome = peel.run(&["mount", &reference, directory, "--label", wrong]);
        assert_eq!(outcome.code, Some(2), "{wrong:?}: {outcome:?}");
        assert!(outcome.stderr.contains("user:role:type"), "{outcome:?}");
    }
    if !selinux_is_enabled() {
        let outcome = peel.run(&["mount", &reference, directory, "--label", LABEL]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stderr.contains("SELinux is not enabled"), "{outcome:?}");
        peel.succeed(&["unmount", directory]);
    }
}

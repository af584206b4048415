//! What becomes of changes: when the mount ends, whatever ends it; and of an image that is being made, whatever comes between.

use super::{commit_is_the_mount, small_image, small_layers};
use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants, is_mount_point, run_to_end};
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary names are UTF-8")
}

fn snapshots(peel: &Peel) -> Vec<String> {
    let list = peel.json(&["snapshot", "ls", "--json"]);
    list.as_array().unwrap().iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_unchanged_writable_mount_is_the_image_and_nothing_is_written_to_the_image() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let model = Model::of(&small_layers()).unwrap().tree();
    let mount = peel.mount_with(&reference, &["--writable"]);
    assert_same(&Tree::walk(mount.path()), &model, &[super::link_counts_of_an_overlay()]);
    fs::write(mount.join("etc/passwd"), "other").unwrap();
    fs::remove_file(mount.join("bin")).unwrap();
    mount.unmount();
    let read_only = peel.mount(&reference);
    assert_same(&Tree::walk(read_only.path()), &model, &[]);
    read_only.unmount();
}

#[test]
fn inode_numbers_stay_when_a_file_is_changed_and_all_lie_on_one_device() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    let identity = |path: &str| {
        let found = fs::symlink_metadata(mount.join(path)).unwrap();
        (found.dev(), found.ino())
    };
    let before = identity("etc/passwd");
    fs::set_permissions(mount.join("etc/passwd"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(identity("etc/passwd"), before);
    fs::write(mount.join("etc/new"), "").unwrap();
    for path in ["etc/new", "usr", "usr/bin/tool", "bin"] {
        assert_eq!(identity(path).0, before.0, "{path}");
    }
    mount.unmount();
}

#[test]
fn changes_stay_when_it_is_unmounted_and_go_when_they_are_discarded() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("kept"), "kept").unwrap();
    let status = peel.json(&["status", "--json"]);
    assert_eq!(status[0]["snapshot"], "work");
    assert!(status[0]["changed_bytes"].as_u64().unwrap() >= 4096, "{status}");
    assert!(peel.succeed(&["unmount", text(mount.path())]).contains("--snapshot work"));
    drop(mount);
    peel.wait_for_servers_to_end();
    assert_eq!(snapshots(&peel), ["work"]);

    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(mount.join("etc/passwd")).unwrap(), "root:x:0:0\n");
    // In use: it cannot be discarded, nor mounted a second time.
    let second = peel.mount_point();
    for arguments in
        [vec!["snapshot", "rm", "work"], vec!["mount", &reference, text(&second), "--snapshot", "work"]]
    {
        let outcome = peel.run(&arguments);
        assert_eq!(outcome.code, Some(7), "{outcome:?}");
        assert!(outcome.stderr.contains("is mounted at"), "{outcome:?}");
    }
    peel.succeed(&["unmount", "--discard", text(mount.path())]);
    assert_eq!(snapshots(&peel), Vec::<String>::new());
    drop(mount);

    // By a name of its own, and discarded afterwards.
    let mount = peel.mount_with(&reference, &["--writable"]);
    mount.unmount();
    let [name] = &snapshots(&peel)[..] else { panic!("one snapshot") };
    peel.succeed(&["snapshot", "rm", name]);
    assert_eq!(snapshots(&peel), Vec::<String>::new());
    assert_eq!(peel.run(&["snapshot", "rm", "work"]).code, Some(3));
}

#[test]
fn changes_survive_their_server_and_the_dead_mount_goes() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("kept"), "kept").unwrap();
    assert_eq!(peel.kill_servers(), 1);
    assert_eq!(peel.json(&["status", "--json"])[0]["state"], "dead");
    // What was changed needs nobody.
    peel.succeed(&["commit", text(mount.path()), "--tag", "of-the-dead"]);
    let elsewhere = peel.mount_point();
    let outcome = peel.run(&["mount", &reference, text(&elsewhere), "--snapshot", "work"]);
    assert!(outcome.stderr.contains("is mounted at"), "{outcome:?}");
    mount.unmount();
    assert_eq!(peel.json(&["status", "--json"]), json!([]));

    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    assert_eq!(peel.kill_servers(), 1);
    // Over the dead one.
    peel.succeed(&["mount", &reference, text(mount.path()), "--snapshot", "work"]);
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(mount.join("usr/share/doc/readme")).unwrap(), "read me");
    mount.unmount();
    let committed = peel.mount("localhost/of-the-dead");
    assert_eq!(fs::read_to_string(committed.join("kept")).unwrap(), "kept");
    committed.unmount();
    peel.wait_for_servers_to_end();
}

#[test]
fn a_snapshot_stays_with_the_image_it_was_made_of_when_the_tag_moves() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let reference = layout.image("test", &small_layers(), Form::GZIP);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("etc/new"), "new").unwrap();
    mount.unmount();
    fs::remove_dir_all(layout.path()).unwrap();
    let other = vec![TestEntry::file("other", "another image")];
    Layout::create(peel.scratch().join("layout")).image("test", &[other], Form::GZIP);
    let moved = peel.mount_with(&reference, &["--pull=always"]);
    assert!(moved.join("other").exists());
    moved.unmount();
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    assert!(
        !mount.join("other").exists() && mount.join("etc/new").exists() && mount.join("bin").is_symlink()
    );
    mount.unmount();
}

#[test]
fn a_commit_that_is_killed_leaves_every_image_as_it_was() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    for number in 0..8 {
        let content = Content::Noise { seed: number, length: 900_000 };
        fs::write(mount.join(&format!("bulk{number}")), content.to_vec()).unwrap();
    }
    let path = text(mount.path()).to_owned();
    let mut first = serde_json::Value::Null;
    let whole = duration_of(|| first = peel.json(&["commit", &path, "--tag", "image", "--json"]));
    let named = |peel: &Peel| -> Vec<String> {
        let list = peel.json(&["ls", "--json"]);
        let lines = list.as_array().unwrap().iter();
        lines.map(|line| format!("{} {}", line["reference"], line["manifest_digest"])).collect()
    };
    let before = named(&peel);
    fs::write(mount.join("more"), "more").unwrap();
    // A commit that is done before it is killed counts as well.
    for instant in instants(whole) {
        peel.killed_after(instant, &["commit", &path, "--tag", "other", "--format", "zstd"]);
        let now = named(&peel);
        let kept: Vec<&String> = now.iter().filter(|line| !line.contains("localhost/other")).collect();
        assert_eq!(kept, before.iter().collect::<Vec<_>>());
        if now.len() > before.len() {
            let other = peel.mount("localhost/other");
            assert_eq!(fs::read_to_string(other.join("more")).unwrap(), "more");
            other.unmount();
        }
    }
    commit_is_the_mount(&peel, mount.path(), "other", "gzip");
    mount.unmount();
    let image = peel.mount("localhost/image");
    assert!(!image.join("more").exists());
    // By this mount, beside what it does for readers, if by none before.
    peel.wait_for(|| fs::read_dir(peel.store().join("content/ingest")).unwrap().count() == 0);
    image.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(
        peel.json(&["show", "localhost/image", "--json"])["manifest_digest"],
        first["manifest_digest"]
    );
}

#[test]
fn a_full_disk_is_an_error_of_whoever_writes_and_of_the_commit() {
    let peel = Peel::new();
    let disk = SmallDisk::make(peel.store(), 6);
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    let noise = |length| Content::Noise { seed: 1, length }.to_vec();
    fs::write(mount.join("half"), noise(3 << 20)).unwrap();
    let outcome = peel.run(&["commit", text(mount.path()), "--tag", "image"]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
    let error = fs::write(mount.join("too-much"), noise(8 << 20)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    fs::remove_file(mount.join("too-much")).unwrap();
    assert_eq!(peel.json(&["ls", "--json"]).as_array().unwrap().len(), 1);
    disk.grow(64);
    commit_is_the_mount(&peel, mount.path(), "image", "gzip");
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[test]
fn wrong_words_are_refused_and_change_nothing() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let read_only = peel.mount(&reference);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    let (path, plain) = (text(mount.path()).to_owned(), peel.mount_point());
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let outcome = peel.run(arguments);
        assert_eq!(outcome.code, Some(code), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(part), "{arguments:?}: {outcome:?}");
    };
    refused(&["commit", &path], 1, "nothing was changed");
    fs::write(mount.join("new"), "").unwrap();
    refused(&["commit", text(read_only.path())], 3, "neither a writable mount");
    refused(&["commit", text(&plain)], 3, "neither a writable mount");
    refused(&["commit", "/does/not/exist"], 3, "neither a writable mount");
    for name in ["Upper", "na me", "oci:dir:tag", &format!("name@sha256:{}", "1".repeat(64)), ""] {
        let outcome = peel.run(&["commit", &path, "--tag", name]);
        assert!(outcome.code.is_some_and(|code| code != 0), "{name}: {outcome:?}");
    }
    refused(&["unmount", "--discard", text(read_only.path())], 3, "nothing to discard");
    assert!(is_mount_point(read_only.path()));
    refused(&["mount", &reference, text(&plain), "--snapshot", "../x"], 2, "is no name of a snapshot");
    // What a layer has no word for, and what it would take for another.
    fs::write(mount.join(".wh.new"), "").unwrap();
    refused(&["commit", &path], 7, "/.wh.new cannot be in a layer");
    fs::remove_file(mount.join(".wh.new")).unwrap();
    fs::File::create(mount.join("vast")).unwrap().set_len(200 << 30).unwrap();
    refused(&["commit", &path], 7, "/vast the layer would have");
    fs::remove_file(mount.join("vast")).unwrap();
    mount.unmount();
    let other = Layout::create(peel.scratch().join("other")).image("test", &small_layers(), Form::GZIP);
    refused(&["mount", &other, text(&plain), "--snapshot", "work"], 7, "snapshot work was made of");
    assert_eq!(peel.json(&["ls", "--json"]).as_array().unwrap().len(), 1);
    assert_eq!(snapshots(&peel), ["work"]);
    // Of a snapshot that is not mounted, by its name.
    peel.succeed(&["commit", "work"]);
    let committed = peel.mount("localhost/work");
    assert!(committed.join("new").exists());
    committed.unmount();
    read_only.unmount();
}

/// Where nobody is root but in a user namespace, the kernel marks whiteouts otherwise.
#[test]
fn in_a_user_namespace_a_mount_can_be_written_to_and_committed() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let point = peel.mount_point();
    let script = r#"
        set -e
        "$PEEL" --store "$STORE" mount --snapshot work "$REFERENCE" "$POINT"
        rm "$POINT/bin"
        echo changed > "$POINT/etc/passwd"
        rm -r "$POINT/usr/share/doc"
        mkdir "$POINT/usr/share/doc"
        echo new > "$POINT/usr/share/doc/new"
        "$PEEL" --store "$STORE" commit "$POINT" --tag image
        "$PEEL" --store "$STORE" unmount "$POINT"
        "$PEEL" --store "$STORE" mount localhost/image "$POINT"
        test ! -L "$POINT/bin"
        test "$(cat "$POINT/etc/passwd")" = changed
        test "$(ls "$POINT/usr/share/doc")" = new
        "$PEEL" --store "$STORE" unmount "$POINT"
    "#;
    // What belongs to owners who are not mapped can be seen, and not changed.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", peel.home());
    command.env("PEEL", env!("CARGO_BIN_EXE_peel")).env("STORE", peel.store());
    command.env("REFERENCE", &reference).env("POINT", &point).stdin(Stdio::null());
    let outcome = run_to_end(command, peel.scratch());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let record = peel.json(&["snapshot", "ls", "--json"])[0]["record"].as_str().unwrap().to_owned();
    let note = fs::read_to_string(peel.store().join("snapshots").join(record).join("snapshot.json")).unwrap();
    assert!(note.contains("\"user\""), "{note}");
}

#[test]
fn several_names_of_a_changed_file_of_the_image_become_two_files_as_in_the_mount() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    fs::write(mount.join("usr/bin/tool"), "changed").unwrap();
    assert_eq!(fs::read_to_string(mount.join("usr/bin/alias")).unwrap(), "#!/bin/sh\n");
    peel.succeed(&["commit", text(mount.path()), "--tag", "image"]);
    let committed = peel.mount("localhost/image");
    let committed_tree = Tree::walk(committed.path());
    assert_eq!(committed_tree.read("usr/bin/tool"), b"changed");
    assert_eq!(committed_tree.read("usr/bin/alias"), b"#!/bin/sh\n");
    drop(committed_tree);
    committed.unmount();
    mount.unmount();
}

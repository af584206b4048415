//! Promise: each command says the truth, to people and, with `--json`, to programs; mounting and unmounting leave nothing behind.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::cases::every_case_of_archives;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, is_mount_point, run_to_end, wait_or_kill};
use crate::support::tree::{NodeKind, Tree, assert_same};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

fn small_image(peel: &Peel, form: Form) -> String {
    let layers = [
        vec![TestEntry::file("file", "content"), TestEntry::directory("directory").mode(0o1777)],
        vec![TestEntry::symlink("link", "file"), TestEntry::file("directory/upper", "upper")],
    ];
    Layout::create(peel.scratch().join("layout")).image("test", &layers, form)
}

#[test]
fn ls_and_show_of_a_mounted_image_say_what_it_is() {
    let peel = Peel::new();
    assert_eq!(peel.json(&["ls", "--json"]), json!([]));
    let reference = small_image(&peel, Form::ESTARGZ);
    let _mount = peel.mount(&reference);
    let layout = Layout::open(peel.scratch().join("layout"));
    let (descriptor, manifest) = (layout.descriptor("test"), layout.manifest("test"));
    let sizes: u64 =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();

    let list = peel.json(&["ls", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0]["reference"], reference);
    assert_eq!(list[0]["manifest_digest"], descriptor["digest"]);
    assert_eq!(list[0]["layers"], 2);
    assert_eq!(list[0]["blob_bytes"], sizes);

    let sheet = peel.json(&["show", &reference, "--json"]);
    assert_eq!(sheet["manifest_digest"], descriptor["digest"]);
    assert_eq!(sheet["config_digest"], manifest["config"]["digest"]);
    let digests = |value: &Value| -> Vec<Value> {
        value.as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect()
    };
    assert_eq!(digests(&sheet["layers"]), digests(&manifest["layers"]));

    // For people: the same names.
    assert!(peel.succeed(&["ls"]).contains(&reference));
    assert!(peel.succeed(&["show", &reference]).contains(descriptor["digest"].as_str().unwrap()));
}

/// From another directory, the same words name another layout; and whoever serves the mount works in neither.
#[test]
fn a_layout_mounted_by_a_relative_path_is_the_one_where_that_is_typed() {
    let peel = Peel::new();
    for content in ["one", "two"] {
        let directory = peel.scratch().join(content);
        fs::create_dir(&directory).unwrap();
        let layer = vec![TestEntry::file("file", content)];
        Layout::create(directory.join("layout")).image("test", &[layer], Form::ESTARGZ);
        let point = peel.mount_point();
        let mut command = peel.command(&["mount", "oci:layout:test", point.to_str().unwrap()]);
        command.current_dir(directory);
        let outcome = run_to_end(command, peel.scratch());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), content);
        peel.unmount(&point);
    }
}

#[test]
fn tree_of_a_mounted_image_lists_every_name_as_the_model_does() {
    let peel = Peel::new();
    let layers = every_case_of_archives();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::GZIP);
    let _mount = peel.mount(&reference);
    let output = peel.succeed(&["tree", &reference, "--json"]);
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let listed: BTreeMap<Vec<u8>, &Value> = lines.iter().map(|line| (path_of(line), line)).collect();
    let model = Model::of(&layers).unwrap().tree();
    assert_eq!(listed.keys().collect::<Vec<_>>(), model.nodes.keys().collect::<Vec<_>>());
    for (path, node) in &model.nodes {
        let line = listed[path];
        let expected = match node.kind {
            NodeKind::File(_) => "file",
            NodeKind::Directory => "directory",
            NodeKind::Symlink(_) => "symlink",
            NodeKind::CharacterDevice(..) => "character device",
            NodeKind::BlockDevice(..) => "block device",
            NodeKind::Fifo => "fifo",
            NodeKind::Socket => unreachable!("no image has one"),
        };
        assert_eq!(line["type"], expected, "{line}");
        assert_eq!(line["mode"], format!("{:04o}", node.mode), "{line}");
        assert_eq!((&line["uid"], &line["gid"]), (&json!(node.uid), &json!(node.gid)), "{line}");
        if !node.is_directory() {
            assert_eq!(line["size"], node.size, "{line}");
        }
    }
}

/// The path of a line of `peel tree`, without the slash at its head.
fn path_of(line: &Value) -> Vec<u8> {
    let path = match &line["path_bytes"] {
        Value::Array(bytes) => bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect(),
        _ => line["path"].as_str().unwrap().as_bytes().to_vec(),
    };
    path[1..].to_vec()
}

#[test]
fn tree_of_a_mounted_image_says_where_bytes_are() {
    let peel = Peel::new();
    let reference = small_image(&peel, Form::ESTARGZ);
    let mount = peel.mount(&reference);
    let place = |wanted: &str| {
        let output = peel.succeed(&["tree", &reference, "--json"]);
        let mut lines = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["path"] == wanted).unwrap()["content"].clone()
    };
    assert_eq!(place("/file"), "remote");
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"content");
    assert_eq!(place("/file"), "local");
    assert_eq!(place("/directory/upper"), "remote");
}

#[test]
fn a_mount_in_the_foreground_ends_with_sigint_and_sigterm_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let peel = Peel::new();
        let reference = small_image(&peel, Form::GZIP);
        let path = peel.mount_point();
        let mut command = peel.command(&["mount", "--foreground", "-v", &reference, path.to_str().unwrap()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It says so when the directory is usable.
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        while !is_mount_point(&path) {
            let line = log.next().unwrap_or_else(|| panic!("it ended: {seen:?}")).unwrap();
            seen.push(line);
        }
        assert_eq!(fs::read(path.join("file")).unwrap(), b"content");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let rest = std::thread::spawn(move || log.for_each(drop));
        let status = wait_or_kill(child, "peel mount --foreground");
        rest.join().unwrap();
        assert!(status.success(), "{status:?}");
        assert!(!is_mount_point(&path));
    }
}

#[test]
fn sigterm_as_soon_as_a_mount_appears_unmounts_it_and_leaves_no_dead_one() {
    let peel = Peel::new();
    let reference = small_image(&peel, Form::GZIP);
    for round in 0..20 {
        let path = peel.mount_point();
        let mut command = peel.command(&["mount", "--quiet", &reference, path.to_str().unwrap()]);
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !is_mount_point(&path) && child.try_wait().unwrap().is_none() {}
        // It reaches the serving process if that has not left the group yet; the second one if it has.
        let _ = kill_process_group(Pid::from_child(&child), Signal::TERM);
        child.wait().unwrap();
        for server in peel.servers() {
            let _ = kill_process(Pid::from_raw(server).unwrap(), Signal::TERM);
        }
        peel.wait_for_servers_to_end();
        assert!(!is_mount_point(&path), "round {round}");
    }
}

#[test]
fn mounting_lets_go_of_the_terminal_and_of_pipes() {
    let peel = Peel::new();
    let reference = small_image(&peel, Form::GZIP);
    let path = peel.mount_point();
    let mut command = peel.command(&["mount", &reference, path.to_str().unwrap()]);
    // `output` waits until nobody holds the pipes any more.
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(is_mount_point(&path));
}

#[test]
fn after_unmounting_no_process_and_no_record_of_the_mount_is_left() {
    let peel = Peel::new();
    let reference = small_image(&peel, Form::GZIP);
    let mount = peel.mount(&reference);
    assert_eq!(peel.servers().len(), 1);
    assert_eq!(peel.json(&["status", "--json"]).as_array().unwrap().len(), 1);
    mount.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(peel.json(&["status", "--json"]), json!([]));
}

#[test]
fn a_mount_can_only_be_read() {
    let peel = Peel::new();
    let mount = peel.mount(&small_image(&peel, Form::GZIP));
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    };
    read_only(fs::write(mount.join("file"), b"other"));
    read_only(fs::write(mount.join("new"), b"other"));
    read_only(fs::remove_file(mount.join("file")));
    read_only(fs::create_dir(mount.join("new")));
    read_only(fs::rename(mount.join("file"), mount.join("new")));
    read_only(std::os::unix::fs::symlink("a", mount.join("new")));
    read_only(fs::hard_link(mount.join("file"), mount.join("new")));
}

#[test]
fn statfs_of_a_mount_tells_size_and_inodes_of_the_image() {
    let peel = Peel::new();
    let reference =
        Layout::create(peel.scratch().join("layout")).image("test", &every_case_of_archives(), Form::GZIP);
    let mount = peel.mount(&reference);
    let tree = Tree::walk(mount.path());
    let statistics = rustix::fs::statvfs(mount.path()).unwrap();
    let inodes: std::collections::BTreeSet<u64> = tree.nodes.values().map(|node| node.inode).collect();
    assert_eq!(statistics.f_files, inodes.len() as u64);
    assert_eq!((statistics.f_bfree, statistics.f_bavail, statistics.f_ffree), (0, 0, 0));
    let blocks = tree.content_bytes().div_ceil(statistics.f_frsize);
    let rounding = tree.nodes.len() as u64;
    assert!(
        (blocks..=blocks + rounding).contains(&statistics.f_blocks),
        "{} blocks for {blocks}",
        statistics.f_blocks
    );
}

#[test]
fn inode_numbers_of_a_mount_are_the_same_each_time_and_in_each_store() {
    let numbers = || {
        let peel = Peel::new();
        let layout = Layout::create(peel.scratch().join("layout")).image(
            "test",
            &every_case_of_archives(),
            Form::GZIP,
        );
        let number = |mount: &std::path::Path| -> BTreeMap<Vec<u8>, u64> {
            Tree::walk(mount).nodes.into_iter().map(|(path, node)| (path, node.inode)).collect()
        };
        let mount = peel.mount(&layout);
        let first = number(mount.path());
        mount.unmount();
        assert_eq!(first, number(peel.mount(&layout).path()));
        first
    };
    assert_eq!(numbers(), numbers());
}

#[test]
fn the_platform_of_a_mount_is_chosen_and_attestations_are_not_mounted() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let image = |architecture: &str| {
        let layer = layout.put_layer(&[TestEntry::file(format!("for-{architecture}"), "x")], Form::GZIP);
        layout.put_image(&[layer], architecture)
    };
    let mut attestation = image("unknown");
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    attestation["annotations"]["vnd.docker.reference.type"] = "attestation-manifest".into();
    let (own, other) = (image(this_architecture()), image("s390x"));
    let nested = layout.put_index(&[other, own]);
    let index = layout.put_index(&[attestation, nested]);
    layout.tag("test", &index);
    let reference = layout.reference("test");
    let mount = peel.mount(&reference);
    assert!(mount.join(&format!("for-{}", this_architecture())).exists());
    let other = peel.mount_with(&reference, &["--platform", "linux/s390x"]);
    assert!(other.join("for-s390x").exists());
    let outcome =
        peel.run(&["mount", &reference, peel.mount_point().to_str().unwrap(), "--platform", "linux/mips"]);
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("mips"), "{}", outcome.stderr);
}

#[test]
fn a_program_runs_from_a_mount_and_the_mount_can_be_its_overlays_lower_directory() {
    let peel = Peel::new();
    let layers = every_case_of_archives();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::GZIP);
    let mount = peel.mount(&reference);
    // overlayfs asks more of a lower directory than a walk does, and copies a file up with all its attributes.
    let point = peel.mount_point();
    let base = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let (upper, work) = (base.path().join("upper"), base.path().join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let mut overlay = Command::new("mount");
    overlay.args(["-t", "overlay", "overlay", "-o"]);
    overlay.arg(format!(
        "lowerdir={},upperdir={},workdir={}",
        mount.path().display(),
        upper.display(),
        work.display()
    ));
    let outcome = run_to_end(
        {
            overlay.arg(&point);
            overlay
        },
        peel.scratch(),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    fs::write(point.join("types/file"), "changed").unwrap();
    assert_eq!(fs::read(mount.join("types/file")).unwrap(), b"content");
    fs::remove_dir_all(point.join("change")).unwrap();
    assert!(!point.join("change").exists());
    rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
}

//! Promise: however a table of contents lies, nobody reads bytes that the image does not hold.

use super::*;

/// Whatever the table of contents says, a mount that comes about gives the image's bytes or errors.
#[track_caller]
fn never_wrong_bytes(peel: &Peel, what: &str, encoded: &Encoded, bytes: &[u8]) {
    let name = what.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let reference = image_of_blob(peel, &name, encoded, bytes);
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &reference, point.to_str().unwrap(), "--read-timeout", "5"]);
    if outcome.code != Some(0) {
        assert_eq!(outcome.code, Some(WRONG_CONTENT), "{what}: {outcome:?}");
        let names_layer = outcome.stderr.contains(&encoded.digest) || outcome.stderr.contains("layer 1 ");
        assert!(names_layer, "{what}: {}", outcome.stderr);
        assert!(!is_mount_point(&point), "{what}");
        return;
    }
    let tree = Tree::walk(&point);
    for (path, node) in &tree.nodes {
        if !matches!(node.kind, crate::support::tree::NodeKind::File(_)) || node.size > 64 << 20 {
            continue;
        }
        let Ok(read) = fs::read(point.join(std::str::from_utf8(path).unwrap())) else { continue };
        let known = layer().into_iter().filter_map(|entry| Some(entry.content()?.to_vec()));
        // A shortened file is what the table says, and its digest vouches for: so the pieces must be the image's, or nothing.
        assert!(
            read.is_empty() || known.clone().any(|content| content == read),
            "{what}: {} gives bytes that the image does not hold ({} of them)",
            path.escape_ascii(),
            read.len()
        );
    }
    drop(tree);
    peel.unmount(&point);
}

#[test]
fn mounting_lying_tables_of_contents_never_gives_wrong_bytes() {
    type Edit = Box<dyn Fn(&mut Vec<Value>)>;
    let at = |place: usize, key: &'static str, value: Value| -> Edit {
        Box::new(move |entries| entries[place][key] = value.clone())
    };
    let large = u64::MAX;
    // Entry 0 is `large` (chunks 0 to 11), then `small`, then `directory`.
    let mut edits: Vec<(String, Edit)> = Vec::new();
    for (key, values) in [
        (
            "size",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(1_u64 << 60),
                json!(1.5),
                json!("7"),
                json!((3 << 20) + 1),
            ],
        ),
        (
            "offset",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(100_000_000),
                json!("x"),
            ],
        ),
        ("innerOffset", vec![json!(1), json!(-1), json!(large), json!(i64::MAX)]),
        (
            "chunkSize",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(1_u64 << 40),
                json!((256 << 10) + 1),
            ],
        ),
        (
            "chunkOffset",
            vec![json!(1), json!(-1), json!(large), json!(i64::MAX), json!(3 << 20), json!(256 << 10)],
        ),
        (
            "chunkDigest",
            vec![json!(""), json!("sha256:"), json!(sha256(b"x")), json!(null), json!("md5:abc"), json!(7)],
        ),
        ("digest", vec![json!(sha256(b"x")), json!("")]),
        (
            "name",
            vec![
                json!(""),
                json!("../../etc/passwd"),
                json!("a\u{0}b"),
                json!("/"),
                json!(null),
                json!("x".repeat(256)),
                json!("d/".repeat(5000)),
                json!(".wh."),
            ],
        ),
        (
            "type",
            vec![
                json!("unknown"),
                json!(""),
                json!("dir"),
                json!("symlink"),
                json!("hardlink"),
                json!("chunk"),
                json!("char"),
                json!(null),
                json!(3),
            ],
        ),
        ("mode", vec![json!(-1), json!(large), json!("rwx")]),
        ("uid", vec![json!(-1), json!(large), json!(1_u64 << 32)]),
        (
            "modtime",
            vec![
                json!("yesterday"),
                json!("9999999-01-01T00:00:00Z"),
                json!("2020-13-45T99:99:99Z"),
                json!(""),
            ],
        ),
        (
            "xattrs",
            vec![
                json!({ "user.x": "not base64!" }),
                json!({ "": "AA==" }),
                json!([]),
                json!({ "user.x": 5 }),
            ],
        ),
        ("linkName", vec![json!("../../.."), json!("")]),
    ] {
        for value in values {
            let shown: String = value.to_string().chars().take(20).collect();
            for place in if key.starts_with("chunk") { [0, 5] } else { [0, 12] } {
                edits.push((
                    format!("{key} of entry {place} {shown} {}", edits.len()),
                    at(place, key, value.clone()),
                ));
            }
        }
    }
    edits.push(("chunk missing".into(), Box::new(|entries| drop(entries.remove(3)))));
    edits.push(("chunks swapped".into(), Box::new(|entries| entries.swap(3, 4))));
    edits.push(("chunk twice".into(), Box::new(|entries| entries.insert(3, entries[3].clone()))));
    edits.push(("chunk first".into(), Box::new(|entries| drop(entries.remove(0)))));
    edits.push(("no entries".into(), Box::new(Vec::clear)));
    edits.push((
        "hardlink to itself".into(),
        Box::new(|entries| {
            entries.push(json!({ "name": "self", "type": "hardlink", "linkName": "self" }));
        }),
    ));
    let peel = Peel::new();
    for (what, edit) in &edits {
        let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|mut entries| {
            edit(&mut entries);
            toc_json(entries)
        });
        never_wrong_bytes(&peel, what, &encoded, &bytes);
    }
    for (what, json) in [
        ("no JSON", b"x".to_vec()),
        ("empty", Vec::new()),
        ("half", toc_json(vec![json!({ "name": "x", "type": "reg" })])[..20].to_vec()),
        ("other version", br#"{"version":2,"entries":[]}"#.to_vec()),
        ("entries null", br#"{"version":1,"entries":null}"#.to_vec()),
        ("deep", "[".repeat(1_000_000).into_bytes()),
    ] {
        let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|_| json.clone());
        never_wrong_bytes(&peel, what, &encoded, &bytes);
    }
    peel.json(&["ls", "--json"]);
}

#[test]
fn mounting_a_table_of_contents_that_the_manifest_does_not_vouch_for_is_refused() {
    let peel = Peel::new();
    let (mut encoded, bytes) = encode_to_vec(&layer(), Form::Estargz(SMALL_CHUNKS));
    encoded.annotations = vec![(TOC_DIGEST.to_owned(), sha256(b"another table of contents"))];
    let reference = image_of_blob(&peel, "layout", &encoded, &bytes);
    refused(&peel, &reference, WRONG_CONTENT, &[&encoded.digest]);
    still_works(&peel);
}

#[test]
fn reading_a_mounted_chunk_that_does_not_match_its_digest_is_an_error_and_the_rest_is_right() {
    let peel = Peel::new();
    let (encoded, mut bytes) = encode_to_vec(&layer(), Form::Estargz(SMALL_CHUNKS));
    // In the second chunk, whose bytes do not compress.
    bytes[300 << 10] ^= 1;
    let mut layout = Layout::create(peel.scratch().join("layout"));
    fs::write(layout.blob_path(&encoded.digest), &bytes).unwrap();
    let manifest = layout.put_image(std::slice::from_ref(&encoded), this_architecture());
    layout.tag("test", &manifest);
    let mount = peel.mount(&layout.reference("test"));
    let file = fs::File::open(mount.join("large")).unwrap();
    let mut bytes = vec![0; 1000];
    let error = file.read_exact_at(&mut bytes, 300 << 10).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert!(bytes == noise(3 << 20).to_vec()[1 << 20..][..1000]);
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
}

#[test]
fn mounting_a_table_of_contents_of_a_gibibyte_takes_bounded_memory() {
    let peel = Peel::new();
    // Spaces around an empty table: valid JSON, and vouched for.
    let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|_| {
        let mut json = br#"{"version":1,"entries":[]}"#.to_vec();
        json.resize(1 << 30, b' ');
        json
    });
    let reference = image_of_blob(&peel, "layout", &encoded, &bytes);
    let point = peel.mount_point();
    let outcome = mount_within(&peel, &reference, &point, 300);
    is_an_error(&outcome, WRONG_CONTENT, &reference, &[&encoded.digest]);
    assert!(!is_mount_point(&point));
    still_works(&peel);
}

//! Promise: a manifest or index that cannot be is refused.

use super::*;

#[test]
fn mounting_documents_that_cannot_be_is_refused() {
    let peel = Peel::new();
    let layout = Layout::create(peel.scratch().join("layout"));
    let good = layout.put_layer(&layer(), Form::GZIP);
    let image = layout.put_image(std::slice::from_ref(&good), this_architecture());
    let config: Value = json!({ "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": layout.put(b"{}"), "size": 2 });
    let manifest = manifest_document(&config, std::slice::from_ref(&good));
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut document = manifest.clone();
        edit(&mut document);
        layout.put_json(MANIFEST, &document)
    };
    let raw =
        |bytes: &[u8]| json!({ "mediaType": MANIFEST, "digest": layout.put(bytes), "size": bytes.len() });
    // Some programs hold the layer against the second list.
    let mut two_lists = config_document(std::slice::from_ref(&good), this_architecture());
    two_lists["ROOTFS"] = json!({ "type": "layers", "diff_ids": [sha256(b"another archive")] });
    let two_lists = manifest_document(&layout.put_json(CONFIG, &two_lists), std::slice::from_ref(&good));
    let index = |inner: &Value| layout.put_index(std::slice::from_ref(inner));
    let cases = [
        ("no JSON", raw(b"not JSON")),
        ("empty", raw(b"")),
        ("not an object", raw(b"[]")),
        ("nested without end", raw("[".repeat(200_000).as_bytes())),
        ("a manifest and an index at once", edited(&|document| document["manifests"] = json!([]))),
        ("config with two lists of diff IDs", layout.put_json(MANIFEST, &two_lists)),
        ("config without layers", edited(&|_| {})),
        ("layer of another size", edited(&|document| document["layers"][0]["size"] = 1.into())),
        ("layer of negative size", edited(&|document| document["layers"][0]["size"] = (-1).into())),
        ("layer of the largest size", edited(&|document| document["layers"][0]["size"] = i64::MAX.into())),
        ("digest that is none", edited(&|document| document["layers"][0]["digest"] = "sha256:xyz".into())),
        (
            "digest that is a path",
            edited(&|document| document["layers"][0]["digest"] = "../../etc/passwd".into()),
        ),
        ("no config", edited(&|document| document["config"] = Value::Null)),
        (
            "unknown media type of a layer",
            edited(&|document| document["layers"][0]["mediaType"] = "text/plain".into()),
        ),
        ("index of index of index", index(&index(&index(&image)))),
        (
            "index of nothing",
            layout.put_json(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] })),
        ),
    ];
    for (number, (what, descriptor)) in cases.iter().enumerate() {
        let tag = format!("case-{number}");
        let mut layout = Layout::open(peel.scratch().join("layout"));
        layout.tag(&tag, descriptor);
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &layout.reference(&tag), point.to_str().unwrap()]);
        assert!(matches!(outcome.code, Some(NOT_FOUND | WRONG_CONTENT)), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains(&layout.reference(&tag)), "{what}: {outcome:?}");
        assert!(!is_mount_point(&point), "{what}");
    }
    still_works(&peel);
}

//! OCI layouts on disk answer as registries do.

use std::fs;
use std::path::Path;

use peelfs_registry::{Client, ClientConfiguration, Digest, ErrorKind, ImageReference, resolve};
use serde_json::{Value, json};

use super::{content, streamed};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn put(layout: &Path, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256_of(bytes);
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest
}

fn put_image(layout: &Path, layer: &[u8], name: Option<&str>) -> Value {
    let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": put(layout, bytes).to_string(), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    })
    .to_string();
    let mut entry = descriptor(MANIFEST, manifest.as_bytes());
    if let Some(name) = name {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    }
    entry
}

fn put_index(layout: &Path, entries: &[Value]) {
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

fn client() -> Client {
    Client::new(ClientConfiguration::default()).unwrap()
}

fn reference(layout: &Path, rest: &str) -> ImageReference {
    format!("oci:{}{rest}", layout.display()).parse().unwrap()
}

async fn kind_of(layout: &Path, rest: &str) -> Result<(), (ErrorKind, String)> {
    let reference = reference(layout, rest);
    let repository = client().repository(&reference).unwrap();
    match resolve(&repository, &reference.target(), &"linux/amd64".parse().unwrap()).await {
        Ok(_) => Ok(()),
        Err(error) => Err((error.kind(), error.to_string())),
    }
}

#[tokio::test]
async fn an_image_is_found_by_name_by_digest_or_because_it_is_the_only_one() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path();
    let bytes = content(2_500_000);
    let one = put_image(layout, &bytes, Some("1.0"));
    put_index(layout, std::slice::from_ref(&one));
    let digest = one["digest"].as_str().unwrap().to_owned();
    for rest in ["", ":1.0", &format!("@{digest}")] {
        let reference = reference(layout, rest);
        let repository = client().repository(&reference).unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let resolved = resolve(&repository, &reference.target(), &platform).await.unwrap();
        assert_eq!(resolved.manifest_digest().as_str(), digest);
        let blob = repository.blob_of(&resolved.layers[0]);
        assert_eq!(blob.read(7..2_000_000).await.unwrap(), bytes[7..2_000_000]);
        assert_eq!(streamed(&blob, 0).await.unwrap(), bytes);
        assert_eq!(streamed(&blob, 2_400_000).await.unwrap(), bytes[2_400_000..]);
        assert!(blob.ranges_work());
    }
    put_index(layout, &[one, put_image(layout, b"other", Some("2.0"))]);
    let (kind, message) = kind_of(layout, "").await.unwrap_err();
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(message.contains("1.0, 2.0"), "{message}");
    assert_eq!(kind_of(layout, ":2.0").await, Ok(()));
    assert_eq!(kind_of(layout, ":3.0").await.unwrap_err().0, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_damaged_layout_is_an_error_and_never_other_content() {
    type Damage = fn(&Path, &Path);
    let cases: [(&str, ErrorKind, Damage); 7] = [
        ("no layout", ErrorKind::NotFound, |layout, _| fs::remove_file(layout.join("oci-layout")).unwrap()),
        ("a future version", ErrorKind::BadDocument, |layout, _| {
            fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        }),
        ("an index that is none", ErrorKind::BadDocument, |layout, _| {
            fs::write(layout.join("index.json"), "[]").unwrap();
        }),
        ("a missing manifest", ErrorKind::NotFound, |_, manifest| fs::remove_file(manifest).unwrap()),
        ("a changed manifest", ErrorKind::DigestMismatch, |_, manifest| {
            let size = fs::metadata(manifest).unwrap().len();
            fs::write(manifest, vec![b' '; size as usize]).unwrap();
        }),
        ("a truncated manifest", ErrorKind::DigestMismatch, |_, manifest| fs::write(manifest, "{").unwrap()),
        ("a fifo for a manifest", ErrorKind::Local, |_, manifest| {
            fs::remove_file(manifest).unwrap();
            let status = std::process::Command::new("mkfifo").arg(manifest).status().unwrap();
            assert!(status.success());
        }),
    ];
    for (what, expected, damage) in cases {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path();
        let entry = put_image(layout, b"layer", None);
        put_index(layout, std::slice::from_ref(&entry));
        assert_eq!(kind_of(layout, "").await, Ok(()));
        let hex = entry["digest"].as_str().unwrap().trim_start_matches("sha256:");
        damage(layout, &layout.join("blobs/sha256").join(hex));
        let (kind, message) = kind_of(layout, "").await.unwrap_err();
        assert_eq!(kind, expected, "{what}: {message}");
        assert!(message.contains(&layout.display().to_string()), "{what}: {message}");
    }
}

#[tokio::test]
async fn a_blob_of_another_size_than_its_descriptor_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let digest = put(directory.path(), b"content");
    let repository = client().repository(&reference(directory.path(), "")).unwrap();
    for size in [6, 8] {
        let error = repository.blob(digest.clone(), size).read(0..1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error:?}");
    }
    assert_eq!(repository.blob(digest, 7).read(1..3).await.unwrap(), b"on"[..]);
}

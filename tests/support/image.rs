//! Images on disk: OCI layouts with whatever layers, platforms and nested indexes a test wants.

use super::archive::TestEntry;
use super::blob::{Encoded, Form, encode, sha256};
use super::registry::FakeRegistry;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An OCI image layout under construction; usable at any moment.
pub struct Layout {
    directory: PathBuf,
    tagged: Vec<Value>,
}

impl Layout {
    /// Makes an empty layout; `directory` is created.
    pub fn create(directory: impl Into<PathBuf>) -> Layout {
        let directory = directory.into();
        fs::create_dir_all(directory.join("blobs/sha256")).expect("making a layout");
        fs::write(directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("making a layout");
        let layout = Layout { directory, tagged: Vec::new() };
        layout.write_index();
        layout
    }

    /// A layout that is there already.
    pub fn open(directory: impl Into<PathBuf>) -> Layout {
        let directory = directory.into();
        let bytes = fs::read(directory.join("index.json")).expect("reading a layout");
        let index: Value = serde_json::from_slice(&bytes).expect("an index is JSON");
        Layout { directory, tagged: index["manifests"].as_array().expect("an array").clone() }
    }

    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// `oci:PATH:TAG`.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.directory.display())
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    pub fn put(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("writing a blob");
        digest
    }

    /// Puts a JSON document; returns its descriptor.
    pub fn put_json(&self, media_type: &str, document: &Value) -> Value {
        let bytes = serde_json::to_vec(document).expect("plain JSON");
        json!({ "mediaType": media_type, "digest": self.put(&bytes), "size": bytes.len() })
    }

    /// Streams a layer into the layout.
    pub fn put_layer(&self, entries: &[TestEntry], form: Form) -> Encoded {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).expect("making a blob");
        let encoded = {
            let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
            let encoded = encode(entries, form, &mut out).expect("writing a blob");
            out.flush().expect("writing a blob");
            encoded
        };
        file.persist(self.blob_path(&encoded.digest)).expect("naming a blob");
        encoded
    }

    /// Config and manifest of these layers, lowest first; returns the manifest's descriptor with its platform.
    pub fn put_image(&self, layers: &[Encoded], architecture: &str) -> Value {
        let config = self.put_json(CONFIG, &config_document(layers, architecture));
        let mut manifest = self.put_json(MANIFEST, &manifest_document(&config, layers));
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    }

    pub fn put_index(&self, manifests: &[Value]) -> Value {
        self.put_json(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
    }

    /// Makes `tag` name what the descriptor describes.
    pub fn tag(&mut self, tag: &str, descriptor: &Value) {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"]["org.opencontainers.image.ref.name"] = tag.into();
        self.tagged.push(descriptor);
        self.write_index();
    }

    /// An image of these layers, all in one form, tagged; returns the reference.
    pub fn image(&mut self, tag: &str, layers: &[Vec<TestEntry>], form: Form) -> String {
        let layers: Vec<Encoded> = layers.iter().map(|entries| self.put_layer(entries, form)).collect();
        let manifest = self.put_image(&layers, this_architecture());
        self.tag(tag, &manifest);
        self.reference(tag)
    }

    /// Puts all that a tag names into the registry, under the same tag; returns the reference.
    pub fn serve(&self, registry: &FakeRegistry, repository: &str, tag: &str) -> String {
        let descriptor = self.descriptor(tag);
        self.serve_document(registry, repository, tag, &descriptor);
        registry.reference(repository, tag).to_string()
    }

    fn serve_document(&self, registry: &FakeRegistry, repository: &str, tag: &str, descriptor: &Value) {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let bytes = fs::read(self.blob_path(&text(&descriptor["digest"]))).expect("reading a manifest");
        let document: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
        registry.put_manifest(repository, tag, &text(&descriptor["mediaType"]), &bytes);
        for (number, inner) in document["manifests"].as_array().into_iter().flatten().enumerate() {
            self.serve_document(registry, repository, &format!("{tag}.{number}"), inner);
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(document.get("config")) {
            registry.put_blob_file(&self.blob_path(&text(&blob["digest"])));
        }
    }

    /// Whether `index.json` knows a tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tagged
            .iter()
            .any(|descriptor| descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag)
    }

    /// What `index.json` says of a tag.
    pub fn descriptor(&self, tag: &str) -> Value {
        let is_tagged =
            |descriptor: &&Value| descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag;
        self.tagged.iter().find(is_tagged).unwrap_or_else(|| panic!("no tag {tag}")).clone()
    }

    /// The manifest of a tag that names an image of one platform, or an index of one.
    pub fn manifest(&self, tag: &str) -> Value {
        let mut descriptor = self.descriptor(tag);
        loop {
            let digest = descriptor["digest"].as_str().expect("a string").to_owned();
            let bytes = fs::read(self.blob_path(&digest)).expect("reading a manifest");
            let document: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
            match document["manifests"].get(0) {
                Some(inner) => descriptor = inner.clone(),
                None => return document,
            }
        }
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.tagged });
        fs::write(self.directory.join("index.json"), serde_json::to_vec(&index).expect("plain JSON"))
            .expect("writing index.json");
    }
}

/// A config with no more than the specification requires.
pub fn config_document(layers: &[Encoded], architecture: &str) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

pub fn manifest_document(config: &Value, layers: &[Encoded]) -> Value {
    let layers: Vec<Value> = layers.iter().map(layer_descriptor).collect();
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers })
}

pub fn layer_descriptor(layer: &Encoded) -> Value {
    let mut descriptor = json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size });
    for (name, value) in &layer.annotations {
        descriptor["annotations"][name] = value.as_str().into();
    }
    descriptor
}

/// This machine's architecture, as images name it.
pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

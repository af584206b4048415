//! The names in `content/index.json`: which manifest an image reference stands for, so that other tools can read the layout
//! (`skopeo inspect --raw oci:STORE/content:NAME`).
//!
//! OCI image specification, image-layout.md, "index.json file", and annotations.md. What others wrote into the file is kept.

use std::io;

use serde_json::{Map, Value, json};

use super::content::Content;
use super::digest::DigestName;
use super::error::{Context, StoreError};
use super::lock::FileLock;

pub(super) const INDEX: &str = "index.json";
pub(super) const EMPTY: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
const NAME: &str = "org.opencontainers.image.ref.name";

/// A manifest or an image index of the layout, and the name it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedDescriptor<'a> {
    /// Media type of the blob.
    pub media_type: &'a str,
    /// Digest of the blob.
    pub digest: &'a str,
    /// Length of the blob in bytes.
    pub size: u64,
    /// The name: an image reference.
    pub name: &'a str,
}

impl Content {
    /// Gives a blob a name. A blob that had this name before loses it.
    pub fn add_to_index(&self, descriptor: &NamedDescriptor<'_>) -> Result<(), StoreError> {
        DigestName::parse(descriptor.digest)?;
        self.change_index(|manifests| {
            let entry = json!({
                "mediaType": descriptor.media_type,
                "digest": descriptor.digest,
                "size": descriptor.size,
                "annotations": { NAME: descriptor.name },
            });
            let mut named = manifests.iter().filter(|manifest| name_of(manifest) == Some(descriptor.name));
            if named.next() == Some(&entry) && named.next().is_none() {
                return false;
            }
            manifests.retain(|manifest| name_of(manifest) != Some(descriptor.name));
            manifests.push(entry);
            true
        })
    }

    /// Takes a name away; the blob stays. No error if there is no such name.
    pub fn remove_from_index(&self, name: &str) -> Result<(), StoreError> {
        self.change_index(|manifests| {
            let before = manifests.len();
            manifests.retain(|manifest| name_of(manifest) != Some(name));
            manifests.len() != before
        })
    }

    /// Changes the list under the lock and writes it if `change` says so.
    fn change_index(&self, change: impl FnOnce(&mut Vec<Value>) -> bool) -> Result<(), StoreError> {
        let _lock = FileLock::acquire(&self.index_lock)?;
        let path = self.directory.join(INDEX);
        let mut index = match std::fs::read(&path) {
            Ok(bytes) => match parse(&bytes) {
                Some(index) => index,
                None => {
                    let aside =
                        self.directory.join(format!("{INDEX}.damaged-{}", super::seconds_since_1970()));
                    tracing::warn!(path = %path.display(), aside = %aside.display(), "the list of names is damaged: set aside, begun anew");
                    self.move_aside(&path, &aside)?;
                    empty()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => empty(),
            Err(error) => return Err(StoreError::from_io("read", path, error)),
        };
        // `parse` and `empty` see to it that it is a list.
        if let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut)
            && change(manifests)
        {
            let bytes = serde_json::to_vec(&index).map_err(io::Error::from).context("write", &path)?;
            self.write_file(&path, &bytes)?;
        }
        Ok(())
    }
}

fn name_of(manifest: &Value) -> Option<&str> {
    manifest.get("annotations")?.get(NAME)?.as_str()
}

fn empty() -> Map<String, Value> {
    parse(EMPTY).unwrap_or_default()
}

/// The document, if it is an object with a list of manifests.
fn parse(bytes: &[u8]) -> Option<Map<String, Value>> {
    let index: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    index.get("manifests")?.is_array().then_some(index)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    const DIGESTS: [&str; 2] = [
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    ];

    fn descriptor(digest: &'static str, name: &'static str) -> NamedDescriptor<'static> {
        NamedDescriptor { media_type: "application/vnd.oci.image.manifest.v1+json", digest, size: 7, name }
    }

    fn names(store: &Store) -> Vec<(String, String)> {
        let bytes = std::fs::read(store.path().join("content/index.json")).unwrap();
        let index: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(index["schemaVersion"], 2);
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (text(&m["annotations"][NAME]), text(&m["digest"])))
            .collect()
    }

    #[test]
    fn a_name_stands_for_one_blob() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let content = store.content();
        content.add_to_index(&descriptor(DIGESTS[0], "a")).unwrap();
        content.add_to_index(&descriptor(DIGESTS[0], "b")).unwrap();
        content.add_to_index(&descriptor(DIGESTS[1], "a")).unwrap();
        let pair = |name: &str, digest: &str| (name.to_owned(), digest.to_owned());
        assert_eq!(names(&store), [pair("b", DIGESTS[0]), pair("a", DIGESTS[1])]);
        content.remove_from_index("b").unwrap();
        content.remove_from_index("c").unwrap();
        assert_eq!(names(&store), [pair("a", DIGESTS[1])]);
        assert!(content.add_to_index(&descriptor("sha256:x", "a")).is_err());
    }

    #[test]
    fn what_others_wrote_stays_and_a_damaged_list_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let path = directory.path().join("content/index.json");
        std::fs::write(&path, br#"{"schemaVersion":2,"manifests":[{"digest":"x"}],"annotations":{"k":"v"}}"#)
            .unwrap();
        store.content().add_to_index(&descriptor(DIGESTS[0], "a")).unwrap();
        assert_eq!(names(&store).len(), 2);
        assert!(std::fs::read_to_string(&path).unwrap().contains(r#""k":"v""#));

        for damaged in ["", "[]", "{", r#"{"manifests":{}}"#] {
            std::fs::write(&path, damaged).unwrap();
            store.content().add_to_index(&descriptor(DIGESTS[0], "a")).unwrap();
            assert_eq!(names(&store).len(), 1, "{damaged:?}");
        }
        let aside = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().contains("damaged");
        assert!(std::fs::read_dir(path.parent().unwrap()).unwrap().any(|entry| aside(&entry.unwrap())));
    }

    #[test]
    fn names_added_by_many_at_once_are_all_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d", "e", "f"] {
                let store = &store;
                scope.spawn(move || store.content().add_to_index(&descriptor(DIGESTS[0], name)).unwrap());
            }
        });
        assert_eq!(names(&store).len(), 6);
    }

    #[test]
    fn another_tool_finds_a_blob_by_its_name() {
        use sha2::Digest;
        let manifest =
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}"#;
        let hex: String = sha2::Sha256::digest(manifest).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.content().put(&digest, manifest).unwrap();
        let at_digest = format!("127.0.0.1:5000/name@{}", DIGESTS[0]);
        for name in ["docker.io/library/python:3.12", "localhost:5000/some/name:tag", &at_digest] {
            let descriptor =
                NamedDescriptor { digest: &digest, size: manifest.len() as u64, name, ..descriptor("", "") };
            store.content().add_to_index(&descriptor).unwrap();
            let source = format!("oci:{}/content:{name}", directory.path().display());
            match std::process::Command::new("skopeo").args(["inspect", "--raw", &source]).output() {
                Ok(output) => {
                    assert_eq!(output.stdout, manifest, "{name}: {}", String::from_utf8_lossy(&output.stderr))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return, // Not installed.
                Err(error) => panic!("skopeo: {error}"),
            }
        }
    }
}

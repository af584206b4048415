//! Manifests and image indexes: bytes and a media type become a [`Document`], or are refused.
//!
//! Two programs that read one document differently can be shown two different images under one digest. So a document is
//! accepted only if there is exactly one way to read it (OCI image specification, "Image Manifest" and "Image Index"):
//!
//! - it has `manifests`, or it has `config` and `layers`, never both;
//! - its `mediaType` and the `Content-Type` it came with, if given, say the same;
//! - no key occurs twice, nor in another case (some readers ignore case), at the top or in descriptors.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::digest::{Digest, DigestError};
use crate::odd_keys::Shape;

/// Largest manifest or index, in bytes; registries and other clients use the same bound.
pub const MAXIMUM_DOCUMENT_SIZE: u64 = 4 * 1024 * 1024;
/// Most layers in a manifest, and most entries in an index.
pub const MAXIMUM_DESCRIPTORS: usize = 1024;
/// Most annotations on one descriptor.
pub const MAXIMUM_ANNOTATIONS: usize = 1024;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The `Accept` header of a manifest request: all that [`Document::parse`] takes.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Whether `media_type` is that of an image index or of Docker's manifest list.
pub fn is_index_media_type(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether `media_type` is that of an image manifest, of OCI or Docker schema 2.
pub fn is_manifest_media_type(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// A document that can be read in one way only.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An image index, or Docker's manifest list.
    Index(Box<ImageIndex>),
    /// An image manifest, of OCI or Docker schema 2.
    Manifest(Box<ImageManifest>),
}

impl Document {
    /// Reads `bytes`; `content_type` is what the registry or the descriptor says they are, if it says so.
    ///
    /// Returns the document and its media type.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<(Document, String), DocumentError> {
        if bytes.len() as u64 > MAXIMUM_DOCUMENT_SIZE {
            return Err(DocumentError::TooLarge);
        }
        let outline: Outline = serde_json::from_slice(bytes).map_err(DocumentError::NotJson)?;
        let content_type = content_type.map(essence).filter(|content_type| !is_generic(content_type));
        for media_type in [content_type.as_deref(), outline.media_type.as_deref()].into_iter().flatten() {
            if media_type.contains("docker.distribution.manifest.v1") {
                return Err(DocumentError::SchemaOne);
            }
        }
        if outline.schema_version == Some(1) {
            return Err(DocumentError::SchemaOne);
        }
        if let Some(key) = outline.odd_key {
            return Err(DocumentError::OddKey { key });
        }
        if outline.schema_version != Some(2) {
            return Err(DocumentError::SchemaVersion);
        }
        let is_index = match (outline.manifests, outline.config || outline.layers) {
            (true, true) => return Err(DocumentError::Ambiguous),
            (false, false) => return Err(DocumentError::Neither),
            (is_index, _) => is_index,
        };
        let media_type = match (content_type, outline.media_type) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(DocumentError::Contradiction { outer, inner });
            }
            (_, Some(media_type)) | (Some(media_type), None) => media_type,
            (None, None) => if is_index { OCI_INDEX } else { OCI_MANIFEST }.to_owned(),
        };
        let fits =
            if is_index { is_index_media_type(&media_type) } else { is_manifest_media_type(&media_type) };
        if !fits {
            return Err(DocumentError::MediaType { media_type, is_index });
        }
        let document = if is_index {
            Document::Index(serde_json::from_slice(bytes).map_err(DocumentError::Malformed)?)
        } else {
            Document::Manifest(serde_json::from_slice(bytes).map_err(DocumentError::Malformed)?)
        };
        document.check_bounds()?;
        Ok((document, media_type))
    }

    fn check_bounds(&self) -> Result<(), DocumentError> {
        let (descriptors, config) = match self {
            Document::Index(index) => (index.manifests(), None),
            Document::Manifest(manifest) => (manifest.layers(), Some(manifest.config())),
        };
        if descriptors.len() > MAXIMUM_DESCRIPTORS {
            return Err(DocumentError::TooMany { what: "descriptors", found: descriptors.len() });
        }
        for descriptor in descriptors.iter().chain(config) {
            let annotations = descriptor.annotations().as_ref().map_or(0, |annotations| annotations.len());
            if annotations > MAXIMUM_ANNOTATIONS {
                return Err(DocumentError::TooMany { what: "annotations", found: annotations });
            }
            // The specification makes the size an int64.
            if i64::try_from(descriptor.size()).is_err() {
                return Err(DocumentError::Size { size: descriptor.size() });
            }
        }
        Ok(())
    }
}

/// Why bytes are no manifest or index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// More than [`MAXIMUM_DOCUMENT_SIZE`].
    #[error("it is larger than {MAXIMUM_DOCUMENT_SIZE} bytes")]
    TooLarge,
    /// No JSON object.
    #[error("it is not a JSON object: {0}")]
    NotJson(#[source] serde_json::Error),
    /// The right kind of document, with a field missing, of the wrong type or given twice.
    #[error("it is malformed: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Docker's schema 1, which carries no verifiable layers.
    #[error(
        "it is a Docker schema 1 manifest, which is not supported; push the image again with a current tool"
    )]
    SchemaOne,
    /// `schemaVersion` is missing or unknown.
    #[error("its schemaVersion is not 2")]
    SchemaVersion,
    /// A key that some readers would take for another one.
    #[error("it has the key {key:?}, which some programs read as another field")]
    OddKey {
        /// The key.
        key: String,
    },
    /// Both index and manifest.
    #[error("it could be read both as an image index and as an image manifest")]
    Ambiguous,
    /// Neither index nor manifest.
    #[error("it is neither an image index (manifests) nor an image manifest (config, layers)")]
    Neither,
    /// `Content-Type` or descriptor, and `mediaType`, differ.
    #[error("it was announced as {outer:?} but calls itself {inner:?}")]
    Contradiction {
        /// What the registry or the descriptor said.
        outer: String,
        /// What the document says.
        inner: String,
    },
    /// A media type that does not go with the fields.
    #[error("its media type is {media_type:?} but its fields are those of an image {}", if *is_index { "index" } else { "manifest" })]
    MediaType {
        /// The media type.
        media_type: String,
        /// What the fields make of it.
        is_index: bool,
    },
    /// More descriptors or annotations than bounded.
    #[error("it has {found} {what}")]
    TooMany {
        /// Of which.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// A size beyond an int64.
    #[error("it has a descriptor of {size} bytes")]
    Size {
        /// The size.
        size: u64,
    },
    /// A digest that is malformed or of an unknown algorithm.
    #[error("it has a descriptor whose digest is unusable: {0}")]
    Digest(#[source] DigestError),
}

/// A blob as a manifest describes it (OCI image specification, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobDescriptor {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes, at most `i64::MAX`.
    pub size: u64,
    /// Media type, as written.
    pub media_type: String,
    /// Annotations; empty if there are none.
    pub annotations: BTreeMap<String, String>,
    /// Where the blob is if the registry lacks it: followed only if the user allows it.
    pub urls: Vec<String>,
}

impl TryFrom<&Descriptor> for BlobDescriptor {
    type Error = DocumentError;

    fn try_from(descriptor: &Descriptor) -> Result<Self, Self::Error> {
        Ok(BlobDescriptor {
            digest: descriptor.digest().try_into().map_err(DocumentError::Digest)?,
            size: descriptor.size(),
            media_type: descriptor.media_type().to_string(),
            annotations: descriptor
                .annotations()
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            urls: descriptor.urls().iter().flatten().cloned().collect(),
        })
    }
}

/// A media type without its parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Media types that servers send when they know nothing better.
fn is_generic(media_type: &str) -> bool {
    matches!(media_type, "" | "application/json" | "application/octet-stream" | "text/plain")
}

/// Of manifests, indexes, descriptors and platforms (OCI image specification), none of which has a field that differs in its case from one
/// of another.
const FIELDS: [&str; 18] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "digest",
    "size",
    "urls",
    "data",
    "platform",
    "architecture",
    "os",
    "os.version",
    "os.features",
    "variant",
];
static PLATFORM: Shape = Shape { fields: &FIELDS, inside: &[] };
static DESCRIPTOR: Shape = Shape { fields: &FIELDS, inside: &[("platform", &PLATFORM)] };

/// The top level of a document, and what is odd below it, read without its content.
#[derive(Default)]
struct Outline {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: bool,
    config: bool,
    layers: bool,
    odd_key: Option<String>,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OutlineVisitor;

        impl<'de> Visitor<'de> for OutlineVisitor {
            type Value = Outline;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
                let mut outline = Outline::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "schemaVersion" => outline.schema_version = Some(map.next_value()?),
                        "mediaType" => outline.media_type = Some(map.next_value()?),
                        "config" | "layers" | "manifests" | "subject" => {
                            match key.as_str() {
                                "manifests" => outline.manifests = true,
                                "config" => outline.config = true,
                                "layers" => outline.layers = true,
                                _ => {}
                            }
                            outline.odd_key = outline.odd_key.or(map.next_value_seed(&DESCRIPTOR)?);
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            outline.odd_key = outline.odd_key.or(DESCRIPTOR.is_odd(&key).then_some(key));
                        }
                    }
                }
                Ok(outline)
            }
        }

        deserializer.deserialize_map(OutlineVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":2}"#;

    fn manifest(rest: &str) -> String {
        format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[]{rest}}}"#)
    }

    #[test]
    fn the_four_kinds_of_document_are_read() {
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
            let text = manifest(&format!(r#","mediaType":"{media_type}""#));
            let (document, found) = Document::parse(text.as_bytes(), Some(media_type)).unwrap();
            assert!(matches!(document, Document::Manifest(_)));
            assert_eq!(found, media_type);
        }
        for media_type in [OCI_INDEX, DOCKER_LIST] {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[],"mediaType":"{media_type}"}}"#);
            let (document, found) = Document::parse(text.as_bytes(), Some(media_type)).unwrap();
            assert!(matches!(document, Document::Index(_)));
            assert_eq!(found, media_type);
        }
    }

    #[test]
    fn the_media_type_may_stand_in_one_place_or_none() {
        for (inner, outer, expected) in [
            ("", None, OCI_MANIFEST),
            ("", Some("application/octet-stream"), OCI_MANIFEST),
            ("", Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
            (
                "",
                Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
                DOCKER_MANIFEST,
            ),
            (DOCKER_MANIFEST, None, DOCKER_MANIFEST),
            (DOCKER_MANIFEST, Some("application/json"), DOCKER_MANIFEST),
        ] {
            let rest = if inner.is_empty() { String::new() } else { format!(r#","mediaType":"{inner}""#) };
            let (_, found) = Document::parse(manifest(&rest).as_bytes(), outer).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        type Check = fn(&DocumentError) -> bool;
        let layers = |descriptor: &str| format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[{descriptor}]}}"#);
        let odd: Check = |error| matches!(error, DocumentError::OddKey { .. });
        let cases: [(String, Option<&str>, Check); 21] = [
            (manifest(r#","manifests":[]"#), None, |e| matches!(e, DocumentError::Ambiguous)),
            // Unicode folds these letters to an s and to a k.
            (manifest(r#","layerſ":[]"#), None, odd),
            (manifest(r#","Subject":{}"#), None, odd),
            (manifest(r#","subject":{"Digest":"x"}"#), None, odd),
            (layers(r#"{"digest":"a","Digest":"b","size":1,"mediaType":"x"}"#), None, odd),
            (layers(r#"{"dige\u017ft":"b"}"#), None, odd),
            (r#"{"schemaVersion":2,"manifests":[{"platform":{"OS":"linux"}}]}"#.to_owned(), None, odd),
            (manifest(r#","Manifests":[]"#), None, odd),
            (manifest(r#","LAYERS":[]"#), None, odd),
            (manifest(r#","layers":[]"#), None, |e| matches!(e, DocumentError::Malformed(_))),
            (manifest(""), Some(OCI_INDEX), |e| matches!(e, DocumentError::MediaType { .. })),
            (manifest(""), Some("text/html"), |e| matches!(e, DocumentError::MediaType { .. })),
            (manifest(&format!(r#","mediaType":"{OCI_INDEX}""#)), None, |e| {
                matches!(e, DocumentError::MediaType { .. })
            }),
            (manifest(&format!(r#","mediaType":"{OCI_MANIFEST}""#)), Some(DOCKER_MANIFEST), |e| {
                matches!(e, DocumentError::Contradiction { .. })
            }),
            (r#"{"schemaVersion":2}"#.to_owned(), None, |e| matches!(e, DocumentError::Neither)),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None, |e| {
                matches!(e, DocumentError::SchemaOne)
            }),
            (manifest(""), Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), |e| {
                matches!(e, DocumentError::SchemaOne)
            }),
            (r#"{"manifests":[]}"#.to_owned(), None, |e| matches!(e, DocumentError::SchemaVersion)),
            ("[]".to_owned(), None, |e| matches!(e, DocumentError::NotJson(_))),
            ("[".repeat(100_000), None, |e| matches!(e, DocumentError::NotJson(_))),
            (r#"{"schemaVersion":2,"layers":[]}"#.to_owned(), None, |e| {
                matches!(e, DocumentError::Malformed(_))
            }),
        ];
        for (text, content_type, check) in &cases {
            let shown: String = text.chars().take(80).collect();
            let error = Document::parse(text.as_bytes(), *content_type).expect_err(&shown);
            assert!(check(&error), "{shown} with {content_type:?}: {error}");
        }
    }

    #[test]
    fn annotations_and_what_is_unknown_may_have_any_keys() {
        let annotations = r#""annotations":{"Digest":"x","LAYERS":"y","digest":"z"}"#;
        let index = format!(
            r#"{{"schemaVersion":2,{annotations},"manifests":[{{"mediaType":"x","digest":"sha256:{}","size":1,{annotations}}}]}}"#,
            "a".repeat(64)
        );
        let manifest = manifest(&format!(r#",{annotations},"x":[{{"SIZE":1}}]"#));
        assert!(Document::parse(manifest.as_bytes(), None).is_ok());
        assert!(Document::parse(index.as_bytes(), None).is_ok());
    }

    #[test]
    fn counts_and_sizes_are_bounded() {
        let layer = |size: u64| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{}","size":{size}}}"#,
                "a".repeat(64)
            )
        };
        let with_layers =
            |layers: String| format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[{layers}]}}"#).into_bytes();
        let most = vec![layer(1); MAXIMUM_DESCRIPTORS].join(",");
        assert!(Document::parse(&with_layers(most.clone()), None).is_ok());
        let too_many = Document::parse(&with_layers(most + "," + &layer(1)), None);
        assert!(matches!(too_many, Err(DocumentError::TooMany { .. })));
        assert!(Document::parse(&with_layers(layer(i64::MAX as u64)), None).is_ok());
        let too_big = Document::parse(&with_layers(layer(i64::MAX as u64 + 1)), None);
        assert!(matches!(too_big, Err(DocumentError::Size { .. })));
        let spaces = vec![b' '; MAXIMUM_DOCUMENT_SIZE as usize + 1];
        assert!(matches!(Document::parse(&spaces, None), Err(DocumentError::TooLarge)));
    }
}

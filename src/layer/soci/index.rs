//! The SOCI index: a manifest that names the zTOC of each layer of an image that has one (soci-snapshotter, `docs/index.md`).
//!
//! ```text
//! v1    SOCI index ──subject──▶ image manifest                               found through the referrers of the image
//! v2    image manifest ──[`INDEX_DIGEST_ANNOTATION`]──▶ SOCI index             named by the image itself
//!       image index ──▶ image manifest; SOCI index with [`IMAGE_MANIFEST_DIGEST_ANNOTATION`]
//! ```
//!
//! It is an OCI image manifest whose config is `{}` with a media type that tells the version, and whose layers are the zTOCs.

use std::collections::BTreeMap;

use oci_spec::image::Descriptor;
use peelfs_registry::{BlobDescriptor, Digest, Document};
use serde::Serialize;

use super::SociError;
use super::ztoc::ZTOC_MEDIA_TYPE;

/// Annotation of an image manifest: digest of its SOCI index (v2), as `sha256:…`.
pub const INDEX_DIGEST_ANNOTATION: &str = "com.amazon.soci.index-digest";
/// Annotation of a SOCI index's descriptor in an image index: the image manifest that it belongs to (v2).
pub const IMAGE_MANIFEST_DIGEST_ANNOTATION: &str = "com.amazon.soci.image-manifest-digest";
/// The config of a SOCI index.
pub const CONFIG: &[u8] = b"{}";

const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Version of a SOCI index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexVersion {
    /// Refers to its image.
    V1,
    /// Is named by its image.
    V2,
}

impl IndexVersion {
    /// Media type of the config, which is the artifact type of the index, too.
    pub fn artifact_type(self) -> &'static str {
        match self {
            IndexVersion::V1 => "application/vnd.amazon.soci.index.v1+json",
            IndexVersion::V2 => "application/vnd.amazon.soci.index.v2+json",
        }
    }
}

/// What a SOCI index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SociIndex {
    /// Its version.
    pub version: IndexVersion,
    /// The image manifest that it refers to; v1 only.
    pub subject: Option<BlobDescriptor>,
    /// The zTOCs, in the order of the image's layers as a rule. Layers that are small have none.
    pub ztocs: Vec<ZtocDescriptor>,
    /// What wrote it; empty if it does not say.
    pub build_tool: String,
}

/// Which zTOC a layer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZtocDescriptor {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Digest of the layer's blob.
    pub layer_digest: Digest,
    /// Media type of the layer, as the image manifest has it.
    pub layer_media_type: String,
    /// Decoded bytes of a span, if it says.
    pub span_size: Option<u64>,
}

impl SociIndex {
    /// Reads the index manifest in these bytes, which have that digest. What is no zTOC is passed over: lists of files to prefetch.
    ///
    /// # Errors
    /// [`SociError::Index`] if it is no SOCI index.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<SociIndex, SociError> {
        let unusable = |reason: String| SociError::Index { digest: digest.clone(), reason };
        let manifest = match Document::parse(bytes, None) {
            Ok((Document::Manifest(manifest), _)) => *manifest,
            Ok((Document::Index(_), _)) => return Err(unusable("it is an image index".to_owned())),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let config_type = manifest.config().media_type().to_string();
        let version = [IndexVersion::V1, IndexVersion::V2]
            .into_iter()
            .find(|version| version.artifact_type() == config_type)
            .ok_or_else(|| unusable(format!("its config has the type {config_type:?}")))?;
        let described = |descriptor: &Descriptor| {
            BlobDescriptor::try_from(descriptor).map_err(|error| unusable(error.to_string()))
        };
        let mut ztocs = Vec::new();
        for layer in manifest.layers() {
            let descriptor = described(layer)?;
            let Some(layer_digest) = descriptor.annotations.get(LAYER_DIGEST) else { continue };
            if descriptor.media_type != ZTOC_MEDIA_TYPE {
                continue;
            }
            let layer_digest = layer_digest
                .parse()
                .map_err(|_| unusable(format!("{LAYER_DIGEST} {layer_digest:?} is not a digest")))?;
            let annotation = |name| descriptor.annotations.get(name);
            ztocs.push(ZtocDescriptor {
                layer_digest,
                layer_media_type: annotation(LAYER_MEDIA_TYPE).cloned().unwrap_or_default(),
                span_size: annotation(SPAN_SIZE).and_then(|size| size.parse().ok()),
                digest: descriptor.digest,
                size: descriptor.size,
            });
        }
        let annotations = manifest.annotations().iter().flatten();
        let build_tool =
            annotations.filter(|(key, _)| *key == BUILD_TOOL).map(|(_, value)| value.clone()).next();
        Ok(SociIndex {
            version,
            subject: manifest.subject().as_ref().map(described).transpose()?,
            ztocs,
            build_tool: build_tool.unwrap_or_default(),
        })
    }

    /// The zTOC of the layer with that digest. If there are several, the first counts, as for the reference.
    pub fn ztoc_of(&self, layer: &Digest) -> Option<&ZtocDescriptor> {
        self.ztocs.iter().find(|ztoc| ztoc.layer_digest == *layer)
    }

    /// The manifest, the same bytes for the same values. [`CONFIG`] is its config.
    pub fn write(&self) -> Vec<u8> {
        let config = Digest::sha256_of(CONFIG);
        let manifest = WrittenManifest {
            schema_version: 2,
            media_type: MANIFEST,
            config: WrittenDescriptor {
                media_type: self.version.artifact_type(),
                digest: config.as_str(),
                size: CONFIG.len() as u64,
                annotations: BTreeMap::new(),
            },
            layers: self.ztocs.iter().map(WrittenDescriptor::of).collect(),
            subject: self.subject.as_ref().map(|subject| WrittenDescriptor {
                media_type: &subject.media_type,
                digest: subject.digest.as_str(),
                size: subject.size,
                annotations: BTreeMap::new(),
            }),
            annotations: match &self.build_tool[..] {
                "" => BTreeMap::new(),
                tool => BTreeMap::from([(BUILD_TOOL, tool.to_owned())]),
            },
        };
        // Numbers, text and maps of text: nothing that JSON could not hold, and no output that could fail.
        serde_json::to_vec(&manifest).unwrap_or_default()
    }
}

/// In the order in which the reference writes its fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: WrittenDescriptor<'a>,
    layers: Vec<WrittenDescriptor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<WrittenDescriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenDescriptor<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, String>,
}

impl<'a> WrittenDescriptor<'a> {
    fn of(ztoc: &'a ZtocDescriptor) -> WrittenDescriptor<'a> {
        let mut annotations = BTreeMap::from([
            (LAYER_DIGEST, ztoc.layer_digest.to_string()),
            (LAYER_MEDIA_TYPE, ztoc.layer_media_type.clone()),
        ]);
        annotations.extend(ztoc.span_size.map(|size| (SPAN_SIZE, size.to_string())));
        let (digest, size) = (ztoc.digest.as_str(), ztoc.size);
        WrittenDescriptor { media_type: ZTOC_MEDIA_TYPE, digest, size, annotations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(version: IndexVersion) -> SociIndex {
        let digest = |text: &str| Digest::sha256_of(text.as_bytes());
        SociIndex {
            version,
            subject: (version == IndexVersion::V1).then(|| BlobDescriptor {
                digest: digest("manifest"),
                size: 1234,
                media_type: MANIFEST.to_owned(),
                annotations: BTreeMap::new(),
                urls: Vec::new(),
            }),
            ztocs: vec![ZtocDescriptor {
                digest: digest("ztoc"),
                size: 77,
                layer_digest: digest("layer"),
                layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
                span_size: Some(4 << 20),
            }],
            build_tool: "peel".to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for version in [IndexVersion::V1, IndexVersion::V2] {
            let index = index(version);
            let bytes = index.write();
            let digest = Digest::sha256_of(&bytes);
            assert_eq!(SociIndex::parse(&digest, &bytes).unwrap(), index);
            assert_eq!(index.ztoc_of(&Digest::sha256_of(b"layer")), Some(&index.ztocs[0]));
            assert_eq!(index.ztoc_of(&Digest::sha256_of(b"other")), None);
        }
    }

    /// By the reference's documentation of the format, field by field.
    #[test]
    fn the_manifest_is_the_reference_s() {
        let sha256 = |text: &str| Digest::sha256_of(text.as_bytes()).to_string();
        let expected = format!(
            concat!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                r#""config":{{"mediaType":"application/vnd.amazon.soci.index.v2+json","digest":"#,
                r#""sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}},"#,
                r#""layers":[{{"mediaType":"application/octet-stream","digest":"{}","size":77,"annotations":{{"#,
                r#""com.amazon.soci.image-layer-digest":"{}","#,
                r#""com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","#,
                r#""com.amazon.soci.span-size":"4194304"}}}}],"#,
                r#""annotations":{{"com.amazon.soci.build-tool-identifier":"peel"}}}}"#,
            ),
            sha256("ztoc"),
            sha256("layer"),
        );
        assert_eq!(String::from_utf8(index(IndexVersion::V2).write()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_ztoc_is_passed_over_and_what_is_no_index_refused() {
        let written = String::from_utf8(index(IndexVersion::V2).write()).unwrap();
        let parse = |text: &str| SociIndex::parse(&Digest::sha256_of(b""), text.as_bytes());
        for (from, to) in [
            ("application/octet-stream", "application/vnd.amazon.soci.prefetch.v1+json"),
            ("com.amazon.soci.image-layer-digest", "org.example.other"),
        ] {
            assert_eq!(parse(&written.replace(from, to)).unwrap().ztocs, [], "{to}");
        }
        for (from, to) in [
            ("soci.index.v2+json", "soci.index.v3+json"),
            ("\"layers\"", "\"manifests\""),
            (&Digest::sha256_of(b"layer").to_string()[..], "sha256:1"),
            ("\"size\":77", "\"size\":-1"),
        ] {
            assert!(matches!(parse(&written.replace(from, to)), Err(SociError::Index { .. })), "{to}");
        }
    }
}

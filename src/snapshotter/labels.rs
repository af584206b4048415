//! What labels say of the layer that a snapshot is prepared for. Who pulls an image puts them on its layers' descriptors; containerd
//! passes those on that begin with `containerd.io/snapshot/`.
//!
//! | who | reference | layer | manifest |
//! | --- | --- | --- | --- |
//! | `ctr-remote`, nerdctl | `…/remote/stargz.reference` | `…/remote/stargz.digest` | – |
//! | BuildKit | the same, behind each key a dot and what tells requests apart | | – |
//! | CRI, containerd's transfer service | `…/cri.image-ref` | `…/cri.layer-digest` | `…/cri.manifest-digest` |
//!
//! They are claims of whoever asks: the image's own documents are held against them.

use peelfs_registry::{Digest, ImageReference, Reference};

use crate::store::snapshot_tables::Labels;

/// What a snapshot will be called once its layer is there: the chain ID.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Tells BuildKit that a snapshot's content may be elsewhere.
pub const REMOTE: (&str, &str) = ("containerd.io/snapshot/remote", "remote snapshot");
/// What begins the keys that containerd passes on.
const STARGZ_REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";
const STARGZ_DIGEST: &str = "containerd.io/snapshot/remote/stargz.digest";
const STARGZ_LAYERS: &str = "containerd.io/snapshot/remote/stargz.layers";
const CRI_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
const CRI_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const CRI_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Longest label: key and value together, in bytes (containerd, package `labels`).
const MAXIMUM_LABEL: usize = 4096;
/// Most requests that one set of labels may carry; the others are not looked at.
const MAXIMUM_SOURCES: usize = 16;

/// A layer that a snapshot is prepared for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRequest {
    /// Chain ID of the stack that ends with it.
    pub target: Digest,
    /// Digest of its blob.
    pub layer: Digest,
    /// The image that has it.
    pub reference: Reference,
    /// The manifest that is meant, if somebody said it.
    pub manifest: Option<Digest>,
}

impl LayerRequest {
    /// The label that says what a snapshot will be called once its layer is there.
    pub const TARGET: &str = TARGET;

    /// The labels that ask for a layer of an image, in the dialects of `ctr-remote` and of CRI: so every snapshotter that knows one of
    /// them understands. `above` are the digests of the layer and of those above it: as many of them are named as a label can hold.
    pub fn labels<'a>(
        reference: &Reference,
        layer: &Digest,
        manifest: &Digest,
        target: &str,
        above: impl Iterator<Item = &'a Digest>,
    ) -> Labels {
        let mut layers = String::new();
        for digest in above {
            let separator = if layers.is_empty() { "" } else { "," };
            if STARGZ_LAYERS.len() + layers.len() + separator.len() + digest.as_str().len() > MAXIMUM_LABEL {
                break;
            }
            layers.push_str(separator);
            layers.push_str(digest.as_str());
        }
        let (reference, layer) = (reference.to_string(), layer.to_string());
        let labels = [
            (TARGET, target.to_owned()),
            (STARGZ_REFERENCE, reference.clone()),
            (STARGZ_DIGEST, layer.clone()),
            (STARGZ_LAYERS, layers),
            (CRI_REFERENCE, reference),
            (CRI_DIGEST, layer),
            (CRI_MANIFEST, manifest.to_string()),
        ];
        labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// What the labels ask for, in the order in which it is to be tried. Nothing if they name no layer, or name it by what is no
    /// digest or no reference of a registry.
    pub fn of_labels(labels: &Labels) -> Vec<LayerRequest> {
        let Some(target) = labels.get(TARGET).and_then(|target| target.parse().ok()) else {
            return Vec::new();
        };
        let request = |reference: Option<&String>, layer: Option<&String>, manifest: Option<&String>| {
            let ImageReference::Registry(reference) = reference?.parse().ok()? else { return None };
            Some(LayerRequest {
                target: Digest::clone(&target),
                layer: layer?.parse().ok()?,
                reference,
                manifest: manifest.and_then(|manifest| manifest.parse().ok()),
            })
        };
        let cri = request(labels.get(CRI_REFERENCE), labels.get(CRI_DIGEST), labels.get(CRI_MANIFEST));
        let suffixes = labels.keys().filter_map(|key| key.strip_prefix(STARGZ_REFERENCE));
        let suffixes = suffixes.filter(|suffix| suffix.is_empty() || suffix.starts_with('.'));
        let stargz = suffixes.filter_map(|suffix| {
            let reference = labels.get(&format!("{STARGZ_REFERENCE}{suffix}"));
            request(reference, labels.get(&format!("{STARGZ_DIGEST}{suffix}")), None)
        });
        let mut requests: Vec<LayerRequest> = Vec::new();
        for request in cri.into_iter().chain(stargz).take(MAXIMUM_SOURCES) {
            if !requests.contains(&request) {
                requests.push(request);
            }
        }
        requests
    }

    /// Whether the other asks for the same layer of the same image.
    pub fn is_same_layer(&self, other: &LayerRequest) -> bool {
        let same_manifest = match (&self.manifest, &other.manifest) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same_manifest
            && (&self.target, &self.layer, &self.reference) == (&other.target, &other.layer, &other.reference)
    }
}

/// What is wrong with labels, if anything is.
pub fn fault(labels: &Labels) -> Option<String> {
    let long = labels.iter().find(|(key, value)| key.len() + value.len() > MAXIMUM_LABEL);
    if let Some((key, _)) = long {
        let key: String = key.chars().take(64).collect();
        return Some(format!("its label {key:?} and the label's value have more than {MAXIMUM_LABEL} bytes"));
    }
    labels.contains_key("").then(|| "a label has no name".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> String {
        Digest::sha256_of(text.as_bytes()).to_string()
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn told(pairs: &[(&str, &str)]) -> Vec<(String, String, Option<String>)> {
        let requests = LayerRequest::of_labels(&labels(pairs));
        let told = requests.into_iter().map(|request| {
            assert_eq!(request.target.as_str(), digest("chain"));
            let manifest = request.manifest.map(|manifest| manifest.to_string());
            (request.reference.to_string(), request.layer.to_string(), manifest)
        });
        told.collect()
    }

    #[test]
    fn every_dialect_names_image_and_layer() {
        let (chain, one, two, manifest) = (&digest("chain"), &digest("1"), &digest("2"), &digest("m"));
        let python = "docker.io/library/python:3.12".to_owned();
        let target = (TARGET, chain.as_str());
        let stargz = [target, (STARGZ_REFERENCE, "python:3.12"), (STARGZ_DIGEST, one)];
        assert_eq!(told(&stargz), [(python.clone(), one.clone(), None)]);
        let cri = [target, (CRI_REFERENCE, "python:3.12"), (CRI_DIGEST, one), (CRI_MANIFEST, manifest)];
        assert_eq!(told(&cri), [(python.clone(), one.clone(), Some(manifest.clone()))]);
        let all: Vec<_> = cri.iter().chain(&stargz).copied().collect();
        assert_eq!(told(&all).len(), 2);
        let (suffixed, other) = (format!("{STARGZ_REFERENCE}.a1"), format!("{STARGZ_REFERENCE}.b.2"));
        let (suffixed_digest, other_digest) = (format!("{STARGZ_DIGEST}.a1"), format!("{STARGZ_DIGEST}.b.2"));
        let buildkit = [
            target,
            (suffixed.as_str(), "python:3.12"),
            (suffixed_digest.as_str(), one),
            (other.as_str(), "host:5000/x"),
            (other_digest.as_str(), two),
        ];
        let expected = [(python, one.clone(), None), ("host:5000/x:latest".to_owned(), two.clone(), None)];
        assert_eq!(told(&buildkit), expected);
    }

    #[test]
    fn what_is_asked_for_is_understood_and_fits() {
        let reference = |text: &str| match text.parse().unwrap() {
            ImageReference::Registry(reference) => reference,
            ImageReference::Layout(_) => unreachable!(),
        };
        let (target, layer, manifest) = (digest("chain"), digest("l"), digest("m"));
        let (layer, manifest): (Digest, Digest) = (layer.parse().unwrap(), manifest.parse().unwrap());
        let above: Vec<Digest> = (0..200).map(|n: u32| Digest::sha256_of(&n.to_le_bytes())).collect();
        let image = reference("python:3.12");
        let labels = LayerRequest::labels(&image, &layer, &manifest, &target, above.iter());
        assert_eq!(fault(&labels), None);
        assert!(labels[STARGZ_LAYERS].starts_with(&format!("{},{}", above[0], above[1])));
        assert!(labels[STARGZ_LAYERS].split(',').all(|digest| digest.parse::<Digest>().is_ok()));
        let asked = LayerRequest::of_labels(&labels);
        // The manifest is pinned at first.
        assert_eq!(asked[0].manifest, Some(manifest));
        for request in asked {
            assert_eq!((request.target.as_str(), &request.layer), (target.as_str(), &layer));
            assert_eq!(request.reference, image);
        }
    }

    #[test]
    fn labels_that_name_no_layer_ask_for_none() {
        let (chain, one) = (digest("chain"), digest("1"));
        let (chain, one) = (chain.as_str(), one.as_str());
        for pairs in [
            &[][..],
            &[(TARGET, chain)],
            &[(STARGZ_REFERENCE, "python"), (STARGZ_DIGEST, one)],
            &[(TARGET, "sha256:0"), (STARGZ_REFERENCE, "python"), (STARGZ_DIGEST, one)],
            &[(TARGET, chain), (STARGZ_REFERENCE, "python")],
            &[(TARGET, chain), (STARGZ_DIGEST, one)],
            &[(TARGET, chain), (STARGZ_REFERENCE, "python"), (STARGZ_DIGEST, "sha256:xyz")],
            &[(TARGET, chain), (STARGZ_REFERENCE, "not a reference"), (STARGZ_DIGEST, one)],
            // No file of this machine is an image that somebody pulls.
            &[(TARGET, chain), (STARGZ_REFERENCE, "oci:/etc:x"), (STARGZ_DIGEST, one)],
            &[(TARGET, chain), (CRI_REFERENCE, "python"), (STARGZ_DIGEST, one)],
            &[
                (TARGET, chain),
                ("containerd.io/snapshot/remote/stargz.referencex", "python"),
                (STARGZ_DIGEST, one),
            ],
        ] {
            assert_eq!(LayerRequest::of_labels(&labels(pairs)), [], "{pairs:?}");
        }
    }

    #[test]
    fn labels_have_bounds() {
        assert_eq!(fault(&labels(&[("key", &"v".repeat(4093))])), None);
        assert!(fault(&labels(&[("key", &"v".repeat(4094))])).is_some());
        assert!(fault(&labels(&[("", "v")])).is_some());
    }
}

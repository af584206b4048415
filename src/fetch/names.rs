//! Under which name a layer is kept in the store.
//!
//! | made of | kept by | seen by images that |
//! | --- | --- | --- |
//! | its archive, all of it | its digest | name the digest |
//! | likewise, without what an eStargz writer added | digest | name the digest, and a table of contents by the annotation of eStargz |
//! | a table of contents in its blob | digest, size, diff ID, what is claimed of the table | say the same of the layer |
//! | one in another image, or a zTOC | digest, the image's manifest, and who says so | are that image; the third kind: if referrers are trusted |
//!
//! A layer that is kept by none of its names may be read in one that is kept by another's ([`twins`](super::twins)).
//!
//! The rule behind it: whatever an image says of a layer, beside its digest, and that decides what is shown of the layer or whether it
//! counts as false, is part of the name. Else an image that lists an honest layer of somebody else's could decide what that one's
//! files are. A table of contents in the blob is no exception: it is the image's manifest that says where in the blob it is, and any file of
//! a layer can have the form of one.

use peelfs_registry::Digest;

use crate::image::{IndexSource, Layer};
use crate::layer::lookup::{Lookup, hides_bookkeeping};

/// What a layer is kept by that was made of its whole archive.
pub fn streamed(layer: &Layer) -> Digest {
    let descriptor = &layer.descriptor;
    match hides_bookkeeping(&descriptor.annotations) {
        false => descriptor.digest.clone(),
        true => named(format!("layer {} without what its writer added", descriptor.digest)),
    }
}

/// What a layer is kept by that was made of a table of contents in its blob, which was looked up so.
pub fn from_toc(layer: &Layer, lookup: &Lookup) -> Digest {
    let Layer { descriptor, diff_id, .. } = layer;
    named(format!("layer {} with diff ID {diff_id} by its table: {}", descriptor.digest, lookup.claims()))
}

/// What a layer of an image, by the digest of its manifest, is kept by as if an index beside it made it.
pub fn kept_apart(layer: &Digest, image: &Digest, source: IndexSource) -> Digest {
    let said_by = match source {
        IndexSource::Manifest => "an index that the image names",
        IndexSource::Referrer => "an index that refers to the image",
    };
    named(format!("layer {layer} of {image} by {said_by}"))
}

/// As [`names`], for an image that was made here: what the images say that it was made of holds for it, too, and its own comes first.
pub fn names_of_made<'a>(
    layer: &Layer,
    images: impl IntoIterator<Item = &'a Digest>,
    trusts_referrers: bool,
) -> Vec<Digest> {
    let mut all = Vec::new();
    for name in images.into_iter().flat_map(|image| names(layer, image, trusts_referrers)) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// All names under which a layer of an image may be found, the one to be preferred first.
pub fn names(layer: &Layer, image: &Digest, trusts_referrers: bool) -> Vec<Digest> {
    let descriptor = &layer.descriptor;
    let apart = |source| kept_apart(&descriptor.digest, image, source);
    let mut names = vec![streamed(layer)];
    // What is claimed of a table that cannot be made none.
    let lookup = Lookup::new(&descriptor.annotations, descriptor.size).ok().flatten();
    names.extend(lookup.map(|lookup| from_toc(layer, &lookup)));
    names.push(apart(IndexSource::Manifest));
    names.extend(trusts_referrers.then(|| apart(IndexSource::Referrer)));
    names
}

fn named(text: String) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use peelfs_registry::BlobDescriptor;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    /// Diff ID, size and annotations of the layer.
    type Said<'a> = (&'a str, u64, &'a [(&'a str, &'a str)]);

    fn layer(diff_id: &str, size: u64, annotations: &[(&str, &str)]) -> Layer {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let descriptor = BlobDescriptor {
            digest: digest("layer"),
            size,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            annotations: annotations.iter().map(own).collect(),
            urls: Vec::new(),
        };
        Layer { descriptor, diff_id: digest(diff_id), lazy_index: None }
    }

    #[test]
    fn what_one_image_says_of_a_layer_is_kept_for_no_other() {
        let layer = layer("archive", 1000, &[]);
        let mut all = BTreeSet::new();
        for image in ["one", "two"] {
            let trusting = names(&layer, &digest(image), true);
            assert_eq!(trusting[0], layer.descriptor.digest);
            assert_eq!(names(&layer, &digest(image), false), trusting[..2]);
            all.extend(trusting);
        }
        assert_eq!(all.len(), 5);
        let (one, two) = (digest("one"), digest("two"));
        let made = names_of_made(&layer, [&one, &two], true);
        assert_eq!(made[..3], names(&layer, &one, true));
        assert_eq!(made.into_iter().collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn whoever_says_something_else_of_a_table_has_a_layer_of_its_own() {
        const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";
        const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
        const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
        const TAR_SPLIT: &str = "io.github.containers.zstd-chunked.tarsplit-position";
        const TAR_SPLIT_CHECKSUM: &str = "io.github.containers.zstd-chunked.tarsplit-checksum";
        let (one, two) = (&digest("one").to_string(), &digest("two").to_string());
        let claims: [Said<'_>; 12] = [
            ("archive", 1000, &[(TOC, one)]),
            ("archive", 1000, &[(TOC, two)]),
            ("another", 1000, &[(TOC, one)]),
            ("archive", 1001, &[(TOC, one)]),
            ("archive", 1000, &[(CHECKSUM, one)]),
            ("archive", 1000, &[(CHECKSUM, one), (TOC, one)]),
            ("archive", 1000, &[(CHECKSUM, one), (POSITION, "100:10:20:1")]),
            ("archive", 1000, &[(CHECKSUM, one), (POSITION, "101:10:20:1")]),
            ("archive", 1000, &[(CHECKSUM, one), (POSITION, "100:11:20:1")]),
            ("archive", 1000, &[(CHECKSUM, one), (POSITION, "100:10:21:1")]),
            ("archive", 1000, &[(CHECKSUM, one), (POSITION, "100:10:20:1"), (TAR_SPLIT, "200:1:2")]),
            ("archive", 1000, &[(CHECKSUM, one), (TAR_SPLIT_CHECKSUM, two)]),
        ];
        let name = |image: &str, (diff_id, size, annotations): Said<'_>| {
            names(&layer(diff_id, size, annotations), &digest(image), false)[1].clone()
        };
        let names: BTreeSet<Digest> = claims.iter().map(|claim| name("one", *claim)).collect();
        assert_eq!(names.len(), claims.len());
        let others: BTreeSet<Digest> = claims.iter().map(|claim| name("two", *claim)).collect();
        assert_eq!(others, names, "whoever says the same shares it");
        let also = [(TOC, one.as_str()), ("io.containers.estargz.uncompressed-size", "7")];
        assert_eq!(name("one", ("archive", 1000, &also)), name("one", claims[0]), "that says nothing of it");
    }

    #[test]
    fn a_layer_that_was_streamed_is_shared_by_all_who_hide_the_same_of_it() {
        let toc = "containerd.io/snapshot/stargz/toc.digest";
        let (one, two) = (digest("one").to_string(), "no digest".to_owned());
        let hiding = [one, two].map(|digest| streamed(&layer("archive", 1000, &[(toc, &digest)])));
        assert_eq!(hiding[0], hiding[1]);
        assert_ne!(hiding[0], digest("layer"));
        assert_eq!(streamed(&layer("another", 999, &[("else", "x")])), digest("layer"));
    }
}

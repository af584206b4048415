//! Under which name a layer is kept in the store.
//!
//! A layer that was made of its own blob, streamed or by the table of contents in it, is the same whoever names it: it is kept under its
//! digest, and shared. One that was made of an index beside it (a zTOC, or a table of contents in another image) is what the image says,
//! or what somebody says who may push to its repository: such a layer is kept apart, for that image alone, and in the second case for those who trust referrers. Else an
//! image could decide what another one's files are.

use peelfs_registry::Digest;

use crate::image::IndexSource;

/// What a layer of an image, by the digest of its manifest, is kept as if an index beside it made it.
pub fn kept_apart(layer: &Digest, image: &Digest, source: IndexSource) -> Digest {
    let said_by = match source {
        IndexSource::Manifest => "an index that the image names",
        IndexSource::Referrer => "an index that refers to the image",
    };
    Digest::sha256_of(format!("layer {layer} of {image} by {said_by}").as_bytes())
}

/// As [`names`], for an image that was made here: what the images say that it was made of holds for it, too, and its own comes first.
pub fn names_of_made<'a>(
    layer: &Digest,
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
pub fn names(layer: &Digest, image: &Digest, trusts_referrers: bool) -> Vec<Digest> {
    let apart = |source| kept_apart(layer, image, source);
    let mut names = vec![layer.clone(), apart(IndexSource::Manifest)];
    names.extend(trusts_referrers.then(|| apart(IndexSource::Referrer)));
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_one_image_says_of_a_layer_is_kept_for_no_other() {
        let digest = |text: &str| Digest::sha256_of(text.as_bytes());
        let layer = digest("layer");
        let mut all = BTreeSet::new();
        for image in ["one", "two"] {
            let trusting = names(&layer, &digest(image), true);
            assert_eq!(trusting[0], layer);
            assert_eq!(names(&layer, &digest(image), false), trusting[..2]);
            all.extend(trusting);
        }
        assert_eq!(all.len(), 5);
        let (one, two) = (digest("one"), digest("two"));
        let made = names_of_made(&layer, [&one, &two], true);
        assert_eq!(made[..3], names(&layer, &one, true));
        assert_eq!(made.into_iter().collect::<BTreeSet<_>>(), all);
    }
}

//! What a mount fetches before anybody reads it: found in the profile of its image, or by the landmarks of its layers.

use std::ops::Range;

use super::profile::MountedImage;
use crate::fetch::prefetch::{Prefetch, Wanted};
use crate::fetch::profile::Profile;
use crate::tree::paths::file_at;
use crate::tree::serve::MergedTree;

/// What is fetched before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetching {
    /// By the profile if there is one, else by the landmarks.
    Auto,
    /// What the profile of the image says.
    Profile,
    /// What the authors of the layers marked.
    Landmark,
    /// Nothing.
    None,
}

impl Prefetching {
    /// Whether a profile has a say.
    pub(super) fn is_by_profile(self) -> bool {
        matches!(self, Prefetching::Auto | Prefetching::Profile)
    }
}

/// What is missing of what is wanted.
pub(super) fn plan(prefetching: Prefetching, image: &MountedImage<'_>) -> Prefetch {
    let by_profile = || image.profile().map(|profile| by_profile(image.tree, &profile));
    let by_landmarks = || by_landmarks(image.tree);
    let wanted = match prefetching {
        Prefetching::None => Vec::new(),
        _ if image.tree.layers().iter().all(|layer| layer.is_complete()) => Vec::new(),
        Prefetching::Auto => by_profile().unwrap_or_else(by_landmarks),
        Prefetching::Profile => by_profile().unwrap_or_default(),
        Prefetching::Landmark => by_landmarks(),
    };
    let plan = Prefetch::plan(image.tree.layers(), wanted);
    // To find the files was to look at many pages of it.
    image.tree.table().release();
    plan
}

/// What is missing of what a profile says, wherever that comes from.
pub(super) fn plan_of(tree: &MergedTree, profile: &Profile) -> Prefetch {
    let plan = Prefetch::plan(tree.layers(), by_profile(tree, profile));
    tree.table().release();
    plan
}

/// The files that are not seldom touched, in the profile's order; of large ones the parts.
fn by_profile(tree: &MergedTree, profile: &Profile) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for typical in profile.typical().into_iter().filter(|typical| !typical.is_seldom) {
        let Some(record) = file_at(tree.table(), &typical.file.path) else { continue };
        let whole = 0..record.size.get();
        let parts = if typical.file.parts.is_empty() { vec![whole.clone()] } else { typical.file.parts };
        for part in parts.into_iter().map(|part| within(part, &whole)) {
            let ranges = tree.decoded_ranges_of(record, part);
            wanted.extend(ranges.into_iter().map(|range| (usize::from(record.layer.get()), range)));
        }
    }
    wanted
}

fn within(part: Range<u64>, whole: &Range<u64>) -> Range<u64> {
    let end = part.end.min(whole.end);
    part.start.min(end)..end
}

/// The chunks before the landmark of each layer that has one, the lowest layer first.
fn by_landmarks(tree: &MergedTree) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for (number, layer) in tree.layers().iter().enumerate() {
        let landmark = layer.landmark().unwrap_or(0);
        let chunks = layer.table().chunks().iter();
        let before = chunks
            .filter(|chunk| chunk.blob_offset.get().saturating_add(chunk.blob_length.get()) <= landmark);
        wanted.extend(before.map(|chunk| {
            let start = chunk.decoded_offset.get();
            (number, start..start.saturating_add(chunk.decoded_length.get()))
        }));
    }
    wanted
}

//! What is to go: a pure function of what is there and what is asked for, so that it is tested without a disk.
//!
//! ```text
//! what nobody needs ─▶ cold content of layers that can be fetched again ─▶ images, the one unused for longest first, and what they needed
//!      always                 as long as there is too much                          as long as there is too much
//! ```

use std::collections::{BTreeMap, BTreeSet};

/// What may stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The store takes no more bytes than these.
    pub keep_bytes: Option<u64>,
    /// So many bytes of the file system are free.
    pub minimum_free: Option<u64>,
    /// An image that was used in the last so many seconds stays, whatever the others say, and so does its content.
    pub keep_seconds: Option<u64>,
}

impl Policy {
    fn is_met(&self, inventory: &Inventory, freed: u64) -> bool {
        let is_small = |most: u64| inventory.store_bytes.saturating_sub(freed) <= most;
        let is_free = |least: u64| inventory.free_bytes.saturating_add(freed) >= least;
        match (self.keep_bytes, self.minimum_free) {
            // An age alone: what is older goes.
            (None, None) => self.keep_seconds.is_none(),
            (most, least) => most.is_none_or(is_small) && least.is_none_or(is_free),
        }
    }

    fn keeps(&self, last_used: i64, now: i64) -> bool {
        self.keep_seconds.is_some_and(|seconds| {
            last_used.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX)) >= now
        })
    }
}

/// What is in a store.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// What all of it takes.
    pub store_bytes: u64,
    /// What may still be written on its file system.
    pub free_bytes: u64,
    /// Named images.
    pub images: Vec<ImageUse>,
    /// What mounts need, whether it is named or not.
    pub mounted: Needs,
    /// By name.
    pub layers: BTreeMap<String, LayerUse>,
    /// Bytes by key.
    pub trees: BTreeMap<String, u64>,
    /// Bytes by digest.
    pub documents: BTreeMap<String, u64>,
}

/// What an image, or a mount, needs to stay what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of layers.
    pub layers: BTreeSet<String>,
    /// Keys of merged trees.
    pub trees: BTreeSet<String>,
    /// Digests of manifests, indexes and configs.
    pub documents: BTreeSet<String>,
}

impl Needs {
    /// Adds those of another.
    pub fn extend(&mut self, other: &Needs) {
        self.layers.extend(other.layers.iter().cloned());
        self.trees.extend(other.trees.iter().cloned());
        self.documents.extend(other.documents.iter().cloned());
    }
}

/// A named image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// Its name.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// When it was used, in seconds since 1970.
    pub last_used: i64,
    /// Whether it is mounted now.
    pub is_mounted: bool,
    /// What it needs.
    pub needs: Needs,
}

/// A layer that is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// What it takes.
    pub bytes: u64,
    /// How much of that is content that can be fetched again.
    pub content_bytes: u64,
    /// Whether a process has it open.
    pub is_in_use: bool,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Images whose names are forgotten: reference and platform.
    pub images: Vec<(String, String)>,
    /// Layers whose content is discarded, and how many bytes of it.
    pub evicted: Vec<(String, u64)>,
    /// Layers that are removed, and their bytes.
    pub layers: Vec<(String, u64)>,
    /// Merged trees, likewise.
    pub trees: Vec<(String, u64)>,
    /// Documents, likewise.
    pub documents: Vec<(String, u64)>,
}

impl Plan {
    /// Decides what goes by `policy`, at the time `now`.
    pub fn make(inventory: &Inventory, policy: &Policy, now: i64) -> Plan {
        let mut kept: Vec<&ImageUse> = inventory.images.iter().collect();
        kept.sort_by_key(|image| std::cmp::Reverse(image.last_used));
        let mut plan = Plan::default();
        plan.remove_unneeded(inventory, &kept);
        plan.evict(inventory, policy, &kept, now);
        // The last of them is the one that was unused for longest.
        while !policy.is_met(inventory, plan.bytes()) {
            let goes = |image: &&ImageUse| !image.is_mounted && !policy.keeps(image.last_used, now);
            let Some(position) = kept.iter().rposition(goes) else { break };
            let image = kept.remove(position);
            plan.images.push((image.reference.clone(), image.platform.clone()));
            plan.remove_unneeded(inventory, &kept);
        }
        plan
    }

    /// Bytes that it frees.
    pub fn bytes(&self) -> u64 {
        let all = [&self.evicted, &self.layers, &self.trees, &self.documents];
        all.into_iter().flatten().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
    }

    fn remove_unneeded(&mut self, inventory: &Inventory, kept: &[&ImageUse]) {
        let mut needed = inventory.mounted.clone();
        for image in kept {
            needed.extend(&image.needs);
        }
        let goes = |name: &String, layer: &LayerUse| !needed.layers.contains(name) && !layer.is_in_use;
        self.layers = (inventory.layers.iter())
            .filter(|(name, layer)| goes(name, layer))
            .map(|(name, layer)| (name.clone(), layer.bytes))
            .collect();
        // What goes altogether is not discarded before.
        let removed: BTreeSet<&String> = self.layers.iter().map(|(name, _)| name).collect();
        self.evicted.retain(|(name, _)| !removed.contains(name));
        let unneeded = |all: &BTreeMap<String, u64>, needed: &BTreeSet<String>| {
            all.iter()
                .filter(|(name, _)| !needed.contains(*name))
                .map(|(name, bytes)| (name.clone(), *bytes))
                .collect()
        };
        self.trees = unneeded(&inventory.trees, &needed.trees);
        self.documents = unneeded(&inventory.documents, &needed.documents);
    }

    /// Discards content, of the layers that were unused for longest first. An age alone is about images.
    fn evict(&mut self, inventory: &Inventory, policy: &Policy, kept: &[&ImageUse], now: i64) {
        if policy.keep_bytes.is_none() && policy.minimum_free.is_none() {
            return;
        }
        // A layer is as warm as the warmest image that has it.
        let mut last_used: BTreeMap<&String, i64> = BTreeMap::new();
        for image in kept {
            for layer in &image.needs.layers {
                let used = last_used.entry(layer).or_insert(image.last_used);
                *used = (*used).max(image.last_used);
            }
        }
        let mut cold: Vec<(i64, &String)> =
            last_used.into_iter().map(|(layer, last_used)| (last_used, layer)).collect();
        cold.sort_unstable();
        for (last_used, name) in cold {
            if policy.is_met(inventory, self.bytes()) {
                return;
            }
            let Some(layer) = inventory.layers.get(name) else { continue };
            let is_warm = inventory.mounted.layers.contains(name) || policy.keeps(last_used, now);
            if !is_warm && !layer.is_in_use && layer.content_bytes > 0 {
                self.evicted.push((name.clone(), layer.content_bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(layers: &[&str]) -> Needs {
        let names = |prefix: &str| layers.iter().map(|layer| format!("{prefix}{layer}")).collect();
        Needs { layers: names(""), trees: BTreeSet::from([layers.concat()]), documents: names("of ") }
    }

    fn image(name: &str, last_used: i64, layers: &[&str]) -> ImageUse {
        let needs = needs(layers);
        ImageUse {
            reference: name.to_owned(),
            platform: "linux/amd64".to_owned(),
            last_used,
            is_mounted: false,
            needs,
        }
    }

    /// Three images, of which two share a layer; each layer takes 100 bytes, 90 of them content. One layer is nobody's.
    fn inventory() -> Inventory {
        let layer = LayerUse { bytes: 100, content_bytes: 90, is_in_use: false };
        let layers = ["a", "b", "c", "d", "lost"];
        Inventory {
            store_bytes: 1000,
            free_bytes: 50,
            images: vec![
                image("old", 10, &["a", "b"]),
                image("new", 30, &["b", "c"]),
                image("mid", 20, &["d"]),
            ],
            mounted: Needs::default(),
            layers: layers.map(|name| (name.to_owned(), layer)).into(),
            trees: BTreeMap::from([("ab".to_owned(), 5), ("bc".to_owned(), 5), ("gone".to_owned(), 5)]),
            documents: BTreeMap::from([("of a".to_owned(), 1), ("of z".to_owned(), 1)]),
        }
    }

    fn names(list: &[(String, u64)]) -> Vec<&str> {
        list.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn images(plan: &Plan) -> Vec<&str> {
        plan.images.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_nobody_needs_goes_and_nothing_else() {
        let plan = Plan::make(&inventory(), &Policy::default(), 100);
        assert_eq!((names(&plan.layers), names(&plan.trees)), (vec!["lost"], vec!["gone"]));
        assert_eq!(names(&plan.documents), ["of z"]);
        assert!(plan.images.is_empty() && plan.evicted.is_empty());
        assert_eq!(plan.bytes(), 106);

        let mut inventory = inventory();
        inventory.mounted = needs(&["lost"]);
        inventory.mounted.trees.insert("gone".to_owned());
        inventory.layers.insert("open".to_owned(), LayerUse { is_in_use: true, ..LayerUse::default() });
        let plan = Plan::make(&inventory, &Policy::default(), 100);
        assert!(plan.layers.is_empty() && plan.trees.is_empty());
    }

    #[test]
    fn cold_content_goes_before_images_and_old_images_before_new_ones() {
        let most = |bytes| Policy { keep_bytes: Some(bytes), ..Policy::default() };
        for (policy, evicted, forgotten) in [
            (most(894), vec![], vec![]),
            (most(893), vec!["a"], vec![]),
            (most(700), vec!["a", "d", "b"], vec![]),
            (most(534), vec!["a", "d", "b", "c"], vec![]),
            (most(533), vec!["d", "b", "c"], vec!["old"]),
            (most(510), vec!["b", "c"], vec!["old", "mid"]),
            (most(0), vec![], vec!["old", "mid", "new"]),
            (Policy { minimum_free: Some(200), ..Policy::default() }, vec!["a"], vec![]),
            (Policy { keep_seconds: Some(75), ..Policy::default() }, vec![], vec!["old", "mid"]),
            (
                Policy { keep_bytes: Some(0), keep_seconds: Some(75), minimum_free: None },
                vec![],
                vec!["old", "mid"],
            ),
        ] {
            let plan = Plan::make(&inventory(), &policy, 100);
            assert_eq!((names(&plan.evicted), images(&plan)), (evicted, forgotten), "{policy:?}");
        }
    }

    #[test]
    fn what_is_mounted_or_open_stays() {
        let mut inventory = inventory();
        inventory.images[0].is_mounted = true;
        inventory.mounted = inventory.images[0].needs.clone();
        inventory.layers.get_mut("d").unwrap().is_in_use = true;
        let plan = Plan::make(&inventory, &Policy { keep_bytes: Some(0), ..Policy::default() }, 100);
        assert_eq!(images(&plan), ["mid", "new"]);
        assert_eq!(names(&plan.layers), ["c", "lost"]);
        assert!(plan.evicted.is_empty());
    }
}

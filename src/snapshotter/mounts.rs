//! What containerd is to mount, in the words of mount(8). For ordinary snapshots that is what its own overlayfs snapshotter says.
//!
//! | snapshot | below it | mount |
//! | --- | --- | --- |
//! | active | nothing | its directory, bound |
//! | view | nothing | its empty directory, bound read-only |
//! | view | one directory | that, bound read-only |
//! | active | some | an overlay |
//! | view | some | an overlay without upper directory, so read-only |

use std::path::{Path, PathBuf};

use super::{SnapshotKind, Snapshotter};
use crate::store::snapshot_tables::SnapshotRow;

/// A mount that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is mounted: a directory, or `overlay`.
    pub source: String,
    /// Options, each as it is written between commas.
    pub options: Vec<String>,
}

/// What overlays need on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverlayOptions {
    /// The kernel knows of an index, which is not wanted: a lower directory may be below several overlays.
    turns_index_off: bool,
    /// Nobody here may set `trusted.` attributes.
    user_attributes: bool,
}

impl OverlayOptions {
    pub(super) fn of_this_machine() -> OverlayOptions {
        // Outside user namespaces, all users are themselves (user_namespaces(7)).
        let maps = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let first: Vec<&str> = maps.split_ascii_whitespace().collect();
        OverlayOptions {
            turns_index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
            user_attributes: !first.is_empty() && first != ["0", "0", "4294967295"],
        }
    }
}

impl Snapshotter {
    /// The mounts of a snapshot on these lower directories, the highest first.
    pub(super) fn mounts_of(&self, row: &SnapshotRow, lower: &[PathBuf]) -> Vec<Mount> {
        let directories = self.store.container_snapshots();
        let bind = |directory: &Path, mode: &str| Mount {
            kind: "bind",
            source: text(directory),
            options: vec![mode.to_owned(), "rbind".to_owned()],
        };
        let is_active = row.kind == SnapshotKind::Active;
        vec![match lower {
            [] => bind(&directories.fs(row.id), if is_active { "rw" } else { "ro" }),
            [one] if !is_active => bind(one, "ro"),
            lower => {
                let mut options = Vec::new();
                if self.overlay.turns_index_off {
                    options.push("index=off".to_owned());
                }
                if self.overlay.user_attributes {
                    options.push("userxattr".to_owned());
                }
                if is_active {
                    options.push(format!("workdir={}", text(&directories.work(row.id))));
                    options.push(format!("upperdir={}", text(&directories.fs(row.id))));
                }
                let lower: Vec<String> = lower.iter().map(|directory| text(directory)).collect();
                options.push(format!("lowerdir={}", lower.join(":")));
                Mount { kind: "overlay", source: "overlay".to_owned(), options }
            }
        }]
    }
}

/// A path of the store. containerd's protocol has no other than those of UTF-8, which [`store_fault`] sees to.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Why the path of a store cannot stand in mount options, if it cannot.
pub fn store_fault(store: &Path) -> Option<&'static str> {
    match store.to_str() {
        None => Some("it is not UTF-8"),
        Some(path) if path.contains([',', ':', '\\', '"']) => {
            Some("it has one of , : \\ \" in it, which options of overlays cannot tell")
        }
        Some(_) => None,
    }
}

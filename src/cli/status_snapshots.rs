//! `peel status --snapshots`: what `peel serve` keeps for containerd.

use std::collections::{BTreeMap, HashMap};

use peelfs::snapshotter::images::remote_usage;
use peelfs::snapshotter::is_used;
use peelfs::store::snapshot_tables::{SnapshotKind, SnapshotRow};
use peelfs::store::{Access, Store, StoreError};
use peelfs_fuse::{InUse, mount_at};
use serde::Serialize;

use super::output::{self, Align};

/// A snapshot, and the tree that it lies on.
#[derive(Serialize)]
struct SnapshotLine {
    name: String,
    /// `active`, `view` or `committed`.
    kind: &'static str,
    /// The name of the snapshot below.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Whether it is layers of an image; else it is a directory.
    remote: bool,
    /// The image of which layers are, or lie below.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// How many of the image's layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<u32>,
    /// What is mounted of these layers: `used` by a container or a view, `idle`, `unmounted`, or `dead`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<&'static str>,
    /// What it takes on the disk, without what lies below.
    bytes: u64,
    inodes: u64,
    labels: BTreeMap<String, String>,
}

/// Prints all snapshots, by name.
pub fn run(store: &Store, json: bool) -> anyhow::Result<()> {
    let (rows, mut labels) =
        store.database().with_snapshots::<_, StoreError>("list the snapshots", Access::Read, |tables| {
            Ok((tables.all()?, tables.all_labels()?))
        })?;
    let by_id: HashMap<i64, &SnapshotRow> = rows.iter().map(|row| (row.id, row)).collect();
    // Without it, nothing looks as if it were used.
    let in_use = InUse::look().unwrap_or_default();
    let mut lines = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut below = Some(row);
        while let Some(row) = below.filter(|row| row.remote.is_none()) {
            below = row.parent.and_then(|parent| by_id.get(&parent).copied());
        }
        let stack = below.and_then(|row| row.remote.as_ref());
        let usage = match (&row.remote, row.kind) {
            (Some(stack), _) => remote_usage(store, stack)?,
            (None, SnapshotKind::Active) => store.container_snapshots().usage(row.id)?,
            (None, _) => row.usage.unwrap_or_default(),
        };
        lines.push(SnapshotLine {
            name: row.name.clone(),
            kind: row.kind.name(),
            parent: row.parent.and_then(|parent| Some(by_id.get(&parent)?.name.clone())),
            remote: row.remote.is_some(),
            image: stack.map(|stack| stack.reference.clone()),
            layers: stack.map(|stack| stack.layers),
            tree: stack.map(|stack| tree_state(store, &stack.tree, &in_use)),
            bytes: usage.bytes,
            inodes: usage.inodes,
            labels: labels.remove(&row.id).unwrap_or_default(),
        });
    }
    if json {
        return output::json(&lines);
    }
    Ok(output::print(&table(&lines))?)
}

fn tree_state(store: &Store, tree: &str, in_use: &InUse) -> &'static str {
    let mount_point = store.container_snapshots().mount_point_path(tree);
    match mount_at(&mount_point) {
        Ok(Some(mount)) if mount.is_ours() && mount.is_dead() => "dead",
        Ok(Some(mount)) if mount.is_ours() => match is_used(store, &mount_point, in_use) {
            true => "used",
            false => "idle",
        },
        _ => "unmounted",
    }
}

fn table(lines: &[SnapshotLine]) -> String {
    let columns = [
        ("SNAPSHOT", Align::Left),
        ("KIND", Align::Left),
        ("IMAGE", Align::Left),
        ("LAYERS", Align::Right),
        ("TREE", Align::Left),
        ("SIZE", Align::Right),
        ("PARENT", Align::Left),
    ];
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.name.clone(),
                if line.remote { "remote" } else { line.kind }.to_owned(),
                or_none(line.image.clone()),
                or_none(line.layers.map(|layers| layers.to_string())),
                or_none(line.tree.map(str::to_owned)),
                output::bytes(line.bytes),
                or_none(line.parent.clone()),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}

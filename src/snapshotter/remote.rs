//! Remote snapshots: how a layer becomes one, and where its tree is mounted.
//!
//! ```text
//! Prepare with labels ──▶ a snapshot of this layer there? ──yes──▶ already exists
//!                               │ no
//!                               ▼
//!                         bring it, and all below ──cannot be lazy──▶ an ordinary snapshot: containerd unpacks
//!                               │
//!                               ▼
//!                         row, committed ──▶ already exists; containerd finds it by its label `containerd.io/snapshot.ref`
//! ```
//!
//! Trust: a chain ID says what the layers hold once they are unpacked, but a table of contents may say something else until it is proved.
//! So a layer counts as the one that is there only if the same image was asked for, or if the same tables were made of it; else
//! containerd unpacks it, and proves it by that.

use std::path::{Path, PathBuf};

use super::labels::{REMOTE, TARGET};
use super::{
    Labels, LayerRequest, RemoteStack, SnapshotKind, Snapshotter, SnapshotterError, now, without_empty,
};
use crate::error::chain;
use crate::store::snapshot_tables::{SnapshotRow, SnapshotTables};

/// What is to be done about a layer.
enum Found {
    /// It is there, under that name.
    Here(String),
    /// It is to be brought.
    Missing { parent: Option<Box<SnapshotRow>> },
    /// It cannot be remote.
    Ordinary,
}

impl Snapshotter {
    /// Commits the layer that the labels name as a remote snapshot, if that can be, and gives its name.
    pub(super) fn prepare_remote(
        &self,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Option<String>, SnapshotterError> {
        for request in LayerRequest::of_labels(labels) {
            match self.prepare_layer(&request, namespace_of(key), parent, labels) {
                Ok(Some(name)) => return Ok(Some(name)),
                Ok(None) => {}
                // containerd is told what is wrong when it pulls the layer, or pulls it all the same.
                Err(error) => {
                    tracing::warn!(key, image = %request.reference, layer = %request.layer, error = %chain(&*error), "the layer cannot be read lazily; containerd unpacks it");
                }
            }
        }
        Ok(None)
    }

    fn prepare_layer(
        &self,
        request: &LayerRequest,
        namespace: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Option<String>, super::BoxError> {
        // Until it has a row, garbage collectors must not take for nobody's what was brought.
        let _bringing = self.store.lock_for_bringing()?;
        let below = match self.read("look for a layer", |tables| here(tables, request, parent))? {
            Found::Here(name) => return Ok(Some(name)),
            Found::Ordinary => return Ok(None),
            Found::Missing { parent } => parent,
        };
        let Some(stack) = self.remote.bring(request, namespace)? else { return Ok(None) };
        let layers_below = below.as_ref().and_then(|row| row.remote.as_ref()).map_or(0, |stack| stack.layers);
        if stack.layers != layers_below + 1 {
            tracing::warn!(image = %request.reference, layer = %request.layer, parent, "the layer does not lie on that snapshot; containerd unpacks it");
            return Ok(None);
        }
        let parent = below.map(|row| row.id);
        let committed = self.write("record a remote snapshot", |tables| {
            let same = tables.remote_with_label(TARGET, request.target.as_str(), parent)?;
            if let Some(row) = same.iter().find(|row| is_of_tree(row, &stack)) {
                return Ok(Some(row.name.clone()));
            }
            if !same.is_empty() {
                return Ok(None);
            }
            if let Some(parent) = parent
                && !tables.has(parent)?
            {
                return Ok(None);
            }
            let id = self.store.container_snapshots().unused_id(tables.largest_id()?);
            let mut name = request.target.to_string();
            // Of another namespace, on another parent.
            if tables.find(&name)?.is_some() {
                name = format!("{name} {id}");
            }
            let now = now();
            let row = SnapshotRow {
                id,
                name: name.clone(),
                kind: SnapshotKind::Committed,
                parent,
                created_at: now,
                updated_at: now,
                usage: None,
                remote: Some(stack.clone()),
            };
            let mut labels = without_empty(labels);
            labels.insert(REMOTE.0.to_owned(), REMOTE.1.to_owned());
            tables.insert(&row, &labels)?;
            Ok(Some(name))
        })?;
        if let Some(name) = &committed {
            tracing::info!(image = %request.reference, layer = %request.layer, committed = name, layers = stack.layers, "a layer is a snapshot");
        } else {
            tracing::warn!(image = %request.reference, layer = %request.layer, "another image says something else of this layer; containerd unpacks it");
        }
        Ok(committed)
    }

    /// The directories below a snapshot, the highest first, all of which can be read when this returns. `below` are the snapshots
    /// below it.
    ///
    /// # Errors
    /// [`SnapshotterError::Unavailable`].
    pub(super) fn lower_directories(
        &self,
        name: &str,
        below: &[SnapshotRow],
    ) -> Result<Vec<PathBuf>, SnapshotterError> {
        let mut lower = Vec::new();
        for row in below {
            match &row.remote {
                None => lower.push(self.store.container_snapshots().fs(row.id)),
                // It holds what is below it.
                Some(stack) => {
                    lower.push(self.mounted(stack).map_err(|error| SnapshotterError::Unavailable {
                        name: name.to_owned(),
                        reference: stack.reference.clone(),
                        reason: chain(&*error),
                    })?);
                    break;
                }
            }
        }
        Ok(lower)
    }

    /// Where the tree of a stack is mounted, now if it was not.
    fn mounted(&self, stack: &RemoteStack) -> Result<PathBuf, super::BoxError> {
        let directories = self.store.container_snapshots();
        self.mounting.alone(directories.mount_point_path(&stack.tree), || {
            let mount_point = directories.mount_point(&stack.tree)?;
            self.idle.is_asked_for(&mount_point);
            match peelfs_fuse::mount_at(&mount_point)? {
                Some(entry) if entry.is_ours() && !entry.is_dead() => {}
                // A dead one is removed when another is mounted there.
                _ => {
                    self.remote.mount(stack, &mount_point)?;
                    tracing::info!(image = stack.reference, layers = stack.layers, at = %mount_point.display(), "mounted");
                }
            }
            Ok(mount_point)
        })
    }

    /// Unmounts the trees that are no snapshot's any more.
    pub(super) fn unmount_unneeded(&self) -> Result<(), SnapshotterError> {
        for mount_point in self.unneeded_mount_points()? {
            self.mounting.alone(mount_point.clone(), || {
                // Somebody may have come to need it.
                if self.unneeded_mount_points()?.contains(&mount_point) {
                    self.unmount(&mount_point)?;
                }
                Ok::<_, SnapshotterError>(())
            })?;
        }
        Ok(())
    }

    pub(super) fn unmount(&self, mount_point: &Path) -> Result<(), SnapshotterError> {
        match peelfs_fuse::unmount(mount_point, true) {
            Ok(()) | Err(peelfs_fuse::UnmountError::NotMounted { .. }) => {
                self.store.container_snapshots().remove_mount_point(mount_point)?;
            }
            Err(error) => tracing::warn!(%error, "the tree of an image stays mounted"),
        }
        Ok(())
    }

    fn unneeded_mount_points(&self) -> Result<Vec<PathBuf>, SnapshotterError> {
        let needed = self.read("look for what is mounted", |tables| Ok(trees(tables)?))?;
        Ok(self.store.container_snapshots().other_mount_points(&needed)?)
    }
}

/// The namespace that containerd asks for: it puts that, and a number, before what its clients call a snapshot
/// (`NAMESPACE/NUMBER/KEY`). Empty for other keys.
fn namespace_of(key: &str) -> &str {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(_)) if number.parse::<u64>().is_ok() => namespace,
        _ => "",
    }
}

/// Whether a layer is there already.
fn here(tables: &SnapshotTables<'_>, request: &LayerRequest, parent: &str) -> super::Attempt<Found> {
    let parent = match parent {
        "" => None,
        parent => match tables.find(parent)? {
            Some(row) if row.kind == SnapshotKind::Committed && row.remote.is_some() => Some(Box::new(row)),
            // What is wrong with it is told by those who make ordinary snapshots.
            _ => return Ok(Found::Ordinary),
        },
    };
    let id = parent.as_ref().map(|row| row.id);
    for row in tables.remote_with_label(TARGET, request.target.as_str(), id)? {
        let known = LayerRequest::of_labels(&tables.labels(row.id)?);
        if known.iter().any(|known| known.is_same_layer(request)) {
            return Ok(Found::Here(row.name));
        }
    }
    Ok(Found::Missing { parent })
}

fn is_of_tree(row: &SnapshotRow, stack: &RemoteStack) -> bool {
    row.remote.as_ref().is_some_and(|other| other.tree == stack.tree)
}

/// The trees of all snapshots.
fn trees(tables: &SnapshotTables<'_>) -> crate::store::record_tables::TableResult<Vec<String>> {
    let trees = tables.all()?.into_iter().filter_map(|row| row.remote).map(|stack| stack.tree);
    Ok(trees.collect())
}

#[cfg(test)]
mod tests {
    use super::namespace_of;

    #[test]
    fn the_namespace_is_before_the_number_that_containerd_puts_before_a_key() {
        for (key, namespace) in [
            ("k8s.io/12/extract-1-ab sha256:00", "k8s.io"),
            ("default/3/a/b", "default"),
            ("a/b/c", ""),
            ("default/3", ""),
            ("key", ""),
            ("", ""),
        ] {
            assert_eq!(namespace_of(key), namespace, "{key}");
        }
    }
}

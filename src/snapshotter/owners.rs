//! Containers in user namespaces: what lies below a snapshot is shown with the owners that the container's namespace maps, and is shared by
//! all containers otherwise.
//!
//! ```text
//! labels of a container's snapshot                snapshots/<number>/fs         its own, owned by 100000, as the container writes it
//!   …/uidmapping 0:100000:65536      ──▶          snapshots/<number>/lower/0    the tree of the image, mapped by the kernel
//!   …/gidmapping 0:100000:65536                   snapshots/<number>/lower/1 …  ordinary snapshots below, likewise
//! ```
//!
//! What is mounted there goes with the snapshot: [`Snapshotter::clean_up`]. After a restart of the machine it is mounted when the
//! snapshot's mounts are asked for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use peelfs_fuse::{IdMap, IdRange, mount_mapped};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{BoxError, Labels, Snapshotter, SnapshotterError};
use crate::error::chain;

/// Numbers of users, as `inside:outside:length`, and more of them behind commas (containerd, package `snapshots`).
const USERS: &str = "containerd.io/snapshot/uidmapping";
/// The same of groups.
const GROUPS: &str = "containerd.io/snapshot/gidmapping";
/// Most ranges that the kernel takes (user_namespaces(7)).
const MOST_RANGES: usize = 340;

/// What labels say of a snapshot's owners; nothing if they are those of the machine.
///
/// # Errors
/// What is wrong with the labels.
pub(super) fn of_labels(labels: &Labels) -> Result<Option<IdMap>, String> {
    match (labels.get(USERS), labels.get(GROUPS)) {
        (None, None) => Ok(None),
        (Some(users), Some(groups)) => {
            let ranges = |label: &str, text: &str| {
                ranges(text).ok_or_else(|| format!("its label {label} is no list of ranges: {text:?}"))
            };
            Ok(Some(IdMap { users: ranges(USERS, users)?, groups: ranges(GROUPS, groups)? }))
        }
        _ => Err(format!("it has one of the labels {USERS} and {GROUPS}, but not the other")),
    }
}

/// What the owners inside are outside; who has none there is replaced by the namespace's first.
pub(super) fn outside(map: &IdMap, (user, group): (u32, u32)) -> (u32, u32) {
    let of = |ranges: &[IdRange], id| {
        let known = peelfs_fuse::outside(ranges, id);
        known.or_else(|| ranges.first().map(|range| range.outside)).unwrap_or(id)
    };
    (of(&map.users, user), of(&map.groups, group))
}

fn ranges(text: &str) -> Option<Vec<IdRange>> {
    let range = |text: &str| {
        let mut numbers = text.split(':').map(|number| number.parse().ok());
        let (inside, outside, length): (u32, u32, u32) =
            (numbers.next()??, numbers.next()??, numbers.next()??);
        // The last of all numbers is nobody's.
        let ends = [inside, outside].map(|first| first.checked_add(length));
        let is_possible = length > 0 && ends.iter().all(Option::is_some) && numbers.next().is_none();
        is_possible.then_some(IdRange { inside, outside, length })
    };
    let ranges: Option<Vec<IdRange>> = text.split(',').take(MOST_RANGES + 1).map(range).collect();
    ranges.filter(|ranges| ranges.len() <= MOST_RANGES)
}

impl Snapshotter {
    /// These lower directories of a snapshot as its container's users see them.
    ///
    /// # Errors
    /// [`SnapshotterError::Owners`].
    pub(super) fn mapped(
        &self,
        name: &str,
        id: i64,
        map: Option<&IdMap>,
        lower: Vec<PathBuf>,
    ) -> Result<Vec<PathBuf>, SnapshotterError> {
        let Some(map) = map else { return Ok(lower) };
        let mapped = |(number, directory): (usize, PathBuf)| {
            let place = self.store.container_snapshots().lower(id, number)?;
            let shown = self.mounting.alone(place.clone(), || show(&directory, &place, map));
            shown.map(|()| place).map_err(|error| {
                let (name, reason) = (name.to_owned(), chain(&*error));
                SnapshotterError::Owners { name, reason }
            })
        };
        lower.into_iter().enumerate().map(mapped).collect()
    }

    /// Takes away what is mounted for a snapshot that is gone.
    ///
    /// # Errors
    /// [`SnapshotterError::Owners`], [`SnapshotterError::Store`].
    pub(super) fn unmap(&self, id: i64) -> Result<(), SnapshotterError> {
        for place in self.store.container_snapshots().lowers(id)? {
            take_away(&place).map_err(|error| SnapshotterError::Owners {
                name: id.to_string(),
                reason: format!("{} stays mounted: {error}", place.display()),
            })?;
        }
        Ok(())
    }
}

/// Has a directory be seen at a place with other owners, if it is not.
fn show(directory: &Path, place: &Path, map: &IdMap) -> Result<(), BoxError> {
    let identity = |path: &Path| path.symlink_metadata().map(|found| (found.dev(), found.ino()));
    // Another one, or a dead one, may be there since the image's tree was mounted anew.
    if identity(place).ok() == Some(identity(directory)?) {
        return Ok(());
    }
    take_away(place)?;
    Ok(mount_mapped(directory, place, map)?)
}

fn take_away(place: &Path) -> Result<(), Errno> {
    loop {
        match rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or it is not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_containerd_writes_them() {
        let range = |inside, outside, length| IdRange { inside, outside, length };
        let labels = |users: &str, groups: &str| {
            let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            Labels::from([label(USERS, users), label(GROUPS, groups)])
        };
        assert_eq!(of_labels(&Labels::new()), Ok(None));
        let map = of_labels(&labels("0:100000:65536", "0:7:1,1:200000:10")).unwrap().unwrap();
        assert_eq!(map.users, [range(0, 100_000, 65_536)]);
        assert_eq!(map.groups, [range(0, 7, 1), range(1, 200_000, 10)]);
        let many = vec!["0:1:1"; MOST_RANGES + 1].join(",");
        for wrong in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "-1:0:1",
            "0:1:1,",
            "a:b:c",
            "0:4294967295:1",
            "1:2:4294967295",
            &many,
        ] {
            let told = of_labels(&labels("0:0:1", wrong)).unwrap_err();
            assert!(told.contains("gidmapping"), "{told}");
            assert!(of_labels(&labels(wrong, "0:0:1")).is_err());
        }
        let mut alone = labels("0:0:1", "0:0:1");
        alone.remove(USERS);
        assert!(of_labels(&alone).unwrap_err().contains("uidmapping"));
    }
}

//! What other mounts need: the lower directories of overlays, and places at which a file system is mounted once more, in all mount namespaces
//! that this process can see.
//!
//! An overlay holds the file system below it, not the mount by which it was found: so the kernel lets go of that mount without a word, and
//! nothing but the overlay's own options tell that somebody needs it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::mountinfo::{MountEntry, parse, parse_lower_directories};

/// What is mounted anywhere, as it was when this was made.
#[derive(Debug, Default)]
pub struct InUse {
    /// As whoever mounted an overlay named them: some are relative to a directory that is not known.
    lower: HashSet<PathBuf>,
    mounted: HashMap<(u32, u32), HashSet<PathBuf>>,
}

impl InUse {
    /// Looks at all mount namespaces, each by one process in it.
    ///
    /// # Errors
    /// If not even this process's own mounts can be listed.
    pub fn look() -> io::Result<InUse> {
        let mut found = InUse::default();
        found.add(&fs::read("/proc/self/mountinfo")?);
        let mut seen = HashSet::from([namespace(Path::new("/proc/self"))]);
        for process in fs::read_dir("/proc")?.flatten() {
            let is_process = process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
            // Those that end meanwhile, and those that may not be looked at, are passed over.
            if is_process
                && let Some(namespace) = namespace(&process.path())
                && seen.insert(Some(namespace))
                && let Ok(mounts) = fs::read(process.path().join("mountinfo"))
            {
                found.add(&mounts);
            }
        }
        Ok(found)
    }

    fn add(&mut self, mountinfo: &[u8]) {
        for MountEntry { device, mountpoint, .. } in parse(mountinfo) {
            self.mounted.entry(device).or_default().insert(mountpoint);
        }
        self.lower.extend(parse_lower_directories(mountinfo));
    }

    /// Whether a directory whose path ends so is a lower directory of an overlay.
    pub fn is_lower(&self, end: &Path) -> bool {
        self.lower.iter().any(|lower| lower.ends_with(end))
    }

    /// Where that file system is mounted, by its device number.
    pub fn mount_points(&self, device: (u32, u32)) -> impl Iterator<Item = &Path> {
        self.mounted.get(&device).into_iter().flatten().map(PathBuf::as_path)
    }
}

fn namespace(process: &Path) -> Option<OsString> {
    Some(fs::read_link(process.join("ns/mnt")).ok()?.into_os_string())
}

/// The lower directories that the options of an overlay name: all in one, or each in one of its own. A backslash stands before a colon or
/// backslash of a name.
pub(crate) fn lower_directories(option: &[u8]) -> Vec<PathBuf> {
    let mut directories = vec![Vec::new()];
    let mut bytes = option.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => directories.push(Vec::new()),
            byte => {
                let byte = if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte };
                // There is always a last one.
                directories.last_mut().into_iter().for_each(|last| last.push(byte));
            }
        }
    }
    let named = directories.into_iter().filter(|directory| !directory.is_empty());
    named.map(|directory| PathBuf::from(OsString::from_vec(directory))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_are_told_however_they_were_given() {
        let mut found = InUse::default();
        found.add(
            b"46 27 0:40 / /c/one rw - overlay overlay rw,lowerdir=7/fs:remote-abc,upperdir=8/fs,workdir=8/work\n\
            47 27 0:41 / /c/two ro - overlay overlay ro,lowerdir+=/s/a\\054b\\134:x,lowerdir+=/s/2,upperdir=/s/3/fs\n\
            48 27 0:54 / /s/remote-abc ro - fuse.peel image ro\n\
            49 27 0:54 / /c/view ro - fuse.peel image ro\n\
            50 27 0:55 /remote-zzz /x ro - ext4 lowerdir=remote-zzz ro\n",
        );
        for (end, expected) in [
            ("remote-abc", true),
            ("fs", true),
            ("7/fs", true),
            ("8/fs", false),
            ("abc", false),
            ("s/2", true),
        ] {
            assert_eq!(found.is_lower(Path::new(end)), expected, "{end}");
        }
        assert!(!found.is_lower(Path::new("remote-zzz")) && !found.is_lower(Path::new("3/fs")));
        assert!(found.is_lower(Path::new("a,b:x")));
        let mut points: Vec<_> = found.mount_points((0, 54)).collect();
        points.sort();
        assert_eq!(points, [Path::new("/c/view"), Path::new("/s/remote-abc")]);
        assert_eq!(found.mount_points((0, 99)).count(), 0);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let found = InUse::look().expect("looked at");
        let proc = crate::mountinfo::mount_at(Path::new("/proc")).expect("looked at").expect("a mount");
        assert!(found.mount_points(proc.device).any(|point| point == Path::new("/proc")));
    }
}

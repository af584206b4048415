//! Small facts that cannot be found again from anything else, one file each: `notes/<kind>/<hex>`, named by the hash of what they are
//! about, JSON.
//!
//! A note is written as a whole or not at all. One that cannot be read, or is about something else, counts as not there.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::content::write_file;
use super::durable::{ensure_directory, sync_directory};
use super::error::{Context, StoreError};
use super::temporary::Temporaries;

/// What a note tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// Where the blobs of an image come from whose name says something else.
    Origin,
    /// What a layer became when it was compressed otherwise.
    Variants,
    /// Layers that were found to be of an archive, by its digest.
    Archive,
    /// What the name of an image stands for: the database says it, too, but may be lost.
    Image,
}

impl NoteKind {
    fn directory(self) -> &'static str {
        match self {
            NoteKind::Origin => "origins",
            NoteKind::Variants => "variants",
            NoteKind::Archive => "archives",
            NoteKind::Image => "images",
        }
    }
}

/// The notes of a store.
#[derive(Clone, Debug)]
pub struct Notes {
    directory: PathBuf,
    /// On the same file system.
    temporaries: Temporaries,
}

#[derive(Serialize, Deserialize)]
struct Note<T> {
    about: String,
    says: T,
}

impl Notes {
    pub(super) fn new(directory: PathBuf, temporaries: Temporaries) -> Notes {
        Notes { directory, temporaries }
    }

    /// Notes something, in the place of what was noted before; on disk when this returns.
    pub fn put<T: Serialize>(&self, kind: NoteKind, about: &str, says: &T) -> Result<(), StoreError> {
        let path = self.path(kind, about);
        ensure_directory(&self.directory)?;
        ensure_directory(&self.directory.join(kind.directory()))?;
        sync_directory(&self.directory)?;
        let note = Note { about: about.to_owned(), says };
        let bytes = serde_json::to_vec(&note).map_err(std::io::Error::from).context("write", &path)?;
        write_file(&self.temporaries, &path, &bytes)
    }

    /// What is noted.
    pub fn get<T: DeserializeOwned>(&self, kind: NoteKind, about: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(kind, about);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.context("read", &path)?,
        };
        match serde_json::from_slice::<Note<T>>(&bytes) {
            Ok(note) if note.about == about => Ok(Some(note.says)),
            _ => {
                tracing::warn!(path = %path.display(), "cannot be read; it counts as missing");
                Ok(None)
            }
        }
    }

    /// All that is noted of a kind; what cannot be read is left out.
    pub fn list<T: DeserializeOwned>(&self, kind: NoteKind) -> Result<Vec<T>, StoreError> {
        Ok(self.all(kind)?.into_iter().map(|(_, says)| says).collect())
    }

    /// The same, with what they are about.
    pub fn all<T: DeserializeOwned>(&self, kind: NoteKind) -> Result<Vec<(String, T)>, StoreError> {
        let directory = self.directory.join(kind.directory());
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("list", &directory)?,
        };
        let mut notes = Vec::new();
        for entry in entries {
            let path = entry.context("list", &directory)?.path();
            let read = std::fs::read(&path).map_err(|error| error.to_string());
            let note = read.and_then(|bytes| {
                serde_json::from_slice::<Note<T>>(&bytes).map_err(|error| error.to_string())
            });
            match note {
                Ok(note) if self.path(kind, &note.about) == path => notes.push((note.about, note.says)),
                _ => tracing::warn!(path = %path.display(), "cannot be read; it counts as missing"),
            }
        }
        Ok(notes)
    }

    /// Removes all notes of a kind but those about these, and gives their number.
    pub fn keep_only(&self, kind: NoteKind, about: &[String]) -> Result<u64, StoreError> {
        let directory = self.directory.join(kind.directory());
        let kept: Vec<PathBuf> = about.iter().map(|about| self.path(kind, about)).collect();
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            entries => entries.context("list", &directory)?,
        };
        let mut removed = 0;
        for entry in entries {
            let path = entry.context("list", &directory)?.path();
            if kept.contains(&path) {
                continue;
            }
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => {
                    result.context("remove", &path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn path(&self, kind: NoteKind, about: &str) -> PathBuf {
        let hash = Sha256::digest(about);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(kind.directory()).join(hex)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn what_is_noted_is_read_until_it_is_replaced_or_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (notes, kind) = (store.notes(), NoteKind::Origin);
        let get = |about: &str| notes.get::<String>(kind, about).unwrap();
        assert_eq!(get("a"), None);
        assert_eq!(notes.keep_only(kind, &[]).unwrap(), 0);
        notes.put(kind, "a", &"one").unwrap();
        notes.put(kind, "b", &"two").unwrap();
        notes.put(kind, "a", &"three").unwrap();
        assert_eq!((get("a").as_deref(), get("b").as_deref()), (Some("three"), Some("two")));
        let mut all = notes.list::<String>(kind).unwrap();
        all.sort();
        assert_eq!((all, notes.list::<u32>(kind).unwrap()), (vec!["three".into(), "two".into()], vec![]));
        assert_eq!(notes.keep_only(kind, &["b".to_owned()]).unwrap(), 1);
        assert_eq!((get("a"), get("b").as_deref()), (None, Some("two")));
        std::fs::write(notes.path(kind, "b"), "{").unwrap();
        assert_eq!(get("b"), None);
    }
}

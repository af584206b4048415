//! The framing of a layer: what its archive has beside the content of its files ([`crate::layer::framing`] has the format).
//!
//! ```text
//! framing.new   being written, by whoever has the proof lock      ─ keep ─▶      framing   on disk; before the verdict
//! ```
//!
//! A layer that has none, or one that is damaged, is as good as ever, but for writing its archive.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};

use super::data_files::Home;
use super::durable::{crash_point, sync_data};
use super::error::{Context, StoreError};
use super::layers::{LayerFiles, optional};

const FRAMING: &str = "framing";
const NEW_FRAMING: &str = "framing.new";

/// A framing that is being written. Dropped, it is gone, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct NewFraming {
    home: Arc<Home>,
    file: File,
}

impl LayerFiles {
    /// What the archive has beside the content of the files, if it is kept. Not verified.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn framing(&self) -> Result<Option<File>, StoreError> {
        let home = self.data.home();
        optional(home.open(FRAMING, OFlags::RDONLY)).context("open", home.path().join(FRAMING))
    }

    /// Begins to keep it. To be asked by whoever has the layer's proof lock alone.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn new_framing(&self) -> Result<NewFraming, StoreError> {
        let home = self.data.home();
        // One that was begun by a process that is gone is begun anew.
        let file = home.open(NEW_FRAMING, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC);
        let file = file.context("make", home.path().join(NEW_FRAMING))?;
        Ok(NewFraming { home: Arc::clone(home), file })
    }
}

impl NewFraming {
    /// The file, empty.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Brings it to disk, and has it found from now on.
    ///
    /// # Errors
    /// Those of the disk; it is gone then.
    pub fn keep(self) -> Result<(), StoreError> {
        let path = self.home.path().join(FRAMING);
        sync_data(&self.file, &path)?;
        crash_point();
        let directory = self.home.directory();
        rustix::fs::renameat(directory, NEW_FRAMING, directory, FRAMING).context("keep", &path)?;
        crash_point();
        rustix::fs::fsync(directory).context("sync directory", self.home.path())
    }
}

impl Drop for NewFraming {
    fn drop(&mut self) {
        // It is not there any more if it was kept; else the next one takes its place.
        let _ = rustix::fs::unlinkat(self.home.directory(), NEW_FRAMING, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use crate::store::Store;

    #[test]
    fn a_framing_is_there_when_it_is_whole_and_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = format!("sha256:{}", "7".repeat(64));
        let layer = store.layers().layer(&digest).unwrap();
        let table = crate::layer::builder::LayerBuilder::new().finish([0; 32], &[]).unwrap();
        let files = layer.create().unwrap().publish(&table, Some(0)).unwrap();
        assert!(files.framing().unwrap().is_none());
        let new = files.new_framing().unwrap();
        new.file().write_all(b"given up").unwrap();
        drop(new);
        assert!(files.framing().unwrap().is_none());
        assert!(!layer.path().join(super::NEW_FRAMING).exists());
        for text in ["one", "other"] {
            std::fs::write(layer.path().join(super::NEW_FRAMING), "left by who was killed").unwrap();
            let new = files.new_framing().unwrap();
            new.file().write_all(text.as_bytes()).unwrap();
            new.keep().unwrap();
            let mut found = String::new();
            layer.open().unwrap().unwrap().framing().unwrap().unwrap().read_to_string(&mut found).unwrap();
            assert_eq!(found, text);
        }
    }
}

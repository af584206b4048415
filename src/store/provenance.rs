//! What is known of a layer beside its bytes: how it was read, and whether it was proved. Two small files in its directory.
//!
//! ```text
//! provenance   made with the layer, never changed: its format, and where its inode table came from
//! verdict      made once, when all of the layer was here: proved, or poisoned and why
//! ```
//!
//! They lie beside what they speak of, and not in the database, so that they come and go with it: a layer that is made again, or a
//! database that is lost, leaves no verdict over bytes that nobody has judged. Both are JSON. A layer of an earlier version of this
//! program has neither; one that says what this version does not know counts as such a layer.

use std::fs::File;
use std::io::Read;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::data_files::Home;
use super::durable::{crash_point, sync_data, write_all};
use super::error::{Context, StoreError};
use super::layers::{LayerDirectory, LayerFiles};
use super::lock::FileLock;

pub(super) const PROVENANCE: &str = "provenance";
pub(super) const VERDICT: &str = "verdict";
const NEW_VERDICT: &str = "verdict.new";

/// Longest file of the two that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// How a layer came to be here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// What it was read as: `estargz`, `zstd:chunked (podman)`, `tar+gzip` …
    pub format: String,
    /// Where its inode table came from.
    pub index: TableSource,
    /// When it was made, in seconds since 1970.
    pub made_at: i64,
    /// Bytes of the blob, from its beginning, that its author wants to have fetched first; nothing if he does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landmark: Option<u64>,
}

/// Where an inode table came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum TableSource {
    /// A table of contents in the blob, for whose digest the manifest vouches.
    Toc,
    /// A zTOC of a SOCI index that the manifest names.
    SociNamed,
    /// A zTOC of a SOCI index that only refers to the image, and that the user trusts.
    SociReferrer,
    /// The archive itself, all of which was streamed and matched its diff ID: the table needs no other proof.
    Stream {
        /// Why the layer was not read by a table of contents.
        because: String,
    },
}

/// What came of proving a layer whose table was not made of its archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Verdict {
    /// The archive has its diff ID, and says what the table says.
    Proved {
        /// When, in seconds since 1970.
        at: i64,
    },
    /// It has not, or does not.
    Poisoned {
        /// When, in seconds since 1970.
        at: i64,
        /// What is wrong, naming an entry if it is one.
        reason: String,
    },
}

impl LayerDirectory {
    /// The exclusive right to prove this layer: waits while another has it. To be taken before the verdict is looked for.
    pub fn lock_for_proof(&self) -> Result<FileLock, StoreError> {
        FileLock::acquire(self.proof_lock())
    }
}

impl LayerFiles {
    /// How the layer came to be here, if that was recorded.
    pub fn provenance(&self) -> Result<Option<Provenance>, StoreError> {
        read(self.data.home(), PROVENANCE)
    }

    /// What came of proving it, if it was proved.
    pub fn verdict(&self) -> Result<Option<Verdict>, StoreError> {
        let verdict = read(self.data.home(), VERDICT)?;
        self.tell(&verdict);
        Ok(verdict)
    }

    /// Tells all processes of poison. Whoever reads such a verdict does so too: who recorded it may have been killed before, or the
    /// chunk map may be another since.
    fn tell(&self, verdict: &Option<Verdict>) {
        if let (Some(Verdict::Poisoned { .. }), Some(map)) = (verdict, &self.chunk_map) {
            map.poison();
        }
    }

    /// Records what came of proving it, on disk when this returns. A verdict of poison counts in all processes at once.
    pub fn record_verdict(&self, verdict: Verdict) -> Result<(), StoreError> {
        let home = self.data.home();
        let path = home.path().join(VERDICT);
        let file = write(home, NEW_VERDICT, &verdict)?;
        sync_data(&file, &path)?;
        crash_point();
        rustix::fs::renameat(home.directory(), NEW_VERDICT, home.directory(), VERDICT)
            .context("record the verdict", &path)?;
        crash_point();
        rustix::fs::fsync(home.directory()).context("sync directory", home.path())?;
        self.tell(&Some(verdict));
        Ok(())
    }
}

/// Writes one of the files; it is not yet on disk.
pub(super) fn write(home: &Home, name: &str, value: &impl Serialize) -> Result<File, StoreError> {
    let path = home.path().join(name);
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::from).context("write", &path)?;
    let file = home.open(name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC).context("make", &path)?;
    write_all(&file, &bytes, &path)?;
    Ok(file)
}

fn read<T: DeserializeOwned>(home: &Home, name: &str) -> Result<Option<T>, StoreError> {
    // Most layers are asked for a file that they do not have, and opening costs more than looking.
    match rustix::fs::statat(home.directory(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        result => result.map(drop).context("look at", home.path().join(name))?,
    }
    let path = home.path().join(name);
    let file = home.open(name, OFlags::RDONLY).context("open", &path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).context("read", &path)?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be read; it counts as missing");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn table() -> Vec<u8> {
        crate::layer::builder::LayerBuilder::new().finish([0; 32], &[]).unwrap()
    }

    #[test]
    fn what_is_recorded_of_a_layer_is_read_by_whoever_opens_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(DIGEST).unwrap();
        let provenance = Provenance {
            format: "tar+gzip".to_owned(),
            index: TableSource::Stream { because: "it has none".to_owned() },
            made_at: 7,
            landmark: Some(5),
        };
        let draft = layer.create().unwrap();
        draft.provenance(&provenance).unwrap();
        let made = draft.publish(&table(), Some(0)).unwrap();
        let opened = || layer.open().unwrap().unwrap();
        assert_eq!(opened().provenance().unwrap(), Some(provenance));
        assert_eq!(opened().verdict().unwrap(), None);
        for verdict in [Verdict::Proved { at: 5 }, Verdict::Poisoned { at: 6, reason: "\"/a\" lies".into() }]
        {
            assert!(!opened().chunk_map.unwrap().is_poisoned());
            made.record_verdict(verdict.clone()).unwrap();
            assert_eq!(opened().verdict().unwrap(), Some(verdict));
        }
        assert!(opened().chunk_map.unwrap().is_poisoned(), "it is told to those who have it open");
    }

    #[test]
    fn a_layer_that_is_made_again_has_no_verdict() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(DIGEST).unwrap();
        let old = layer.create().unwrap().publish(&table(), Some(0)).unwrap();
        old.record_verdict(Verdict::Proved { at: 1 }).unwrap();
        layer.create().unwrap().replace(&table(), Some(0)).unwrap();
        assert_eq!(layer.open().unwrap().unwrap().verdict().unwrap(), None);
        // Who judges the files of the old one does not judge the new one.
        old.record_verdict(Verdict::Proved { at: 2 }).unwrap();
        assert_eq!(layer.open().unwrap().unwrap().verdict().unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_counts_as_not_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(DIGEST).unwrap();
        let files = layer.create().unwrap().publish(&table(), Some(0)).unwrap();
        for text in ["", "{", r#"{"state":"of a later version"}"#, "[1]"] {
            std::fs::write(layer.path().join(VERDICT), text).unwrap();
            assert_eq!(files.verdict().unwrap(), None, "{text}");
        }
    }
}

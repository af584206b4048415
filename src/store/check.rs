//! Looks at all that is kept here, byte by byte and without the network, and on request drops what is not what it should be: whatever
//! the store holds can be made or fetched again.
//!
//! | what | is held against | if it does not match |
//! | --- | --- | --- |
//! | blob | the digest that is its name | removed; an image that needs it is resolved again |
//! | inode table of a layer | its checksum, and the name of its layer | the layer is removed, and made again at the next mount |
//! | chunk that counts as present | its digest in the table | counts as missing, and is fetched again when it is read |
//! | merged tree | its checksum, and its name | removed, and made again at the next mount |
//! | records | SQLite's own rules; the blobs that images name | set aside, and begun anew with what can be found again; the image is forgotten, and resolved again |
//!
//! It may run while others use the store: each thing is looked at as a reader does, and what changes meanwhile is passed over. What
//! is dropped under a mount that uses it is missed there only when it is read, and fetched again then.

mod layers;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256, Sha512};

use super::digest::{DigestName, is_lower_hex};
use super::error::{Context, StoreError};
use super::{INGEST, Store};
use crate::table::Table;

/// Bytes that are read and hashed at once.
const READ_AT_ONCE: usize = 256 << 10;

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Blobs in `content/`.
    pub blobs: u64,
    /// Layers.
    pub layers: u64,
    /// Chunks of layers that count as present.
    pub chunks: u64,
    /// Of those, the ones whose digest is that of the blob's bytes, which are not kept (SOCI): nothing here tells whether they are whole.
    pub chunks_without_digest: u64,
    /// Merged trees.
    pub trees: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, in the order in which it was found.
    pub findings: Vec<Finding>,
}

/// Something that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The file or directory concerned.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// Whether it was dropped.
    pub is_repaired: bool,
}

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A blob that has not the digest that is its name.
    AlteredBlob,
    /// A layer whose files are missing or not whole.
    DamagedLayer,
    /// Chunks that count as present and have other bytes.
    AlteredChunks,
    /// A merged tree that is not whole.
    DamagedTree,
    /// Records that contradict each other, or cannot be read.
    DamagedRecords,
    /// An image whose manifest or config is not there.
    MissingDocument,
    /// A cache record whose snapshot, or what was kept with it, is not there.
    RecordWithoutData,
    /// A snapshot, or a file, that belongs to no cache record.
    DataWithoutRecord,
    /// A cache record that was made of one that is not there.
    DanglingParent,
    /// Something that the store does not put there. It is left alone.
    Stranger,
}

impl FindingKind {
    /// The word for it in output.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::AlteredBlob => "altered-blob",
            FindingKind::DamagedLayer => "damaged-layer",
            FindingKind::AlteredChunks => "altered-chunks",
            FindingKind::DamagedTree => "damaged-tree",
            FindingKind::DamagedRecords => "damaged-records",
            FindingKind::MissingDocument => "missing-document",
            FindingKind::RecordWithoutData => "record-without-data",
            FindingKind::DataWithoutRecord => "data-without-record",
            FindingKind::DanglingParent => "dangling-parent",
            FindingKind::Stranger => "stranger",
        }
    }

    /// What repairing it does.
    pub fn remedy(self) -> &'static str {
        match self {
            FindingKind::AlteredBlob => "removed; fetched again when an image needs it",
            FindingKind::DamagedLayer => "removed; made again when an image with it is next mounted",
            FindingKind::AlteredChunks => "discarded; fetched again when they are read",
            FindingKind::DamagedTree => "removed; made again when the image is next mounted",
            FindingKind::DamagedRecords => {
                "set aside, and begun anew with what can be read of them and what is noted of images"
            }
            FindingKind::MissingDocument => "forgotten; resolved again when it is next used",
            FindingKind::RecordWithoutData => {
                "removed, with all that was made of it: what was written is lost"
            }
            FindingKind::DataWithoutRecord => {
                "removed if it was empty, else recorded again; `peel records --filter mutable=true` lists it"
            }
            FindingKind::DanglingParent => "removed, with all that was made of it",
            FindingKind::Stranger => "left alone: it is none of the store's",
        }
    }
}

/// One check in progress.
struct Check<'a> {
    store: &'a Store,
    repairs: bool,
    report: CheckReport,
    buffer: Vec<u8>,
}

impl Store {
    /// Looks at everything, as the head of this file says; with `repairs`, drops what is wrong. Reads all that is here, so it takes as long
    /// as the disk needs for that.
    ///
    /// # Errors
    /// If the store cannot be read or, with `repairs`, written at all. A file that the disk cannot read is a finding.
    pub fn check(&self, repairs: bool) -> Result<CheckReport, StoreError> {
        let report = CheckReport::default();
        let mut check = Check { store: self, repairs, report, buffer: vec![0; READ_AT_ONCE] };
        check.blobs()?;
        check.layers()?;
        check.trees()?;
        // Last, as images may have lost their documents by now.
        check.records()?;
        Ok(check.report)
    }
}

impl Check<'_> {
    /// Notes a finding, and repairs it if that is wanted. `repair` says whether it could.
    fn found(
        &mut self,
        kind: FindingKind,
        path: &Path,
        what: impl Into<String>,
        repair: impl FnOnce() -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let is_repaired = self.repairs && repair()?;
        self.report.findings.push(Finding { kind, path: path.to_owned(), what: what.into(), is_repaired });
        Ok(())
    }

    fn stranger(&mut self, path: &Path) -> Result<(), StoreError> {
        self.found(FindingKind::Stranger, path, "it is nothing that the store makes", || Ok(false))
    }

    fn blobs(&mut self) -> Result<(), StoreError> {
        let content = self.store.content();
        let blobs = content.directory.join("blobs");
        for (name, path) in self.named_by_digests(&blobs)? {
            let actual = match self.digest_of(&name, &path) {
                Ok(actual) => actual,
                // Another process has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
            };
            self.report.blobs += 1;
            let what = match actual {
                Ok(actual) if actual == name => continue,
                Ok(actual) => format!("its bytes have the digest {actual}"),
                Err(error) => format!("it cannot be read: {error}"),
            };
            self.found(FindingKind::AlteredBlob, &path, what, || remove_file(&path))?;
        }
        Ok(())
    }

    fn trees(&mut self) -> Result<(), StoreError> {
        let directory = self.store.trees().directory().to_owned();
        for (name, path) in entries(&directory)? {
            if name == INGEST {
                continue;
            }
            let Some(identity) = identity_of(&name) else {
                self.stranger(&path)?;
                continue;
            };
            self.report.trees += 1;
            let opened = File::open(&path).map_err(|error| error.to_string());
            let what = match opened.and_then(|file| {
                self.report.bytes += file.metadata().map_or(0, |metadata| metadata.len());
                Table::open(&file, &identity).map_err(|error| error.to_string())
            }) {
                Ok(_) => continue,
                Err(what) => what,
            };
            self.found(FindingKind::DamagedTree, &path, what, || remove_file(&path))?;
        }
        Ok(())
    }

    fn records(&mut self) -> Result<(), StoreError> {
        let database = self.store.database();
        let path = self.store.path().join("peel.db");
        let faults = database.faults()?;
        if !faults.is_empty() {
            let what = faults.join("; ");
            return self
                .found(FindingKind::DamagedRecords, &path, what, || database.begin_anew().map(|()| true));
        }
        for image in database.images()? {
            for (what, digest) in [("manifest", &image.manifest_digest), ("config", &image.config_digest)] {
                if self.store.content().has(digest)? {
                    continue;
                }
                let what = format!("image {} has no {what} {digest}", image.reference);
                self.found(FindingKind::MissingDocument, &path, what, || {
                    database.forget_image(&image.reference, &image.platform)
                })?;
                break;
            }
        }
        Ok(())
    }

    /// What lies in `directory/<algorithm>/<hex>`, by its digest.
    fn named_by_digests(&mut self, directory: &Path) -> Result<Vec<(DigestName, PathBuf)>, StoreError> {
        let mut found = Vec::new();
        for algorithm in DigestName::algorithm_directories() {
            for (name, path) in entries(&directory.join(algorithm))? {
                match DigestName::parse(&format!("{algorithm}:{name}")) {
                    Ok(digest) => found.push((digest, path)),
                    Err(_) => self.stranger(&path)?,
                }
            }
        }
        Ok(found)
    }

    /// The digest of a file's bytes, by the algorithm of `name`.
    fn digest_of(&mut self, name: &DigestName, path: &Path) -> io::Result<Result<DigestName, String>> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::like(name);
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(Ok(hasher.finish())),
                Ok(length) => {
                    hasher.update(&self.buffer[..length]);
                    self.report.bytes += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    }
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn like(name: &DigestName) -> Hasher {
        if name.is_sha512() { Hasher::Sha512(Sha512::new()) } else { Hasher::Sha256(Sha256::new()) }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> DigestName {
        match self {
            Hasher::Sha256(hasher) => DigestName::of_sha256(&hasher.finalize()),
            Hasher::Sha512(hasher) => DigestName::of_sha512(&hasher.finalize()),
        }
    }
}

/// The names in a directory, sorted, and their paths; none if it is not there.
fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let listed = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.context("list", directory)?,
    };
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry.context("list", directory)?;
        // A name that is not UTF-8 is none of ours, and its replacement is none either.
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// The identity that a merged tree's name spells.
fn identity_of(name: &str) -> Option<[u8; 32]> {
    if name.len() != 64 || !is_lower_hex(name) {
        return None;
    }
    let mut identity = [0; 32];
    for (byte, digits) in identity.iter_mut().zip(name.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(identity)
}

fn remove_file(path: &Path) -> Result<bool, StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        removed => removed.map(|()| true).context("remove", path),
    }
}

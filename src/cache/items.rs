//! Data that are kept with a record under a name: its table of contents, what its archive needs beside its files, a profile of its
//! use. Short ones lie in the database, long ones in files of their own; which, nobody need know.

use std::io::Read;

use super::CacheError;
use super::leases::check_name;
use super::refs::{ImmutableRef, present};
use crate::store::StoreError;
use crate::store::record_tables::{ItemPlace, RecordItem};

/// Longest data, in bytes.
pub const MAXIMUM_ITEM: u64 = 512 << 20;
/// Longest in the database: a few of its pages.
const LONGEST_IN_DATABASE: usize = 16 << 10;

impl ImmutableRef {
    /// Keeps data with the record, instead of what had that name before. They are on disk when this returns.
    pub fn set_item(&self, key: &str, bytes: &[u8]) -> Result<(), CacheError> {
        check_name("name of a record's data", key)?;
        let size = bytes.len() as u64;
        if size > MAXIMUM_ITEM {
            return Err(CacheError::ItemTooLarge { key: key.to_owned(), size, most: MAXIMUM_ITEM });
        }
        let items = self.cache().store().items();
        let file = (bytes.len() > LONGEST_IN_DATABASE).then(|| items.create(bytes)).transpose()?;
        let place = match &file {
            Some(file) => ItemPlace::File(file.name().to_owned()),
            None => ItemPlace::Bytes(bytes.to_vec()),
        };
        let item = RecordItem { key: key.to_owned(), place };
        let before = self.cache().write_durably("keep data with a record", |tables| {
            present(tables, self.id())?;
            Ok(tables.set_item(self.id(), &item)?)
        })?;
        drop(file);
        if let Some(RecordItem { place: ItemPlace::File(old), .. }) = before {
            items.remove(&old)?;
        }
        Ok(())
    }

    /// Data that are kept with the record; nothing if there are none of that name.
    pub fn item(&self, key: &str) -> Result<Option<Vec<u8>>, CacheError> {
        loop {
            let find =
                || self.cache().read("find data of a record", |tables| Ok(tables.item(self.id(), key)?));
            let name = match find()? {
                None => return Ok(None),
                Some(RecordItem { place: ItemPlace::Bytes(bytes), .. }) => return Ok(Some(bytes)),
                Some(RecordItem { place: ItemPlace::File(name), .. }) => name,
            };
            let path = || self.cache().store().path().join("items").join(&name);
            if let Some(file) = self.cache().store().items().open(&name)? {
                let mut bytes = Vec::new();
                file.take(MAXIMUM_ITEM)
                    .read_to_end(&mut bytes)
                    .map_err(|error| StoreError::from_io("read", path(), error))?;
                return Ok(Some(bytes));
            }
            // It may have been replaced since.
            if find()?.is_some_and(|item| item.place == ItemPlace::File(name.clone())) {
                return Err(StoreError::Damaged { path: path(), reason: "it is gone".to_owned() }.into());
            }
        }
    }

    /// The names of the data that are kept with the record.
    pub fn item_keys(&self) -> Result<Vec<String>, CacheError> {
        self.cache().read("list a record's data", |tables| {
            Ok(tables.items(self.id())?.into_iter().map(|item| item.key).collect())
        })
    }
}

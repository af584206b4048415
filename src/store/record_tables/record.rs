//! A cache record and its parts, as they are kept.

use std::fmt;
use std::io::Read;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};

use super::super::digest::is_lower_hex;
use super::super::error::{Context, StoreError};
use super::super::records::LayerState;

/// Name of a record, for ever: 32 lower-case hexadecimal digits, at random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(String);

impl RecordId {
    const DIGITS: usize = 32;

    /// One that nobody has.
    pub fn random() -> Result<RecordId, StoreError> {
        random_hex().map(RecordId)
    }

    /// Reads a whole id; nothing if it is none.
    pub fn parse(text: &str) -> Option<RecordId> {
        (text.len() == RecordId::DIGITS && is_lower_hex(text)).then(|| RecordId(text.to_owned()))
    }

    /// Whether an id may begin like this.
    pub fn is_prefix(text: &str) -> bool {
        text.len() <= RecordId::DIGITS && is_lower_hex(text)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// 128 random bits, as 32 lower-case hexadecimal digits.
pub(in crate::store) fn random_hex() -> Result<String, StoreError> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; 16];
    std::fs::File::open(SOURCE).and_then(|mut file| file.read_exact(&mut bytes)).context("read", SOURCE)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// What a record was made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A layer on nothing.
    Base,
    /// A layer on its parent.
    Layer {
        /// What is below.
        parent: RecordId,
    },
    /// Records laid over each other.
    Merge {
        /// The lowest first; two at least.
        parents: Vec<RecordId>,
    },
    /// What has to be done to the lower to get the upper. An absent one is the empty tree.
    Diff {
        /// What is there before.
        lower: Option<RecordId>,
        /// What is there after.
        upper: Option<RecordId>,
    },
}

impl RecordKind {
    /// What it was made of, in order. Of a diff: lower, then upper.
    pub fn parents(&self) -> impl Iterator<Item = &RecordId> {
        self.positions().into_iter().map(|(_, parent)| parent)
    }

    /// The word for it, in the database and in output.
    pub fn name(&self) -> &'static str {
        match self {
            RecordKind::Base => "base",
            RecordKind::Layer { .. } => "layer",
            RecordKind::Merge { .. } => "merge",
            RecordKind::Diff { .. } => "diff",
        }
    }

    /// The parents with their positions.
    pub(super) fn positions(&self) -> Vec<(i64, &RecordId)> {
        match self {
            RecordKind::Base => vec![],
            RecordKind::Layer { parent } => vec![(0, parent)],
            RecordKind::Merge { parents } => (0..).zip(parents).collect(),
            RecordKind::Diff { lower, upper } => {
                let lower = lower.iter().map(|lower| (0, lower));
                lower.chain(upper.iter().map(|upper| (1, upper))).collect()
            }
        }
    }

    /// The kind of that name with these parents; nothing if they do not go together.
    pub(super) fn from_parts(name: &str, mut parents: Vec<(i64, RecordId)>) -> Option<RecordKind> {
        match (name, parents.len()) {
            ("base", 0) => Some(RecordKind::Base),
            ("layer", 1) => Some(RecordKind::Layer { parent: parents.pop()?.1 }),
            ("merge", _) => {
                Some(RecordKind::Merge { parents: parents.into_iter().map(|(_, parent)| parent).collect() })
            }
            ("diff", ..=2) => {
                let mut at = |position| {
                    let place = parents.iter().position(|(other, _)| *other == position)?;
                    Some(parents.swap_remove(place).1)
                };
                Some(RecordKind::Diff { lower: at(0), upper: at(1) })
            }
            _ => None,
        }
    }
}

/// Defines an enum whose values have names, in the database and in output.
macro_rules! named {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl $name {
            /// All there are.
            pub const ALL: &[$name] = &[$($name::$value),+];

            /// The word for it, in the database and in output.
            pub fn name(self) -> &'static str {
                match self { $($name::$value => $text,)+ }
            }

            /// The one of that name.
            pub fn named(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|known| known.name() == name)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.name().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<$name> {
                $name::named(value.as_str()?).ok_or(FromSqlError::InvalidType)
            }
        }
    };
}

named! {
    /// What a record is for, which decides how long it is kept.
    RecordType {
        /// Anything else.
        Regular = "regular",
        /// Made by this program for itself; removed only when all is asked for.
        Internal = "internal",
        /// Something that builds others; removed only when all is asked for.
        Frontend = "frontend",
        /// A copy of local files, to build from.
        LocalSource = "source.local",
        /// A copy of a repository.
        GitCheckout = "source.git.checkout",
        /// A directory that outlives the step that uses it.
        CacheMount = "exec.cachemount",
    }
}

named! {
    /// What happens to a mutable record when its ref is released.
    Retention {
        /// It is removed.
        Default = "default",
        /// It stays, until it is removed for want of space.
        Retain = "retain",
    }
}

impl ToSql for RecordId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for RecordId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<RecordId> {
        RecordId::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

/// A layer's blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
}

/// What the store knows of a layer, or of what layers were made into. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// Its name.
    pub id: RecordId,
    /// What it was made of.
    pub kind: RecordKind,
    /// What it is, for people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Whether it outlives its ref while it is mutable.
    pub retention: Retention,
    /// When it was made.
    pub created_at: i64,
    /// When the last ref that counted as use was released; nothing if none was.
    pub last_used: Option<i64>,
    /// How often that happened.
    pub use_count: u64,
    /// Names its stack of layers by their diff IDs (OCI image specification, config.md, "Layer ChainID").
    pub chain_id: Option<String>,
    /// The same, by blob digests and diff IDs: other compressions have other ones.
    pub blob_chain_id: Option<String>,
    /// Digest of its own layer, uncompressed; claimed unless [`is_proved`](Self::is_proved).
    pub diff_id: Option<String>,
    /// Whether its data were held against the diff ID before it was recorded; afterwards, the layer's directory says that.
    pub is_proved: bool,
    /// Its own layer's blob.
    pub blob: Option<LayerBlob>,
    /// Digest of the layer's table of contents.
    pub toc_digest: Option<String>,
    /// Name of the layer that has its data ([`LayerStore::layer`](crate::store::LayerStore::layer)); several records may have one.
    pub layer: Option<String>,
    /// The snapshot that has its data ([`Snapshots`](crate::store::Snapshots)).
    pub snapshot: Option<RecordId>,
    /// Bytes of its own data on disk, if they are known.
    pub size: Option<u64>,
    /// How much of it is here, if its data are in a snapshot. Of a layer, its directory says that.
    pub state: LayerState,
    /// Whether it may be changed, by the one who holds it.
    pub is_mutable: bool,
    /// Whether it is never brought to disk.
    pub is_volatile: bool,
    /// Whether it is being removed: nobody finds it any more.
    pub is_deleted: bool,
    /// The mutable record whose snapshot has its data, until it is finalized.
    pub equal_mutable: Option<RecordId>,
    /// The boot of the machine in which its data were written, if they need not be on disk.
    pub boot: Option<String>,
}

impl CacheRecord {
    /// A record of which nothing is known yet.
    pub fn new(id: RecordId, kind: RecordKind, created_at: i64) -> CacheRecord {
        CacheRecord {
            id,
            kind,
            description: String::new(),
            record_type: RecordType::Regular,
            retention: Retention::Default,
            created_at,
            last_used: None,
            use_count: 0,
            chain_id: None,
            blob_chain_id: None,
            diff_id: None,
            is_proved: false,
            blob: None,
            toc_digest: None,
            layer: None,
            snapshot: None,
            size: None,
            state: LayerState::Lazy,
            is_mutable: false,
            is_volatile: false,
            is_deleted: false,
            equal_mutable: None,
            boot: None,
        }
    }
}

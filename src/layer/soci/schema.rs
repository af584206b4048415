//! The flatbuffer tables of a zTOC (soci-snapshotter, `ztoc/fbs/ztoc.fbs`), read in place. The only unsafe file of this format.
//!
//! Strings are read as vectors of bytes, which is what they are: names, link targets and values of attributes hold any bytes, and the
//! reference writes them as they are.
//!
//! Why it is sound: a table is only ever made by [`root`] or by following a field of another table, after the library's verifier has
//! walked over all fields that the accessors below name, with the types that they name. The verifier and the accessor of a table are
//! made of one list ([`table!`]), so they cannot differ.

use flatbuffers::{
    Follow, ForwardsUOffset, InvalidFlatbuffer, Table, VOffsetT, Vector, Verifiable, Verifier,
    VerifierOptions,
};

/// What a vector or a string of any bytes is in the buffer.
type ByteVector<'a> = ForwardsUOffset<Vector<'a, u8>>;
/// A vector of tables or of strings.
type VectorOf<'a, T> = ForwardsUOffset<Vector<'a, ForwardsUOffset<T>>>;

/// Place of a field in the vtable, by its number in the schema.
pub(super) const fn slot(number: VOffsetT) -> VOffsetT {
    4 + 2 * number
}

/// A table of the schema: for each field its number, its name, what it is in the buffer, and what the accessor gives. A field that
/// is not there is `None`.
macro_rules! table {
    ($(#[$documentation:meta])* $name:ident { $($number:literal $field:ident: $stored:ty => $given:ty,)* }) => {
        $(#[$documentation])*
        #[derive(Clone, Copy)]
        pub(super) struct $name<'a>(Table<'a>);

        impl<'a> $name<'a> {
            $(pub fn $field(&self) -> Option<$given> {
                // SAFETY: see the head of this file; the verifier checked this field as this type.
                unsafe { self.0.get::<$stored>(slot($number), None) }
            })*
        }

        impl<'a> Follow<'a> for $name<'a> {
            type Inner = $name<'a>;

            unsafe fn follow(buffer: &'a [u8], place: usize) -> $name<'a> {
                // SAFETY: the caller's promise, that a table of this kind was verified at this place.
                $name(unsafe { Table::new(buffer, place) })
            }
        }

        impl Verifiable for $name<'_> {
            fn run_verifier(verifier: &mut Verifier, place: usize) -> Result<(), InvalidFlatbuffer> {
                verifier
                    .visit_table(place)?
                    $(.visit_field::<$stored>(stringify!($field), slot($number), false)?)*
                    .finish();
                Ok(())
            }
        }
    };
}

table! {
    /// `Xattr`: a PAX record.
    Record {
        0 key: ByteVector => Vector<'a, u8>,
        1 value: ByteVector => Vector<'a, u8>,
    }
}

table! {
    /// `FileMetadata`.
    File {
        0 name: ByteVector => Vector<'a, u8>,
        1 kind: ByteVector => Vector<'a, u8>,
        2 uncompressed_offset: i64 => i64,
        3 uncompressed_size: i64 => i64,
        4 link_name: ByteVector => Vector<'a, u8>,
        5 mode: i64 => i64,
        6 uid: u32 => u32,
        7 gid: u32 => u32,
        8 user_name: ByteVector => Vector<'a, u8>,
        9 group_name: ByteVector => Vector<'a, u8>,
        10 modified: ByteVector => Vector<'a, u8>,
        11 device_major: i64 => i64,
        12 device_minor: i64 => i64,
        13 records: VectorOf<Record> => Vector<'a, ForwardsUOffset<Record<'a>>>,
    }
}

table! {
    /// `CompressionInfo`.
    Compression {
        0 algorithm: i8 => i8,
        1 max_span_id: i32 => i32,
        2 span_digests: VectorOf<Vector<u8>> => Vector<'a, ForwardsUOffset<Vector<'a, u8>>>,
        3 checkpoints: ByteVector => Vector<'a, u8>,
    }
}

table! {
    /// `TOC`.
    Toc {
        0 metadata: VectorOf<File> => Vector<'a, ForwardsUOffset<File<'a>>>,
    }
}

table! {
    /// `Ztoc`, the root.
    Root {
        0 version: ByteVector => Vector<'a, u8>,
        1 build_tool: ByteVector => Vector<'a, u8>,
        2 compressed_size: i64 => i64,
        3 uncompressed_size: i64 => i64,
        4 toc: ForwardsUOffset<Toc> => Toc<'a>,
        5 compression: ForwardsUOffset<Compression> => Compression<'a>,
    }
}

/// The verified root table of these bytes.
///
/// # Errors
/// If they are no such flatbuffer, or one that is much larger when each of its parts is counted as often as it is pointed at:
/// all that is built from what the accessors give is then bounded by a multiple of the length of `bytes`.
pub(super) fn root(bytes: &[u8]) -> Result<Root<'_>, InvalidFlatbuffer> {
    // A table without strings of its own takes 16 bytes with what points at it. The parts that a writer shares are those that
    // take few bytes: vtables, and names of types and owners.
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: bytes.len() / 16 + 8,
        max_apparent_size: bytes.len().saturating_mul(3).saturating_add(64 << 10),
        ignore_missing_null_terminator: true,
    };
    flatbuffers::root_with_opts::<Root>(&options, bytes)
}

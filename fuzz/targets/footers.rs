//! The way to a table of contents (`layer/lookup.rs`, both `footer.rs`, `claims.rs`): whatever annotations and the end of a blob say,
//! only bytes within the blob are asked for.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use peelfs::layer::estargz::{Footer, TOC_DIGEST_ANNOTATION};
use peelfs::layer::lookup::{Lookup, TocPlace};
use peelfs::layer::zstd_chunked::{self, Place};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    blob_size: Size,
    toc_digest: Text<'a>,
    /// For each dialect.
    prefixed: [Prefixed<'a>; 2],
    tail: Tail<'a>,
}

#[derive(Arbitrary, Debug)]
struct Prefixed<'a> {
    checksum: Text<'a>,
    position: Text<'a>,
    tar_split: Text<'a>,
    tar_split_checksum: Text<'a>,
}

#[derive(Arbitrary, Debug)]
enum Size {
    Tail,
    Small(u16),
    Any(u64),
}

/// An annotation.
#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Missing,
    Digest(u8),
    Numbers([u16; 3]),
    LargeNumbers([u64; 4]),
    Any(&'a str),
}

/// The end of a blob.
#[derive(Arbitrary, Debug)]
enum Tail<'a> {
    Any(&'a [u8]),
    Estargz { toc_offset: u64, is_legacy: bool },
    Stargz([u64; 4]),
    Podman([u64; 7]),
}

impl Text<'_> {
    fn value(&self) -> Option<String> {
        match self {
            Text::Missing => None,
            Text::Digest(byte) => Some(format!("sha256:{}", format!("{byte:02x}").repeat(32))),
            Text::Numbers([a, b, c]) => Some(format!("{a}:{b}:{c}:1")),
            Text::LargeNumbers([a, b, c, d]) => Some(format!("{a}:{b}:{c}:{d}")),
            Text::Any(text) => Some((*text).to_owned()),
        }
    }
}

impl Tail<'_> {
    fn bytes(&self) -> Vec<u8> {
        let skippable = |numbers: &[u64]| {
            let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            [&[0x50, 0x2a, 0x4d, 0x18], &(data.len() as u32 + 8).to_le_bytes()[..], &data, b"GnUlInUx"]
                .concat()
        };
        match self {
            Tail::Any(bytes) => bytes.to_vec(),
            Tail::Estargz { toc_offset, is_legacy } => {
                use peelfs_fuzz::support::blob::{Footer, footer};
                footer(*toc_offset, if *is_legacy { Footer::Legacy } else { Footer::Modern })
            }
            Tail::Stargz(numbers) => skippable(numbers),
            Tail::Podman(numbers) => skippable(numbers),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let tail = input.tail.bytes();
    let blob_size = match input.blob_size {
        Size::Tail => tail.len() as u64,
        Size::Small(size) => size.into(),
        Size::Any(size) => size,
    };
    match Footer::parse(&tail, blob_size) {
        Some(Footer::Internal { toc_offset, toc_length }) => {
            let end = toc_offset.checked_add(toc_length).expect("beyond the numbers");
            assert!(
                toc_length > 0 && [47, 51].contains(&(blob_size - end)),
                "a TOC that does not end at the footer"
            );
        }
        Some(Footer::External { payload_end }) => assert_eq!(blob_size - payload_end, 46),
        None => {}
    }
    if let Some(positions) = zstd_chunked::parse_footer(&tail) {
        let places = [Some(positions.toc), positions.tar_split].into_iter().flatten();
        places.for_each(|place| check_place(place, blob_size));
        if let Ok(range) = positions.toc_range(blob_size) {
            assert!(range.start <= range.end && range.end <= blob_size);
        }
    }
    let mut annotations = BTreeMap::new();
    let mut annotate = |name: String, text: &Text<'_>| {
        if let Some(value) = text.value() {
            annotations.insert(name, value);
        }
    };
    annotate(TOC_DIGEST_ANNOTATION.to_owned(), &input.toc_digest);
    for (prefix, texts) in ["io.github.containers.", "io.containers."].iter().zip(&input.prefixed) {
        annotate(format!("{prefix}zstd-chunked.manifest-checksum"), &texts.checksum);
        annotate(format!("{prefix}zstd-chunked.manifest-position"), &texts.position);
        annotate(format!("{prefix}zstd-chunked.tarsplit-position"), &texts.tar_split);
        annotate(format!("{prefix}zstd-chunked.tarsplit-checksum"), &texts.tar_split_checksum);
    }
    let Ok(Some(lookup)) = Lookup::new(&annotations, blob_size) else { return };
    let first = lookup.first_range();
    assert!(first.start <= first.end && first.end <= blob_size, "{first:?} of {blob_size}");
    if let Ok(Some(located)) = lookup.locate(&tail) {
        if let TocPlace::Blob(range) = located.place() {
            assert!(range.start <= range.end && range.end <= blob_size, "{range:?} of {blob_size}");
        }
        assert!(located.read_toc(&tail).is_err(), "a TOC that nobody wrote");
    }
});

fn check_place(place: Place, blob_size: u64) {
    if let Some(range) = place.range(blob_size) {
        assert!(range.start >= 8 && range.start <= range.end && range.end <= blob_size);
        assert_eq!(range.end - range.start, place.compressed_length);
    }
}

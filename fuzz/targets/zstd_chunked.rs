//! zstd:chunked (`layer/zstd_chunked.rs`, `layer/toc.rs`): a blob whose TOC the manifest vouches for, in either dialect. What the TOC
//! says of its files holds together, and each chunk decodes to what its digest vouches for or not at all.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use peelfs::layer::estargz::TOC_DIGEST_ANNOTATION;
use peelfs::layer::lookup::{Lookup, TocPlace};
use peelfs_fuzz::toc::{check, zstd_frame};
use peelfs_fuzz::{choice, digest_text, number, seeds};

/// What is before the data of a skippable frame.
const HEADER: u64 = 8;

fuzz_target!(init: seeds::plant(seeds::zstd_chunked), |bytes: &[u8]| {
    let mut bytes = bytes;
    let way = choice(&mut bytes);
    let longest = bytes.len();
    let split = number(&mut bytes, longest).min(bytes.len());
    let (json, payloads) = bytes.split_at(bytes.len() - split);
    // The TOC may be a frame of the input's own; it must say then what it decodes to.
    let frame = if way & 1 == 0 { zstd_frame(json) } else { json.to_vec() };
    let decoded = match way & 1 {
        0 => json.to_vec(),
        _ => zstd::bulk::decompress(json, 1 << 20).unwrap_or_default(),
    };
    let mut blob = payloads.to_vec();
    let toc_offset = append_skippable(&mut blob, &frame);
    let tar_split = b"tar-split";
    let tar_split_offset = append_skippable(&mut blob, tar_split);
    let numbers = [toc_offset, frame.len() as u64, decoded.len() as u64, 1];
    let of_tar_split = [tar_split_offset, tar_split.len() as u64, 100];
    // No more than a number that the podman family writes and the stargz project does not.
    let is_podman = way & 2 == 0;
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    if is_podman {
        footer.extend(of_tar_split.iter().flat_map(|number| number.to_le_bytes()));
    }
    footer.extend_from_slice(b"GnUlInUx");
    append_skippable(&mut blob, &footer);

    let prefix = if is_podman { "io.github.containers" } else { "io.containers" };
    let name = |name: &str| format!("{prefix}.zstd-chunked.{name}");
    let mut annotations = BTreeMap::from([(name("manifest-checksum"), digest_text(&frame))]);
    if way & 4 == 0 {
        let [offset, compressed, decoded, kind] = numbers;
        annotations.insert(name("manifest-position"), format!("{offset}:{compressed}:{decoded}:{kind}"));
    }
    if way & 8 == 0 {
        annotations.insert(TOC_DIGEST_ANNOTATION.to_owned(), digest_text(&decoded));
    }
    let size = blob.len() as u64;
    let lookup = Lookup::new(&annotations, size).expect("it is in the blob").expect("it is annotated");
    let range = lookup.first_range();
    let located = lookup.locate(&blob[range.start as usize..range.end as usize]);
    let located = located.expect("it is in the blob").expect("there is a footer");
    let TocPlace::Blob(range) = located.place().clone() else { panic!("its footer is not that of another blob's TOC") };
    assert_eq!(range, toc_offset..toc_offset + frame.len() as u64);
    if let Ok(toc) = located.read_toc(&blob[range.start as usize..range.end as usize]) {
        check(&toc, &blob, toc_offset - HEADER);
    }
});

/// Gives where the data begin.
fn append_skippable(blob: &mut Vec<u8>, data: &[u8]) -> u64 {
    blob.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
    blob.extend_from_slice(&(data.len() as u32).to_le_bytes());
    let offset = blob.len() as u64;
    blob.extend_from_slice(data);
    offset
}

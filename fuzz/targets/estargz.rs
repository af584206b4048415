//! eStargz (`layer/estargz.rs`, `layer/toc.rs`): a blob whose TOC the manifest vouches for. What the TOC says of its files holds
//! together, and each chunk decodes to what its digest vouches for or not at all.
#![no_main]

use std::collections::BTreeMap;
use std::io::Read;

use libfuzzer_sys::fuzz_target;
use peelfs::layer::estargz::TOC_DIGEST_ANNOTATION;
use peelfs::layer::lookup::{Lookup, TocPlace};
use peelfs_fuzz::support::blob::{Footer, footer};
use peelfs_fuzz::toc::{check, estargz_member};
use peelfs_fuzz::{choice, digest_text, number, seeds};

fuzz_target!(init: seeds::plant(seeds::estargz), |bytes: &[u8]| {
    let mut bytes = bytes;
    let way = choice(&mut bytes);
    let longest = bytes.len();
    let split = number(&mut bytes, longest).min(bytes.len());
    // The payloads come last: the offsets in the TOC are those of the blob, so they stay when the TOC grows.
    let (toc, payloads) = bytes.split_at(bytes.len() - split);
    let member = if way & 1 == 0 { estargz_member(toc) } else { toc.to_vec() };
    // Without the digest of an independent reader, there is no TOC to speak of.
    let Some(digest) = toc_digest(&member) else { return };
    // No payload begins at the first byte.
    let payloads = if payloads.is_empty() { b"\0" } else { payloads };
    let form = if way & 2 == 0 { Footer::Modern } else { Footer::Legacy };
    let blob = [payloads, &member, &footer(payloads.len() as u64, form)].concat();
    let annotations = BTreeMap::from([(TOC_DIGEST_ANNOTATION.to_owned(), digest)]);
    let size = blob.len() as u64;
    let lookup = Lookup::new(&annotations, size).expect("no place is annotated").expect("it is annotated");
    let range = lookup.first_range();
    let located = lookup.locate(&blob[range.start as usize..range.end as usize]);
    let located = located.expect("no place is annotated").expect("there is a footer");
    let TocPlace::Blob(range) = located.place().clone() else { panic!("its footer is not that of another blob's TOC") };
    assert_eq!(range, payloads.len() as u64..(payloads.len() + member.len()) as u64);
    if let Ok(toc) = located.read_toc(&blob[range.start as usize..range.end as usize]) {
        check(&toc, &blob, range.start);
    }
});

/// The digest of the JSON in a TOC, by flate2 and the tar crate.
fn toc_digest(member: &[u8]) -> Option<String> {
    let decoded = flate2::read::MultiGzDecoder::new(member).take(1 << 20);
    let mut archive = tar::Archive::new(decoded);
    let entry = archive.entries().ok()?.next()?.ok()?;
    let mut json = Vec::new();
    // What cannot be decoded to its end gets the digest of what can.
    let _ = entry.take(1 << 20).read_to_end(&mut json);
    Some(digest_text(&json))
}

//! Ranged reads and streams give exactly the bytes asked for, whatever the host does.

use futures_util::{StreamExt, TryStreamExt};
use peelfs_registry::{Blob, BlobDescriptor, Client, Error, ErrorKind};
use std::ops::Range;

use super::{client, content, hasty_client, streamed};
use crate::support::registry::{FakeRegistry, Fault, WrongParts};

const SIZE: usize = 300_000;

fn blob(registry: &FakeRegistry, client: &Client, bytes: &[u8]) -> Blob {
    let digest = registry.put_blob(bytes);
    client.repository(&registry.reference("name", "tag")).unwrap().blob(digest, bytes.len() as u64)
}

#[tokio::test]
async fn a_range_costs_one_request_and_its_own_bytes() {
    let registry = FakeRegistry::start();
    let bytes = content(SIZE);
    let client = client();
    let blob = blob(&registry, &client, &bytes);
    for range in [0..1_u64, 100..5_000, 299_999..300_000] {
        registry.reset_counters();
        let before = client.statistics();
        assert_eq!(blob.read(range.clone()).await.unwrap(), bytes[range.start as usize..range.end as usize]);
        let length = range.end - range.start;
        assert_eq!((registry.counters().blobs, registry.counters().blob_bytes), (1, length));
        let after = client.statistics();
        assert_eq!(after.requests - before.requests, 1);
        assert_eq!(after.bytes_received - before.bytes_received, length);
    }
    registry.reset_counters();
    assert!(blob.read(7..7).await.unwrap().is_empty());
    assert_eq!(registry.counters().blobs, 0, "nothing is asked for to read nothing");
    for range in [0..300_001_u64, 300_001..300_001, u64::MAX - 1..u64::MAX] {
        assert_eq!(blob.read(range).await.unwrap_err().kind(), ErrorKind::InvalidRange);
    }
}

#[tokio::test]
async fn blobs_are_served_from_files_too() {
    let registry = FakeRegistry::start();
    let bytes = content(SIZE);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let digest = registry.put_blob_file(file.path());
    let blob = client().repository(&registry.reference("name", "tag")).unwrap().blob(digest, SIZE as u64);
    assert_eq!(blob.read(10..20).await.unwrap(), bytes[10..20]);
    assert_eq!(streamed(&blob, 0).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_host_that_ignores_ranges_is_read_through_and_remembered() {
    let registry = FakeRegistry::start();
    let bytes = content(SIZE);
    let client = client();
    let blob = blob(&registry, &client, &bytes);
    let sibling =
        client.repository(&registry.reference("other", "tag")).unwrap().blob(blob.digest().clone(), 1);
    assert!(blob.ranges_work() && sibling.ranges_work());
    registry.set_fault("blobs/", Fault::IgnoreRange);
    assert_eq!(blob.read(200_000..200_010).await.unwrap(), bytes[200_000..200_010]);
    assert!(!blob.ranges_work(), "the blob remembers");
    assert!(!blob.clone().ranges_work(), "its clones too");
    assert!(!sibling.ranges_work(), "and other blobs of the host");
    assert_eq!(streamed(&blob, 250_000).await.unwrap(), bytes[250_000..]);
    registry.clear_faults();
    assert_eq!(blob.read(5..6).await.unwrap(), bytes[5..6]);
    assert!(blob.ranges_work() && sibling.ranges_work(), "what works again is used again");
}

#[tokio::test]
async fn a_host_that_refuses_ranges_says_so_at_once_and_can_be_streamed() {
    for status in [400, 416, 501] {
        let registry = FakeRegistry::start();
        let bytes = content(SIZE);
        let blob = blob(&registry, &client(), &bytes);
        registry.set_fault("blobs/", Fault::Status(status));
        let error = blob.read(1..2).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RangeUnsupported, "{status}: {error:?}");
        assert_eq!(registry.counters().blobs, 1, "{status} is not retried");
        assert!(!blob.ranges_work(), "{status}");
        registry.clear_faults();
        // Having learnt, the stream does not ask for a range again.
        assert_eq!(streamed(&blob, 100_000).await.unwrap(), bytes[100_000..], "{status}");
        let last = registry.requests().pop().unwrap();
        assert_eq!(last.header("range"), None, "{status}");
    }
}

/// A small blob that is asked for as a range is the same blob, whatever the host makes of ranges, and tells what that is.
#[tokio::test]
async fn a_small_blob_asked_for_by_its_range_tells_whether_ranges_work() {
    let cases = [
        (None, 1, Some(true)),
        (Some(Fault::IgnoreRange), 1, None),
        (Some(Fault::IgnoreWholeRange), 1, None),
        (Some(Fault::RefuseRange(400)), 2, Some(false)),
        (Some(Fault::RefuseRange(501)), 2, Some(false)),
        // That may be said of this blob alone.
        (Some(Fault::RefuseRange(416)), 2, None),
    ];
    for (fault, requests, works) in cases {
        let (registry, client, bytes) = (FakeRegistry::start(), client(), content(SIZE));
        let repository = client.repository(&registry.reference("name", "tag")).unwrap();
        let descriptor = |bytes: &[u8]| BlobDescriptor {
            digest: registry.put_blob(bytes),
            size: bytes.len() as u64,
            media_type: "application/octet-stream".to_owned(),
            annotations: Default::default(),
            urls: Vec::new(),
        };
        let (small, sibling) = (descriptor(&bytes), repository.blob_of(&descriptor(b"sibling")));
        assert_eq!(sibling.range_support(), None);
        if let Some(fault) = &fault {
            registry.set_fault("blobs/", fault.clone());
        }
        assert_eq!(repository.small_blob_by_range(&small, SIZE as u64).await.unwrap(), bytes, "{fault:?}");
        assert_eq!(registry.counters().blobs, requests, "{fault:?}");
        assert_eq!(sibling.range_support(), works, "{fault:?}");
        let error = repository.small_blob_by_range(&small, SIZE as u64 - 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        registry.put_blob_as(&small.digest, vec![0; SIZE]);
        repository.small_blob_by_range(&small, SIZE as u64).await.unwrap_err();
        let empty = descriptor(b"");
        assert!(repository.small_blob_by_range(&empty, 0).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_stream_whose_range_is_refused_starts_over_and_skips() {
    let registry = FakeRegistry::start();
    let bytes = content(SIZE);
    let blob = blob(&registry, &client(), &bytes);
    registry.set_fault_times("blobs/", Fault::CutAfter(100_000), 1);
    registry.set_fault_times("blobs/", Fault::Status(501), 1);
    assert_eq!(streamed(&blob, 0).await.unwrap(), bytes);
    let ranges: Vec<_> =
        registry.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 3);
    assert!(ranges[0].is_none() && ranges[1].is_some() && ranges[2].is_none(), "{ranges:?}");
}

#[tokio::test]
async fn a_wrong_range_is_never_taken_for_the_right_one() {
    for fault in [Fault::WrongContentRange, Fault::NoContentRange, Fault::ContentEncoding, Fault::LongBody(1)]
    {
        let registry = FakeRegistry::start();
        let bytes = content(SIZE);
        let blob = blob(&registry, &client(), &bytes);
        registry.set_fault("blobs/", fault.clone());
        let error = blob.read(1_000..2_000).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{fault:?}: {error:?}");
        assert_eq!(registry.counters().blobs, 3, "{fault:?}: tried a few times, not for ever");
        registry.clear_faults();
        registry.set_fault_times("blobs/", fault, 1);
        assert_eq!(blob.read(1_000..2_000).await.unwrap(), bytes[1_000..2_000]);
    }
}

#[tokio::test]
async fn a_cut_body_is_resumed_where_it_stopped() {
    for fault in [Fault::CutAfter(70_000), Fault::ShortBody(70_000)] {
        let registry = FakeRegistry::start();
        let bytes = content(SIZE);
        let client = client();
        let blob = blob(&registry, &client, &bytes);
        registry.set_fault_times("blobs/", fault.clone(), 2);
        assert_eq!(blob.read(10..290_000).await.unwrap(), bytes[10..290_000]);
        assert_eq!(registry.counters().blob_bytes, 289_990, "{fault:?}: no byte came twice");
        assert_eq!(client.statistics().retries, 2);
        registry.reset_counters();
        registry.set_fault_times("blobs/", fault.clone(), 3);
        assert_eq!(streamed(&blob, 0).await.unwrap(), bytes);
        assert_eq!(registry.counters().blob_bytes, SIZE as u64, "{fault:?}: no byte came twice");
    }
}

#[tokio::test]
async fn fewer_or_more_bytes_than_the_blob_has_are_an_error() {
    let bytes = content(SIZE);
    for (what, fault) in [
        ("always too short", Fault::ShortBody(0)),
        ("a byte too long", Fault::LongBody(1)),
        ("a wrong Content-Length", Fault::WrongLength(1)),
    ] {
        let registry = FakeRegistry::start();
        let blob = blob(&registry, &hasty_client(), &bytes);
        registry.set_fault("blobs/", fault);
        let error = streamed(&blob, 0).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::BadResponse, "{what}: {error:?}");
    }
    // The descriptor lies about the size.
    for size in [SIZE as u64 - 1, SIZE as u64 + 1] {
        let registry = FakeRegistry::start();
        let digest = registry.put_blob(bytes.as_slice());
        let blob = client().repository(&registry.reference("name", "tag")).unwrap().blob(digest, size);
        assert_eq!(streamed(&blob, 0).await.unwrap_err().kind(), ErrorKind::BadResponse, "{size}");
        assert_eq!(blob.read(0..10).await.unwrap_err().kind(), ErrorKind::BadResponse, "{size}");
    }
}

#[tokio::test]
async fn redirected_reads_go_straight_to_the_storage_until_its_signature_expires() {
    let registry = FakeRegistry::start();
    registry.redirect_blobs(None);
    let bytes = content(SIZE);
    let blob = blob(&registry, &client(), &bytes);
    for start in 0..4_u64 {
        assert_eq!(blob.read(start..start + 10).await.unwrap(), bytes[start as usize..start as usize + 10]);
    }
    let counters = registry.counters();
    assert_eq!((counters.blobs, counters.storage), (1, 4), "the registry is asked once");
    registry.expire_signatures();
    assert_eq!(blob.read(50..60).await.unwrap(), bytes[50..60]);
    let counters = registry.counters();
    assert_eq!((counters.blobs, counters.storage), (2, 6), "an expired signature leads back to the registry");
    registry.set_fault_times("storage/", Fault::Status(400), 1);
    assert_eq!(blob.read(60..70).await.unwrap(), bytes[60..70]);
    assert!(blob.ranges_work(), "400 for an old signature says nothing about ranges");
    registry.redirect_blobs(Some(1));
    for start in 0..4_u64 {
        assert_eq!(blob.read(start..start + 10).await.unwrap(), bytes[start as usize..start as usize + 10]);
    }
    assert_eq!(streamed(&blob, 0).await.unwrap(), bytes);
}

async fn parts(blob: &Blob, ranges: &[Range<u64>]) -> Result<Vec<u8>, Error> {
    let pieces: Vec<_> = blob.parts(ranges).boxed().try_collect().await?;
    Ok(pieces.concat())
}

fn bytes_of(bytes: &[u8], ranges: &[Range<u64>]) -> Vec<u8> {
    ranges.iter().flat_map(|range| bytes[range.start as usize..range.end as usize].to_vec()).collect()
}

const APART: [Range<u64>; 3] = [0..10, 5_000..70_000, 200_000..300_000];

#[tokio::test]
async fn several_ranges_cost_one_request_and_hardly_more_than_their_bytes() {
    for redirects in [false, true] {
        let registry = FakeRegistry::start();
        if redirects {
            registry.redirect_blobs(None);
        }
        let bytes = content(SIZE);
        let blob = blob(&registry, &client(), &bytes);
        assert!(!blob.reads_parts(), "not before it is known that it reads by ranges");
        blob.read(0..1).await.unwrap();
        assert!(blob.reads_parts());
        let ranges = [&APART[..], &[3..4, 5..6, 6..7, 299_999..300_000]];
        for ranges in ranges {
            registry.reset_counters();
            assert_eq!(parts(&blob, ranges).await.unwrap(), bytes_of(&bytes, ranges));
            let counters = registry.counters();
            let wanted: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            assert_eq!(counters.blobs + counters.storage, 1, "{ranges:?}");
            assert!(counters.blob_bytes < wanted + 150 * ranges.len() as u64, "{ranges:?}");
        }
    }
    let registry = FakeRegistry::start();
    let blob = blob(&registry, &client(), &content(SIZE));
    assert!(parts(&blob, &[]).await.unwrap().is_empty());
    for ranges in [[5..6, 2..3], [5..6, 5..7], [1..1, 2..3], [1..2, 5..300_001]] {
        let error = parts(&blob, &ranges).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRange, "{ranges:?}");
    }
    assert_eq!(registry.counters().blobs, 0);
}

#[tokio::test]
async fn a_host_that_cannot_give_several_ranges_is_remembered_and_still_reads_by_ranges() {
    for fault in [
        Fault::IgnoreParts,
        Fault::RefuseParts(400),
        Fault::RefuseParts(416),
        Fault::RefuseParts(501),
        Fault::RefuseParts(403),
        Fault::WrongParts(WrongParts::Reversed),
        Fault::WrongParts(WrongParts::Joined),
        Fault::WrongParts(WrongParts::WithoutLast),
        Fault::WrongParts(WrongParts::OnlyFirst),
        Fault::ContentType("multipart/mixed; boundary=0".to_owned()),
        Fault::ContentType("multipart/byteranges; boundary=1".to_owned()),
        Fault::ContentType("multipart/byteranges".to_owned()),
    ] {
        let registry = FakeRegistry::start();
        let (bytes, client) = (content(SIZE), client());
        let blob = blob(&registry, &client, &bytes);
        blob.read(0..1).await.unwrap();
        registry.reset_counters();
        registry.set_fault("blobs/", fault.clone());
        let error = parts(&blob, &APART).await.expect_err("they are not what was asked for");
        assert_eq!(error.kind(), ErrorKind::RangeUnsupported, "{fault:?}: {error:?}");
        assert_eq!(registry.counters().blobs, 1, "{fault:?} is not retried");
        let other = client.repository(&registry.reference("other", "tag")).unwrap();
        let other = other.blob(blob.digest().clone(), SIZE as u64);
        assert!(!blob.reads_parts() && !other.reads_parts(), "{fault:?}");
        assert!(blob.ranges_work() && other.ranges_work(), "{fault:?}");
        assert_eq!(blob.read(7..9).await.unwrap(), bytes[7..9], "{fault:?}");
    }
}

#[tokio::test]
async fn several_ranges_that_are_cut_are_gone_on_with_where_they_stopped() {
    // In a head, in a part, and in the last part.
    for cut in [20, 100, 40_000, 120_000, 165_000] {
        let registry = FakeRegistry::start();
        let bytes = content(SIZE);
        let blob = blob(&registry, &client(), &bytes);
        blob.read(0..1).await.unwrap();
        registry.reset_counters();
        registry.set_fault_times("blobs/", Fault::CutAfter(cut), 1);
        assert_eq!(parts(&blob, &APART).await.unwrap(), bytes_of(&bytes, &APART), "{cut}");
        assert_eq!(registry.counters().blobs, 2, "{cut}");
        let wanted: u64 = APART.iter().map(|range| range.end - range.start).sum();
        assert!(registry.counters().blob_bytes < wanted + 1_000, "{cut}: next to nothing came twice");
        registry.set_fault_times("blobs/", Fault::Status(503), 1);
        assert_eq!(parts(&blob, &APART).await.unwrap(), bytes_of(&bytes, &APART), "{cut}");
        assert!(blob.reads_parts(), "{cut}");
    }
}

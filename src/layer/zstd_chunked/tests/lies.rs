//! Whatever a zstd:chunked table of contents says, it is refused by name or makes sense.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::layer::toc::TocError;
use crate::layer::toc::testing::{check_chunks, field};

#[test]
fn a_table_that_the_manifest_does_not_vouch_for_is_refused() {
    let mut blob = Blob::new();
    blob.podman_file("f", &[b"content"]);
    let finished = blob.finish();
    let size = finished.blob.len() as u64;
    let read = |positions: &Positions, claims: &Claims| read_toc(&finished.toc, positions, claims, size);
    let claims = finished.claims();
    let json_digest = Some(Sha256::digest(&finished.json).into());
    assert!(read(&finished.positions, &Claims { json_digest, ..claims.clone() }).is_ok());
    assert!(
        read(&finished.positions, &Claims { json_digest, compressed_digest: None, ..claims.clone() }).is_ok()
    );
    for lie in [
        Claims { compressed_digest: Some([7; 32]), ..claims.clone() },
        Claims { compressed_digest: Some([7; 32]), json_digest, ..claims.clone() },
        Claims { json_digest: Some([7; 32]), ..claims.clone() },
    ] {
        assert!(matches!(read(&finished.positions, &lie), Err(ZstdChunkedError::Digest { .. })));
    }
    let toc = finished.positions.toc;
    let with_toc = |toc| Positions { toc, tar_split: None };
    for decoded_length in [0, 1, toc.decoded_length - 1, toc.decoded_length + 1, MAXIMUM_TOC] {
        let result = read(&with_toc(Place { decoded_length, ..toc }), &claims);
        assert!(matches!(result, Err(ZstdChunkedError::Length { .. })), "{decoded_length}");
    }
    for length in [MAXIMUM_TOC + 1, u64::MAX] {
        for place in [Place { decoded_length: length, ..toc }, Place { compressed_length: length, ..toc }] {
            let result = read(&with_toc(place), &claims);
            assert!(matches!(result, Err(ZstdChunkedError::TooLarge { .. })), "{length}");
        }
    }
    for offset in [0, 7, toc.offset + 1, u64::MAX] {
        let lie = Place { offset, ..toc };
        let lies = [with_toc(lie), Positions { toc, tar_split: Some(lie) }];
        for positions in &lies {
            let result = read(positions, &claims);
            // The first bytes of a blob may hold as much; then it is the payloads that do not fit.
            let is_refused = match result {
                Err(ZstdChunkedError::Place { .. }) => true,
                Err(ZstdChunkedError::Contents(_)) => offset < 8,
                _ => false,
            };
            assert!(is_refused, "{offset}: {result:?}");
        }
    }
    let truncated = &finished.toc[..finished.toc.len() - 1];
    let claims = Claims { compressed_digest: Some(Sha256::digest(truncated).into()), ..claims };
    assert!(matches!(
        read_toc(truncated, &finished.positions, &claims, size),
        Err(ZstdChunkedError::Decode(_))
    ));
    let json = br#"{"version":1,"entries":[],"tarSplitDigest":"md5:00"}"#;
    let error = Finished::new(frame(b""), json, None).read().unwrap_err();
    assert!(error.to_string().contains("tarSplitDigest is not a SHA-256 digest"), "{error}");
}

#[test]
fn every_lie_is_refused_by_name() {
    let some = digest(b"x");
    let first = json!({"chunkSize": 4, "digest": null, "chunkDigest": some});
    // Fields that replace those of a good file of 10 bytes at 500 to 600 (null removes), what follows it, and what the error says.
    let chunk = |fields: Value| {
        let mut entry =
            json!({"name": "f", "type": "chunk", "offset": 550, "chunkOffset": 4, "chunkDigest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let next = |fields: Value| {
        let mut entry =
            json!({"name": "f", "type": "reg", "size": 1, "offset": 600, "endOffset": 700, "digest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let zeros = |length: i64| json!({"chunkType": "zeros", "chunkSize": length, "chunkDigest": null});
    let huge = i64::MAX;
    let cases = [
        (json!({"type": "socket"}), vec![], "unknown type \"socket\""),
        (json!({"size": -1}), vec![], "size -1 is out of range"),
        (json!({"offset": -5}), vec![], "offset -5 is out of range"),
        (json!({"endOffset": -5}), vec![], "endOffset -5 is out of range"),
        (json!({"endOffset": 500}), vec![], "endOffset 500 is not between"),
        (json!({"endOffset": 499}), vec![], "endOffset 499 is not between"),
        (
            json!({"endOffset": 993}),
            vec![],
            "endOffset 993 is not between its offset (500) and the end of the data (992)",
        ),
        (json!({"endOffset": huge}), vec![], "is not between"),
        (json!({"offset": null}), vec![], "offset 0 is not between"),
        (json!({"offset": 600}), vec![], "endOffset 600 is not between"),
        (json!({"digest": null}), vec![], "chunkDigest is missing"),
        (json!({"digest": "sha512:00"}), vec![], "digest is missing or not"),
        (json!({"chunkDigest": digest(b"y")}), vec![], "contradict"),
        (json!({"chunkType": "holes"}), vec![], "unknown chunkType \"holes\""),
        (zeros(11), vec![], "a chunk of 11 bytes, more than 10"),
        (zeros(9), vec![], "hold 9 of its 10 bytes"),
        (zeros(-9), vec![], "chunkSize -9"),
        (json!({"size": huge}), vec![], "bytes, more than 67108864"),
        (json!({"size": huge, "chunkType": "zeros"}), vec![next(json!({}))], "add up to more than any layer"),
        (json!({"innerOffset": huge}), vec![], "innerOffset 9223372036854775807 is more"),
        (first.clone(), vec![], "hold 4 of its 10 bytes"),
        (first.clone(), vec![chunk(json!({"chunkOffset": 5}))], "a chunk at 5 of the file"),
        (first.clone(), vec![chunk(json!({"chunkSize": 7}))], "a chunk of 7 bytes, more than 6"),
        (first.clone(), vec![chunk(json!({"chunkSize": 5}))], "hold 9 of its 10 bytes"),
        (first.clone(), vec![chunk(json!({"chunkDigest": null}))], "chunkDigest is missing"),
        (first.clone(), vec![chunk(json!({"offset": 499}))], "offset 499 is not between"),
        (first.clone(), vec![chunk(json!({"offset": 500}))], "innerOffset 0 is before"),
        (first.clone(), vec![chunk(json!({"offset": 600}))], "offset 600 is not between"),
        (first.clone(), vec![chunk(json!({"name": "g"}))], "does not follow its file"),
        (
            json!({}),
            vec![next(json!({"offset": 599}))],
            "offset 599 is not between the payload before it (600)",
        ),
        (
            json!({}),
            vec![next(json!({"endOffset": null}))],
            "endOffset is in some files and missing in others",
        ),
        (
            json!({"endOffset": null}),
            vec![next(json!({}))],
            "endOffset is in some files and missing in others",
        ),
    ];
    for (fields, following, expected) in cases {
        let mut file = json!({"name": "f", "type": "reg", "size": 10, "offset": 500, "endOffset": 600,
                              "chunkDigest": null, "digest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| file[key] = value.clone());
        let entries: Vec<_> = [file].into_iter().chain(following).collect();
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        match Finished::new(vec![0; 992], &json, None).read() {
            Err(ZstdChunkedError::Contents(TocError::Entry { name, fault })) => {
                assert_eq!(name, entries.last().unwrap()["name"].as_str().unwrap());
                let message = fault.to_string();
                assert!(message.contains(expected), "{message} should have {expected}");
            }
            other => panic!("{fields} should give {expected}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_changed_table_gives_chunks_that_overlap(
        changes in proptest::collection::vec(
            (0_usize..12, prop::sample::select(&["size", "offset", "endOffset", "innerOffset", "chunkOffset", "chunkSize", "chunkType", "mode"][..]), field()),
            0..4,
        ),
        swap in (0_usize..12, 0_usize..12),
        is_stargz in any::<bool>(),
    ) {
        let mut blob = Blob::new();
        if is_stargz {
            blob.stargz_file("a", &data(3000, 1));
            blob.stargz_file(".prefetch.landmark", b"\x0f");
            blob.stargz_file("b", &data(100, 2));
        } else {
            blob.podman_file("a", &[&data(1000, 1), &[0; 2000], &data(100, 2)]);
            blob.podman_file("b", &[&data(100, 3)]);
            blob.podman_file("c", &[&[0; 1500], &data(300, 4)]);
        }
        let count = blob.entries.len();
        for (at, field, value) in changes {
            blob.entries[at % count][field] = value;
        }
        blob.entries.swap(swap.0 % count, swap.1 % count);
        if let Ok(toc) = blob.read() {
            check_chunks(&toc, blob.bytes.len() as u64)?;
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..400) {
        let mut json = br#"{"version":1,"entries":[{"name":"a","type":"reg","size":3,"offset":9,"endOffset":20,"chunkType":"zeros"}]}"#.to_vec();
        let at = at % json.len();
        json.splice(at..at, bytes.iter().copied());
        let _ = Finished::new(vec![0; 100], &json, None).read();
        let _ = parse_footer(&bytes);
        let finished = Finished::new(vec![0; 100], br#"{"version":1,"entries":[]}"#, None);
        let claims = Claims { compressed_digest: None, json_digest: Some([7; 32]), ..finished.claims() };
        prop_assert!(read_toc(&bytes, &finished.positions, &claims, 1000).is_err());
    }
}

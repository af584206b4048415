//! Promises of a streamed layer whose bytes were discarded: it is read by ranges again, and nobody ever gets a wrong byte.

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use peelfs_registry::Digest;

use super::index::{identity, open_local, unpack};
use super::planner::blob_range;
use super::room::Room;
use super::source::{BlobSource, ReadFuture};
use super::{FetchError, Fetcher, LayerContent, NetworkThreads};
use crate::layer::stream::StreamExpectation;
use crate::layer::stream::spans::PART;
use crate::layer::tar::SinkError;
use crate::store::Store;
use crate::table::{Codec, Table};

/// A blob in memory that counts what is read of it.
#[derive(Clone)]
struct Counted {
    blob: Bytes,
    bytes: Arc<AtomicU64>,
}

impl BlobSource for Counted {
    fn read(&self, range: Range<u64>) -> ReadFuture {
        self.bytes.fetch_add(range.end - range.start, Ordering::SeqCst);
        let part = self.blob.slice(range.start as usize..range.end as usize);
        Box::pin(async move { Ok(part) })
    }
}

/// A streamed layer in a store of its own.
struct Fixture {
    content: Arc<LayerContent>,
    layer: Vec<u8>,
    digest: Digest,
    fetched: Arc<AtomicU64>,
    store: Store,
    directory: tempfile::TempDir,
    _threads: NetworkThreads,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Words that do not repeat for long.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        bytes.extend_from_slice(format!("{:x} ", random.below(4000) * 2_654_435_761 % 65_536).as_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tar of small files and two large ones, about 12 MiB.
fn layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..200_usize {
        let size = match number {
            50 => 3_000_000,
            120 => 1 << 20,
            _ => 40_000 + number * 10,
        };
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("f{number}"), &text(size, number as u64)[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Fixture {
    fn new(layer: Vec<u8>, blob: Vec<u8>) -> Fixture {
        // In memory if possible: what these tests promise does not depend on the disk.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = Digest::sha256_of(&blob);
        let expectation = StreamExpectation {
            blob_digest: digest.clone(),
            blob_size: blob.len() as u64,
            diff_id: Some(Digest::sha256_of(&layer)),
            maximum_decoded: 1 << 30,
        };
        let draft = store.layers().layer(digest.as_str()).unwrap().create().unwrap();
        let pieces = blob.chunks(10_000).map(Ok::<_, SinkError>);
        let (files, pending) =
            unpack(draft, &digest, Default::default(), pieces, &expectation, None, &|_| {}).unwrap();
        pending.commit().unwrap();
        drop(files);
        let threads = NetworkThreads::new(|| {});
        let fetched = Arc::new(AtomicU64::new(0));
        let source = Counted { blob: blob.into(), bytes: fetched.clone() };
        let files = store.layers().layer(digest.as_str()).unwrap().open().unwrap().unwrap();
        let table = Table::open(&files.table, &identity(&digest)).unwrap();
        let fetcher = Fetcher::new(threads.starter().clone(), Duration::from_secs(60), None, |_| {});
        let content = LayerContent::lazy_from(digest.as_str(), table, files, Arc::new(source), fetcher);
        Fixture { content, layer, digest, fetched, store, directory, _threads: threads }
    }

    fn chunks(&self) -> usize {
        self.content.table().chunks().len()
    }

    fn evict_all(&self) -> u64 {
        self.content.evict(0..self.chunks()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        let hex = self.digest.as_str().split_once(':').unwrap().1;
        self.directory.path().join("layers/sha256").join(hex).join(name)
    }

    /// Reads as the tree does: what is missing is fetched, and if it is evicted again, fetched again.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, FetchError> {
        read(&self.content, range)
    }

    fn expected(&self, range: &Range<u64>) -> &[u8] {
        &self.layer[range.start as usize..range.end as usize]
    }

    /// Bytes of the blob that this part of the decoded space needs.
    fn needed(&self, range: &Range<u64>) -> u64 {
        let chunks = &self.content.table().chunks()[self.content.table().chunks_of(range.clone())];
        chunks.iter().map(|chunk| blob_range(chunk).end - blob_range(chunk).start).sum()
    }
}

fn read(content: &Arc<LayerContent>, range: Range<u64>) -> Result<Vec<u8>, FetchError> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    while !content.read(range.start, &mut bytes).unwrap() {
        let (sender, receiver) = mpsc::channel();
        content.fetch(range.clone(), move |result| sender.send(result).unwrap());
        receiver.recv().unwrap()?;
    }
    Ok(bytes)
}

#[test]
fn a_streamed_layer_is_wholly_there_and_can_be_read_by_ranges_after_its_bytes_were_discarded() {
    let whole = layer();
    let frames: Vec<u8> =
        whole.chunks(300_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
    for (blob, codec) in [(gzip(&whole), Codec::GzipSpan), (whole.clone(), Codec::Raw), (frames, Codec::Zstd)]
    {
        let fixture = Fixture::new(whole.clone(), blob);
        let presence = fixture.content.presence();
        assert!(presence.all_chunks > 2 && presence.chunks == presence.all_chunks);
        assert!(fixture.content.table().chunks()[1..].iter().all(|chunk| chunk.codec == codec as u8));
        let before = fixture.content.data().allocated_bytes().unwrap();
        assert_eq!(fixture.evict_all(), presence.all_chunks);
        assert_eq!(fixture.evict_all(), 0);
        let after = fixture.content.data().allocated_bytes().unwrap();
        assert!(before > 11 << 20 && after < 64 << 10, "{codec:?}: {before} → {after} bytes");
        let mut read = vec![0; 10];
        assert!(!fixture.content.read(5000, &mut read).unwrap());

        let mut random = Random(1);
        let mut starts: Vec<u64> = (0..1000).map(|_| random.below(whole.len() as u64 - 4096)).collect();
        // From the end to the beginning, so that no read looks as if it followed on another: nothing is read ahead.
        starts.sort_by_key(|start| std::cmp::Reverse(*start));
        for start in starts {
            let range = start..start + 4096;
            let before = fixture.fetched.load(Ordering::SeqCst);
            assert!(fixture.read(range.clone()).unwrap() == fixture.expected(&range), "{codec:?} {range:?}");
            let fetched = fixture.fetched.load(Ordering::SeqCst) - before;
            assert!(fetched <= fixture.needed(&range), "{codec:?} {range:?}: {fetched} bytes");
            // Not each time: decoding takes longest.
            if random.below(8) == 0 {
                fixture.content.evict(fixture.content.table().chunks_of(range)).unwrap();
            }
        }
        fixture.evict_all();
        // What is evicted stays so for those who open the layer later, and all of it comes again.
        let other = Store::open(fixture.directory.path()).unwrap();
        assert_eq!(open_local(&other, &fixture.digest).unwrap().unwrap().presence().chunks, 0);
        let all = 0..whole.len() as u64;
        assert!(fixture.read(all.clone()).unwrap() == whole);
        assert_eq!(
            open_local(&other, &fixture.digest).unwrap().unwrap().presence().chunks,
            presence.all_chunks
        );
    }
}

#[test]
fn a_layer_of_one_long_frame_is_decoded_again_in_one_pass_and_in_parts() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(3 * PART);
    header.set_mode(0o644);
    let content = text(1 << 20, 9).repeat(((3 * PART) >> 20) as usize);
    archive.append_data(&mut header, "file", &content[..]).unwrap();
    let whole = archive.into_inner().unwrap();
    let blob = zstd::bulk::compress(&whole, 1).unwrap();
    let size = blob.len() as u64;
    let fixture = Fixture::new(whole, blob);
    assert_eq!(fixture.chunks(), 4);
    assert_eq!(fixture.content.presence().all_blob_bytes, size, "counted once");
    fixture.content.evict(1..3).unwrap();
    let range = 2 * PART + 7..2 * PART + 5007;
    assert!(fixture.read(range.clone()).unwrap() == fixture.expected(&range));
    assert!(fixture.fetched.load(Ordering::SeqCst) <= size);
    let before = fixture.fetched.load(Ordering::SeqCst);
    let range = PART..3 * PART;
    assert!(
        fixture.read(range.clone()).unwrap() == fixture.expected(&range),
        "what was missing came on the way"
    );
    assert_eq!(fixture.fetched.load(Ordering::SeqCst), before);
}

#[test]
fn readers_never_see_what_an_eviction_left() {
    let whole = layer();
    let fixture = Fixture::new(whole.clone(), gzip(&whole));
    // The pass keeps no headers, which these readers want to see too.
    fixture.evict_all();
    let is_done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let evicted = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (fixture, whole, reads) = (&fixture, &whole, &reads);
                scope.spawn(move || {
                    let mut random = Random(reader);
                    for _ in 0..400 {
                        let start = random.below(whole.len() as u64 - 70_000);
                        let range = start..start + 1 + random.below(70_000);
                        assert!(
                            fixture.read(range.clone()).unwrap() == fixture.expected(&range),
                            "{range:?}"
                        );
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let evictor = scope.spawn(|| {
            let (mut random, mut evicted, mut seen) = (Random(99), 0, 0);
            while !is_done.load(Ordering::SeqCst) {
                // At most as often as somebody reads, or nobody might ever get to the end of a read.
                let now = reads.load(Ordering::SeqCst);
                if std::mem::replace(&mut seen, now) == now {
                    std::thread::yield_now();
                    continue;
                }
                let first = random.below(fixture.chunks() as u64) as usize;
                evicted += fixture.content.evict(first..first + 2).unwrap();
            }
            evicted
        });
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        is_done.store(true, Ordering::SeqCst);
        assert!(results.iter().all(Result::is_ok));
        evictor.join().unwrap()
    });
    assert!(evicted > 0);
}

#[test]
fn a_file_that_the_kernel_reads_by_itself_is_not_evicted_until_it_is_closed() {
    let whole = layer();
    let fixture = Fixture::new(whole.clone(), gzip(&whole));
    let large = fixture.content.table().large()[0];
    let (start, length) = (large.decoded_offset.get(), large.length.get());
    let held = fixture.content.whole_file(start, length).expect("all of it is here");
    let inside = fixture.content.table().chunks_of(start..start + length);
    assert_eq!(fixture.evict_all(), (fixture.chunks() - inside.len()) as u64);
    assert!(fixture.content.is_present(start..start + length));
    let mut bytes = vec![0; length as usize];
    std::os::unix::fs::FileExt::read_exact_at(&*held, &mut bytes, 0).unwrap();
    assert!(bytes == fixture.expected(&(start..start + length)));
    drop(held);
    // Another test's process may hold a copy of the descriptor for an instant.
    while fixture.evict_all() == 0 {
        std::thread::yield_now();
    }
    assert!(fixture.content.whole_file(start, length).is_none());
}

#[test]
fn damaged_checkpoints_are_an_error_or_make_the_layer_again() {
    let whole = layer();
    let fixture = Fixture::new(whole.clone(), gzip(&whole));
    let path = fixture.path("checkpoints");
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() < fixture.content.presence().all_blob_bytes as usize / 100);
    fixture.evict_all();
    // The first window, in place: the file is open.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[100] ^ 1], 100).unwrap();
    let chunk = fixture.content.table().chunks()[1];
    let start = chunk.decoded_offset.get();
    let error = fixture.read(start..start + 10).unwrap_err();
    assert!(matches!(error, FetchError::Checkpoint { .. }), "{error}");
    let last = whole.len() as u64 - 20_000..whole.len() as u64;
    assert!(fixture.read(last.clone()).unwrap() == fixture.expected(&last), "other spans are whole");

    assert!(open_local(&fixture.store, &fixture.digest).unwrap().is_some());
    for damage in [&bytes[..bytes.len() - 1], &bytes[..10], b""] {
        std::fs::write(&path, damage).unwrap();
        assert!(open_local(&fixture.store, &fixture.digest).unwrap().is_none(), "{} bytes", damage.len());
    }
    std::fs::remove_file(&path).unwrap();
    assert!(open_local(&fixture.store, &fixture.digest).unwrap().is_none());
}

/// A process that is killed between clearing and discarding leaves bytes that nothing vouches for.
#[test]
fn what_is_left_of_chunks_that_are_not_here_goes_before_a_budget_is_overrun() {
    let whole = layer();
    let fixture = Fixture::new(whole.clone(), gzip(&whole));
    let map = fixture.content.files().chunk_map.as_ref().unwrap();
    let is_here = |chunk: &usize| (3..5).contains(chunk);
    for chunk in (0..fixture.chunks()).filter(|chunk| !is_here(chunk)) {
        assert!(map.clear(chunk as u64));
    }
    let (store, budget) = (Arc::new(Store::open(fixture.directory.path()).unwrap()), 6 << 20);
    assert!(store.allocated().unwrap() > budget);
    store.set_budget(Some(budget)).unwrap();
    let room = Room::new(store.clone());
    assert!(room.has_room_for(1), "for one who does not even read");
    assert!(store.allocated().unwrap() < budget);
    // What was here and what was not are the same afterwards: missing, or right.
    assert!(fixture.read(0..whole.len() as u64).unwrap() == whole);
}

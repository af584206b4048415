//! Promises of a prefetch: the order of what is wanted, few requests, readers first, and an end.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::super::source::{BlobSource, ReadFuture};
use super::super::testing::{RawLayer, raw_blob};
use super::*;

const CHUNK: u64 = 200_000;

/// A blob of raw chunks, which tells of each range that it was asked for, and gives it when it may.
struct Gated {
    blob: Bytes,
    asked: mpsc::UnboundedSender<u64>,
    /// The chunks at which ranges begin that are given.
    may: watch::Receiver<BTreeSet<u64>>,
    fails: bool,
}

impl BlobSource for Gated {
    fn read(&self, range: Range<u64>) -> ReadFuture {
        self.asked.send(range.start / CHUNK).unwrap();
        let (mut may, fails, chunk) = (self.may.clone(), self.fails, range.start / CHUNK);
        let part = self.blob.slice(range.start as usize..range.end as usize);
        Box::pin(async move {
            may.wait_for(|may| may.contains(&chunk)).await?;
            if fails { Err("cut".into()) } else { Ok(part) }
        })
    }
}

struct Fixture {
    raw: RawLayer,
    layer: Arc<LayerContent>,
    asked: mpsc::UnboundedReceiver<u64>,
    may: watch::Sender<BTreeSet<u64>>,
}

impl Fixture {
    /// A layer of so many chunks of which nothing is here.
    fn new(chunks: u64, fails: bool) -> Fixture {
        let blob = raw_blob(chunks, CHUNK);
        let (sender, asked) = mpsc::unbounded_channel();
        let may = watch::Sender::default();
        let source = Gated { blob: blob.clone(), asked: sender, may: may.subscribe(), fails };
        let raw = RawLayer::new(&blob, CHUNK, Arc::new(source));
        Fixture { layer: raw.content.clone(), raw, asked, may }
    }

    fn plan(&self, wanted: &[u64]) -> Prefetch {
        let wanted = wanted.iter().map(|chunk| (0, chunk * CHUNK..chunk * CHUNK + 1));
        Prefetch::plan(std::slice::from_ref(&self.layer), wanted)
    }

    fn start(&self, wanted: &[u64]) -> tokio::task::JoinHandle<()> {
        self.raw.threads.starter().handle().unwrap().spawn(self.plan(wanted).run())
    }

    /// From now on, requests that begin at these chunks are answered.
    fn allow(&self, chunks: impl IntoIterator<Item = u64>) {
        self.may.send_modify(|may| may.extend(chunks));
    }

    /// The chunk at which the next request begins.
    fn next(&mut self) -> u64 {
        self.asked.blocking_recv().unwrap()
    }

    /// Asks for a chunk as a reader does; gives the receiver of the result.
    fn read(&self, chunk: u64) -> std::sync::mpsc::Receiver<bool> {
        self.raw.read(chunk..chunk + 1)
    }
}

/// The chunks of each request.
fn planned(plan: &Prefetch) -> Vec<Vec<u32>> {
    plan.0.iter().map(|(_, request)| request.chunks.clone()).collect()
}

#[test]
fn requests_come_in_the_order_of_what_is_wanted_and_neighbours_together() {
    let fixture = Fixture::new(20, false);
    for (wanted, expected) in [
        (&[9, 3, 15][..], vec![vec![9], vec![3], vec![15]]),
        // The neighbour that is wanted last comes with the one that is wanted first.
        (&[9, 3, 10, 3], vec![vec![9, 10], vec![3]]),
        // A mebibyte at once.
        (&[0, 1, 2, 3, 4, 5, 6], vec![vec![0, 1, 2, 3, 4], vec![5, 6]]),
        (&[6, 5, 4, 3, 2, 1, 0], vec![vec![5, 6], vec![0, 1, 2, 3, 4]]),
        (&[], vec![]),
        (&[25], vec![]),
    ] {
        assert_eq!(planned(&fixture.plan(wanted)), expected, "{wanted:?}");
    }
    assert!(Prefetch::plan(std::slice::from_ref(&fixture.layer), [(1, 0..CHUNK)]).is_empty());
}

#[test]
fn what_is_here_is_not_planned_and_what_a_reader_fetches_is_not_fetched_twice() {
    let mut fixture = Fixture::new(20, false);
    fixture.allow([3]);
    assert_eq!(fixture.read(3).recv(), Ok(true));
    assert_eq!(fixture.next(), 3);
    assert_eq!(planned(&fixture.plan(&[9, 3, 15])), [[9], [15]]);
    assert!(fixture.plan(&[9, 3]).is_empty(), "the layer was read before");

    let read = fixture.read(15);
    assert_eq!(fixture.next(), 15);
    let prefetch = fixture.start(&[15, 9]);
    fixture.allow([15, 9]);
    assert_eq!(read.recv(), Ok(true));
    assert_eq!(fixture.next(), 9);
    fixture.raw.threads.starter().handle().unwrap().block_on(prefetch).unwrap();
    assert!(fixture.layer.has_chunk(9) && fixture.asked.try_recv().is_err());
}

#[test]
fn three_requests_are_under_way_and_none_begins_while_a_reader_waits() {
    let mut fixture = Fixture::new(40, false);
    let prefetch = fixture.start(&[30, 20, 10, 0, 25, 15]);
    let mut first = [fixture.next(), fixture.next(), fixture.next()];
    first.sort_unstable();
    assert_eq!(first, [10, 20, 30]);
    let read = fixture.read(5);
    assert_eq!(fixture.next(), 5, "a reader does not wait for a prefetch");
    fixture.allow([10, 20, 30]);
    let handle = fixture.raw.threads.starter().handle().unwrap();
    while ![10, 20, 30].iter().all(|chunk| fixture.layer.has_chunk(*chunk)) {
        std::thread::yield_now();
    }
    assert!(fixture.asked.try_recv().is_err() && read.try_recv().is_err());
    fixture.allow([5]);
    assert_eq!(read.recv(), Ok(true));
    let mut rest = [fixture.next(), fixture.next(), fixture.next()];
    rest.sort_unstable();
    assert_eq!(rest, [0, 15, 25]);
    fixture.allow(rest);
    handle.block_on(prefetch).unwrap();
}

#[test]
fn readers_one_after_the_other_leave_it_a_turn() {
    let mut fixture = Fixture::new(100, false);
    let prefetch = fixture.start(&[90, 80, 70, 60, 50, 40]);
    for _ in 0..3 {
        fixture.next();
    }
    // There never is a moment at which no reader waits.
    let mut before = fixture.read(1);
    fixture.allow([90, 80, 70, 60, 50, 40]);
    for reader in [7, 14, 21, 28, 35, 42] {
        let waiting = fixture.read(reader);
        fixture.allow([reader - 6, reader - 7]);
        assert_eq!(before.recv(), Ok(true));
        before = waiting;
    }
    let mut asked = Vec::new();
    while asked.len() < 3 {
        asked.push(fixture.next());
        asked.retain(|chunk| chunk % 10 == 0);
    }
    asked.sort_unstable();
    assert_eq!(asked, [40, 50, 60]);
    assert!(before.try_recv().is_err());
    fixture.allow([42]);
    assert_eq!(before.recv(), Ok(true));
    fixture.raw.threads.starter().handle().unwrap().block_on(prefetch).unwrap();
}

#[test]
fn a_prefetch_that_fails_ends_and_readers_go_on_asking() {
    let mut fixture = Fixture::new(40, true);
    let prefetch = fixture.start(&[30, 20, 10, 0]);
    for _ in 0..3 {
        fixture.next();
    }
    // Who waits for what is under way is told that it did not come.
    let joined = fixture.read(20);
    fixture.allow(0..40);
    assert_eq!(joined.recv(), Ok(false));
    fixture.raw.threads.starter().handle().unwrap().block_on(prefetch).unwrap();
    assert!(fixture.asked.try_recv().is_err(), "after a failure nothing more is asked for");
    let read = fixture.read(20);
    assert_eq!(fixture.next(), 20);
    assert_eq!(read.recv(), Ok(false));
}

#[test]
fn what_is_needed_soon_is_asked_for_at_once_and_counts_as_a_guess_until_it_is_read() {
    let mut fixture = Fixture::new(60, false);
    let layers = [fixture.layer.clone()];
    let handle = fixture.raw.threads.starter().handle().unwrap();
    let wanted = |chunks: &[u64]| -> Vec<Wanted> {
        chunks.iter().map(|chunk| (0, chunk * CHUNK..chunk * CHUNK + 1)).collect()
    };
    // Neighbours come together; no reader is waited for, and nothing that is under way is asked for again.
    let read = fixture.read(50);
    assert_eq!(fixture.next(), 50);
    let soon = wanted(&[30, 31, 10, 50, 20, 31]);
    let bringing = handle.spawn({
        let layers = layers.clone();
        async move { bring_soon(&layers, soon).await }
    });
    let mut asked = [fixture.next(), fixture.next(), fixture.next()];
    asked.sort_unstable();
    assert_eq!(asked, [10, 20, 30]);
    fixture.allow([10, 20, 30, 50]);
    handle.block_on(bringing).unwrap();
    assert_eq!(read.recv(), Ok(true));
    assert_eq!(fixture.raw.here(), [10, 20, 30, 31, 50]);

    // Eleven chunks that nobody has read fit in 2 MiB and in what was wanted.
    fixture.allow(0..60);
    handle.block_on(bring_soon(&layers, wanted(&(0..60).step_by(2).collect::<Vec<_>>())));
    assert_eq!(fixture.raw.here().len(), 11 + 1);
    // Who reads them may have more; who looks at them may not.
    let mut bytes = vec![0; CHUNK as usize];
    assert!(fixture.layer.peek(10 * CHUNK, &mut bytes).unwrap());
    handle.block_on(bring_soon(&layers, wanted(&[55])));
    assert!(!fixture.layer.has_chunk(55));
    assert!(fixture.layer.read(10 * CHUNK, &mut bytes).unwrap());
    handle.block_on(bring_soon(&layers, wanted(&[55])));
    assert!(fixture.layer.has_chunk(55));
}

//! Promises of a request under way: a chunk is delivered as soon as it is here, whole and verified, however the body is cut into pieces; what breaks off
//! costs what did not come, and no more.

use std::sync::Mutex;

use tokio::sync::mpsc;

use super::super::source::{BlobSource, Pieces, ReadFuture};
use super::super::testing::{RawLayer, chunk, raw_blob};
use super::*;

const CHUNK: u64 = 1000;

type Piece = Result<Bytes, SourceError>;

/// A source that tells what range it was asked for, and gives the pieces that the test hands it.
struct Handed {
    asked: mpsc::UnboundedSender<Range<u64>>,
    bodies: Mutex<Vec<mpsc::UnboundedReceiver<Piece>>>,
}

impl BlobSource for Handed {
    fn read(&self, _: Range<u64>) -> ReadFuture {
        Box::pin(async { Err("it is to be read in pieces".into()) })
    }

    fn pieces(&self, range: Range<u64>) -> Pieces {
        self.asked.send(range).unwrap();
        let body = self.bodies.lock().unwrap().remove(0);
        Box::pin(futures_util::stream::unfold(body, |mut body| async {
            body.recv().await.map(|piece| (piece, body))
        }))
    }
}

struct Fixture {
    layer: RawLayer,
    blob: Bytes,
    asked: mpsc::UnboundedReceiver<Range<u64>>,
    /// Of the bodies in the order in which they are asked for.
    bodies: Vec<Option<mpsc::UnboundedSender<Piece>>>,
}

impl Fixture {
    /// A layer of so many chunks.
    fn new(chunks: u64) -> Fixture {
        let blob = raw_blob(chunks, CHUNK);
        let (sender, asked) = mpsc::unbounded_channel();
        let (senders, receivers): (Vec<_>, _) = (0..8)
            .map(|_| {
                let (sender, receiver) = mpsc::unbounded_channel();
                (Some(sender), receiver)
            })
            .unzip();
        let source = Handed { asked: sender, bodies: Mutex::new(receivers) };
        Fixture { layer: RawLayer::new(&blob, CHUNK, Arc::new(source)), blob, asked, bodies: senders }
    }

    fn give(&self, body: usize, bytes: Range<u64>) {
        self.send(body, Ok(self.blob.slice(bytes.start as usize..bytes.end as usize)));
    }

    fn send(&self, body: usize, piece: Piece) {
        self.bodies[body].as_ref().unwrap().send(piece).unwrap();
    }

    fn end(&mut self, body: usize) {
        self.bodies[body] = None;
    }

    fn next(&mut self) -> Range<u64> {
        self.asked.blocking_recv().unwrap()
    }
}

#[test]
fn a_reader_has_his_chunk_before_the_rest_of_the_body_is_here() {
    let mut fixture = Fixture::new(5);
    let all = fixture.layer.read(0..5);
    assert_eq!(fixture.next(), 0..5 * CHUNK);
    let readers = [1, 0].map(|chunk| fixture.layer.read(chunk..chunk + 1));
    fixture.give(0, 0..CHUNK - 1);
    fixture.give(0, CHUNK - 1..2 * CHUNK + 500);
    for reader in readers {
        assert_eq!(reader.recv(), Ok(true));
    }
    assert_eq!(fixture.layer.here(), [0, 1]);
    assert!(all.try_recv().is_err(), "not all of it is here");
    fixture.give(0, 2 * CHUNK + 500..5 * CHUNK);
    // Though the body has not ended.
    assert_eq!(all.recv(), Ok(true));
    assert_eq!(fixture.layer.here(), [0, 1, 2, 3, 4]);
    fixture.end(0);
}

#[test]
fn it_makes_no_difference_how_a_body_is_cut() {
    for length in [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 1, 100 * CHUNK] {
        let mut fixture = Fixture::new(5);
        let size = fixture.blob.len() as u64;
        for start in (0..size).step_by(length as usize) {
            fixture.give(0, start..size.min(start + length));
        }
        fixture.end(0);
        assert_eq!(fixture.layer.read(0..5).recv(), Ok(true), "{length}");
        assert_eq!(fixture.next(), 0..size);
        let mut found = vec![0; size as usize];
        assert!(fixture.layer.content.read(0, &mut found).unwrap());
        assert!(found == fixture.blob, "{length}");
    }
}

#[test]
fn what_came_before_a_body_broke_stays_and_only_the_rest_is_asked_for_again() {
    for ends_with_an_error in [true, false] {
        let mut fixture = Fixture::new(5);
        let all = fixture.layer.read(0..5);
        fixture.next();
        let (here, missing) = (fixture.layer.read(1..2), fixture.layer.read(4..5));
        fixture.give(0, 0..2 * CHUNK + 999);
        if ends_with_an_error {
            fixture.send(0, Err("cut".into()));
        }
        fixture.end(0);
        assert_eq!((here.recv(), missing.recv(), all.recv()), (Ok(true), Ok(false), Ok(false)));
        // Each was told once.
        assert!(here.recv().is_err() && missing.recv().is_err() && all.recv().is_err());
        assert_eq!(fixture.layer.here(), [0, 1]);
        let again = fixture.layer.read(0..5);
        assert_eq!(fixture.next(), 2 * CHUNK..5 * CHUNK);
        fixture.give(1, 2 * CHUNK..5 * CHUNK);
        assert_eq!(again.recv(), Ok(true));
    }
}

#[test]
fn a_failure_after_the_last_byte_is_none() {
    let mut fixture = Fixture::new(5);
    fixture.give(0, 0..5 * CHUNK);
    // More than was asked for is passed over.
    fixture.give(0, 0..CHUNK);
    fixture.send(0, Err("cut".into()));
    assert_eq!(fixture.layer.read(0..5).recv(), Ok(true));
    assert_eq!(fixture.next(), 0..5 * CHUNK);
    assert_eq!(fixture.layer.here().len(), 5);
}

#[test]
fn a_wrong_chunk_is_an_error_for_its_readers_alone() {
    let mut fixture = Fixture::new(5);
    let all = fixture.layer.read(0..5);
    fixture.next();
    let readers: Vec<_> = (0..5).map(|chunk| fixture.layer.read(chunk..chunk + 1)).collect();
    let mut bytes = fixture.blob.to_vec();
    bytes[2 * CHUNK as usize + 5] ^= 1;
    fixture.send(0, Ok(bytes.into()));
    let told: Vec<bool> = readers.iter().map(|reader| reader.recv().unwrap()).collect();
    assert_eq!(told, [true, true, false, true, true]);
    assert_eq!((all.recv(), fixture.layer.here()), (Ok(false), vec![0, 1, 3, 4]));
}

#[test]
fn no_portion_shares_a_byte_with_another() {
    let all: Vec<_> = [(10, 10), (25, 5), (30, 20), (30, 40), (30, 40), (80, 10), (95, 5), (120, 10)]
        .map(|(offset, length)| chunk(offset, length, Codec::Gzip))
        .into();
    let portion = |end, chunks: &[u32]| Portion { end, chunks: chunks.to_vec() };
    type Case<'a> = (&'a [u32], bool, Range<u64>, Vec<Portion>);
    let cases: [Case<'_>; 6] = [
        (&[0, 1], false, 10..30, vec![portion(20, &[0]), portion(30, &[1])]),
        // What follows a chunk belongs to it, as far as it comes.
        (&[0, 1], true, 10..30, vec![portion(25, &[0]), portion(30, &[1])]),
        (&[0, 1], true, 10..28, vec![portion(25, &[0]), portion(30, &[1])]),
        (&[5, 6], true, 80..110, vec![portion(95, &[5]), portion(110, &[6])]),
        // What shares a member stays together.
        (
            &[1, 2, 3, 4, 5],
            false,
            25..90,
            vec![portion(30, &[1]), portion(70, &[2, 3, 4]), portion(90, &[5])],
        ),
        (&[2, 4, 7], true, 30..130, vec![portion(80, &[2, 4]), portion(130, &[7])]),
    ];
    for (chunks, rests, range, expected) in cases {
        assert_eq!(portions(&all, chunks, &range, rests), expected, "{chunks:?} {rests} {range:?}");
    }
    let zeros = [chunk(0, 0, Codec::Zeros), chunk(0, 0, Codec::Zeros)];
    assert_eq!(portions(&zeros, &[0, 1], &(0..0), true), [portion(0, &[0, 1])]);
}

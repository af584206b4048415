//! The files beside a layer: of a gzip layer's checkpoints (`layer/gzip/checkpoint.rs`), and of what a zTOC claims (`layer/soci/headers.rs`).
//! Of any bytes each checkpoint and each claim is one, or none; and a decoder that begins at a checkpoint stays within its room, whatever
//! it is given.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use peelfs::layer::compression::Decode;
use peelfs::layer::gzip::GzipDecoder;
use peelfs::layer::gzip::checkpoint::{Checkpoint, CheckpointWriter, Checkpoints, Packed, WINDOW};
use peelfs::layer::soci::headers::Claims;
use peelfs_fuzz::{file_of, repair, seeds};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    repair::mutate(data, size, max_size, seed, repair::beside_layer)
});

fuzz_target!(init: seeds::plant(seeds::checkpoints), |bytes: &[u8]| {
    if let Ok(claims) = Claims::open(file_of(bytes)) {
        for content in [0, 512, 1024, 1 << 20, u64::MAX] {
            if let Ok(claim) = claims.get(content) {
                assert_eq!(claim.headers.end, content);
            }
        }
    }
    let Ok(checkpoints) = Checkpoints::open(file_of(bytes)) else { return };
    let mut sound = Vec::new();
    for number in 0..(checkpoints.count() as u32).min(50) {
        let Ok(checkpoint) = checkpoints.get(number) else { continue };
        assert!(checkpoint.bits < 8 && checkpoint.window.len() <= WINDOW);
        // The file itself is as good as any other blob.
        let mut decoder = GzipDecoder::resume(&checkpoint);
        let mut room = [0; 5000];
        let mut rest = bytes;
        for _ in 0..20 {
            let Ok(progress) = decoder.decode(rest, &mut room) else { break };
            assert!(progress.produced <= room.len());
            rest = &rest[progress.consumed..];
        }
        sound.push(checkpoint);
    }
    assert!(checkpoints.get(checkpoints.count() as u32).is_err());
    check_written_anew(&sound);
});

fn check_written_anew(sound: &[Checkpoint]) {
    let mut file = Vec::new();
    let mut writer = CheckpointWriter::new(&mut file);
    for (number, checkpoint) in sound.iter().enumerate() {
        let packed = Packed::new(checkpoint).expect("compressing in memory");
        assert_eq!(writer.add(&packed).expect("writing to memory") as usize, number);
    }
    writer.finish().expect("writing to memory");
    if sound.is_empty() {
        return assert!(file.is_empty());
    }
    let read = Checkpoints::open(file_of(&file)).expect("what was just written");
    assert_eq!(read.count(), sound.len());
    for (number, checkpoint) in sound.iter().enumerate() {
        assert!(read.get(number as u32).expect("what was just written") == *checkpoint);
    }
}

//! What the benchmark holds reading and decoding against, without the start of a process in what is measured:
//!
//! - `yardstick sequential FILE` reads a file from its beginning to its end, a mebibyte at a time, and prints milliseconds.
//! - `yardstick random FILE READS` reads as many pages of it, always the same ones, and prints milliseconds.
//! - `yardstick inflate FILE…` decodes gzip, hashes what comes of it with SHA-256, and prints how many bytes that were: with the libraries
//!   that peel decodes and hashes with, so what peel spends beyond that it spends on all else.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

const STEP: usize = 1 << 20;
const PAGE: u64 = 4096;

fn sequential(file: &File) -> Result<Duration, Box<dyn Error>> {
    let mut buffer = vec![0; STEP];
    let (begun, mut offset) = (Instant::now(), 0);
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(begun.elapsed()),
            length => offset += length as u64,
        }
    }
}

fn random(file: &File, reads: u64) -> Result<Duration, Box<dyn Error>> {
    let pages = file.metadata()?.len() / PAGE;
    if pages == 0 {
        return Err("a file of 4096 bytes at least, please".into());
    }
    let mut buffer = [0; PAGE as usize];
    let (begun, mut state) = (Instant::now(), 1_u64);
    for _ in 0..reads {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut buffer, state % pages * PAGE)?;
    }
    Ok(begun.elapsed())
}

/// Returns how many bytes a gzip file has when it is decoded.
fn inflate(file: File) -> Result<u64, Box<dyn Error>> {
    let mut decoder = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(STEP, file));
    let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; STEP], 0);
    loop {
        let length = decoder.read(&mut buffer)?;
        if length == 0 {
            std::hint::black_box(hash.finalize());
            return Ok(bytes);
        }
        hash.update(&buffer[..length]);
        bytes += length as u64;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let milliseconds = |time: Duration| println!("{:.3}", time.as_secs_f64() * 1000.0);
    match arguments.as_slice() {
        ["sequential", file] => milliseconds(sequential(&File::open(file)?)?),
        ["random", file, reads] => milliseconds(random(&File::open(file)?, reads.parse()?)?),
        ["inflate", files @ ..] if !files.is_empty() => {
            let mut bytes = 0;
            for file in files {
                bytes += inflate(File::open(file)?)?;
            }
            println!("{bytes}");
        }
        _ => return Err("usage: yardstick sequential FILE | random FILE READS | inflate FILE…".into()),
    }
    Ok(())
}

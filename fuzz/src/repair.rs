//! Checksums put right after a mutation, so that what lies behind them is reached. One input in eight keeps its wrong ones.

use zerocopy::{FromBytes, IntoBytes};

use peelfs::table::format::{Header, MAGIC, SECTIONS, VERSION, incompatible_features};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Mutates as libFuzzer does, then repairs.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32, repair: fn(&mut [u8])) -> usize {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    if !seed.is_multiple_of(8) {
        repair(&mut data[..size]);
    }
    size
}

/// The checksum of each block that looks like a tar header, by its magic or by the form of its checksum; and the lengths of the PAX
/// records behind one that announces them.
pub fn tar(archive: &mut [u8]) {
    let mut records = false;
    for block in archive.chunks_exact_mut(BLOCK) {
        if std::mem::take(&mut records) {
            pax(block);
        }
        let has_magic = block[257..262] == *b"ustar";
        let has_sum = block[154] == 0 && block[155] == b' ' && block[148..154].iter().all(u8::is_ascii_digit);
        if !has_magic && !has_sum {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        records = matches!(block[156], b'x' | b'g');
    }
}

/// Each line begins with its length, in as many digits as it had.
fn pax(records: &mut [u8]) {
    for line in records.split_inclusive_mut(|byte| *byte == b'\n') {
        let length = line.len();
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = format!("{length:0digits$}");
        if (1..=4).contains(&digits) && text.len() == digits && line.ends_with(b"\n") {
            line[..digits].copy_from_slice(text.as_bytes());
        }
    }
}

/// Magic, version, length and checksums of an inode table.
pub fn table(bytes: &mut [u8]) {
    let length = bytes.len() as u64;
    let Some((start, body)) = bytes.split_at_mut_checked(size_of::<Header>()) else { return };
    let Ok(header) = Header::mut_from_bytes(start) else { return };
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.incompatible = (header.incompatible.get() & incompatible_features::KNOWN).into();
    header.length = length.into();
    for section in &mut header.sections {
        let offset = section.offset.get().min(length);
        section.offset = offset.into();
        section.length = section.length.get().min(length - offset).into();
    }
    // Inodes of whole records: without a root there is no table.
    let record = size_of::<peelfs::table::format::InodeRecord>() as u64;
    let records = [record, 12, 1, 1, 24, 80, 32];
    let _: [u64; SECTIONS] = records;
    for (section, record) in header.sections.iter_mut().zip(records) {
        section.length = (section.length.get() / record * record).into();
    }
    header.body_checksum = crc32fast::hash(body).into();
    header.header_checksum = 0.into();
    header.header_checksum = crc32fast::hash(header.as_bytes()).into();
}

/// Checksums of a file of a layer's checkpoints, or of what is claimed of its files, by its magic.
pub fn beside_layer(bytes: &mut [u8]) {
    if bytes.starts_with(b"peelhead") { claims(bytes) } else { checkpoints(bytes) }
}

/// Of a file of claims (`layer/soci/headers.rs`): of its head and its records.
fn claims(bytes: &mut [u8]) {
    const HEADER: usize = 8 + 4 + 4 + 8;
    const RECORD: usize = 8 + 8 + 32;
    let Some((header, records)) = bytes.split_at_mut_checked(HEADER + 4) else { return };
    header[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    header[16..24].copy_from_slice(&(records.len() as u64 / (RECORD as u64 + 4)).to_le_bytes());
    for sealed in std::iter::once(header).chain(records.chunks_exact_mut(RECORD + 4)) {
        let (covered, sum) = sealed.split_at_mut(sealed.len() - 4);
        sum.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
    }
}

/// Of a file of checkpoints (`layer/gzip/checkpoint.rs`): of its windows, its records and its footer.
fn checkpoints(bytes: &mut [u8]) {
    const HEADER: usize = 16;
    const RECORD: usize = 20;
    const FOOTER: usize = 20;
    let Some(footer) = bytes.len().checked_sub(FOOTER).filter(|at| *at >= HEADER) else { return };
    bytes[..HEADER].copy_from_slice(b"peelckpt\x01\0\0\0\0\0\0\0");
    // As many records as are said, if there is room for them.
    let said =
        u32::from_le_bytes([bytes[footer + 8], bytes[footer + 9], bytes[footer + 10], bytes[footer + 11]]);
    let count = (said as usize).min((footer - HEADER) / RECORD);
    let first = footer - count * RECORD;
    for number in 0..count {
        let at = first + number * RECORD;
        let window = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().expect("4 bytes"));
        let mut sum = crc32fast::Hasher::new();
        sum.update(&bytes[at..at + RECORD - 4]);
        let end = window.saturating_add(length.into());
        let Some(stored) = usize::try_from(end).ok().and_then(|end| bytes.get(window as usize..end)) else {
            continue;
        };
        sum.update(stored);
        bytes[at + RECORD - 4..at + RECORD].copy_from_slice(&sum.finalize().to_le_bytes());
    }
    bytes[footer..footer + 8].copy_from_slice(&(first as u64).to_le_bytes());
    bytes[footer + 8..footer + 12].copy_from_slice(&(count as u32).to_le_bytes());
    let records = crc32fast::hash(&bytes[first..footer]);
    bytes[footer + 12..footer + 16].copy_from_slice(&records.to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..HEADER]);
    sum.update(&bytes[footer..footer + 16]);
    let sum = sum.finalize();
    bytes[footer + 16..].copy_from_slice(&sum.to_le_bytes());
}

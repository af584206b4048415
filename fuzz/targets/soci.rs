//! SOCI zTOCs described value by value (`layer/soci/`): checkpoints and entries in every confusion, with windows that no mutation of
//! bytes would make.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use peelfs::layer::entry::Timestamp;
use peelfs::layer::gzip::checkpoint::WINDOW;
use peelfs::layer::soci::checkpoints::{GzipCheckpoint, gzip_checkpoints, uncompressed_checkpoints};
use peelfs::layer::soci::ztoc::{CompressionAlgorithm, CompressionInfo, FileMetadata, FileType, Ztoc};
use peelfs_fuzz::soci::check;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    sizes: [Number; 2],
    spans: Spans,
    lies: Lies,
    files: Vec<File<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Spans {
    Gzip(Vec<Checkpoint>),
    Uncompressed { span_size: u32, count: u8 },
}

#[derive(Arbitrary, Debug)]
struct Checkpoint {
    compressed: Number,
    uncompressed: Number,
    bits: u8,
}

/// What a writer says of itself, wrongly or not.
#[derive(Arbitrary, Debug)]
struct Lies {
    digests: i8,
    last_span: i8,
    is_first_version: bool,
}

/// A step from the number before.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Step(u16),
    Large(u32),
    Back(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct File<'a> {
    kind: u8,
    name: u8,
    headers: Number,
    size: Number,
    mode: u16,
    owner: u32,
    seconds: Option<i32>,
    target: u8,
    records: Vec<(u8, &'a [u8])>,
}

impl Number {
    fn after(self, before: u64) -> u64 {
        match self {
            Number::Step(step) => before.saturating_add(u64::from(step)),
            Number::Large(step) => before.saturating_add(u64::from(step)),
            Number::Back(step) => before.saturating_sub(u64::from(step)),
            Number::Any(number) => number,
        }
    }
}

const NAMES: [&[u8]; 8] = [b"a", b"d/", b"d/b", b"../c", b".wh.a", b"d/.wh..wh..opq", b"\xff", b""];
const KEYS: [&[u8]; 6] =
    [b"SCHILY.xattr.user.a", b"path", b"mtime", b"GNU.sparse.major", b"LIBARCHIVE.xattr.user.b", b"size"];

impl File<'_> {
    fn metadata(&self, end: &mut u64) -> FileMetadata {
        // Whole blocks, as a rule.
        let offset = match self.headers {
            Number::Step(step) => end.saturating_add(512 * (1 + u64::from(step) % 4)),
            other => other.after(*end),
        };
        let kind = FileType::ALL[usize::from(self.kind) % FileType::ALL.len()];
        let size = self.size.after(0).min(i64::MAX as u64);
        let stored = if kind == FileType::Regular { size } else { 0 };
        *end = offset.saturating_add(stored).checked_next_multiple_of(512).unwrap_or(offset);
        FileMetadata {
            name: NAMES[usize::from(self.name) % NAMES.len()].to_vec(),
            kind,
            uncompressed_offset: offset.min(i64::MAX as u64),
            uncompressed_size: size,
            link_name: NAMES[usize::from(self.target) % NAMES.len()].to_vec(),
            mode: self.mode.into(),
            uid: self.owner,
            gid: 0,
            user_name: vec![],
            group_name: vec![],
            modified: self.seconds.map(|seconds| Timestamp { seconds: seconds.into(), nanoseconds: 5 }),
            device_major: self.owner.into(),
            device_minor: -i64::from(self.kind >> 7),
            pax_records: self
                .records
                .iter()
                .map(|(key, value)| (KEYS[usize::from(*key) % KEYS.len()].to_vec(), value.to_vec()))
                .collect(),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let window = [7; WINDOW];
    let mut end = 0;
    let files = input.files.iter().take(20).map(|file| file.metadata(&mut end)).collect();
    let [compressed, uncompressed] = input.sizes;
    let (mut compressed_size, uncompressed_size) = (compressed.after(0), uncompressed.after(end));
    let (algorithm, checkpoints, count) = match &input.spans {
        Spans::Gzip(list) => {
            let (mut compressed, mut uncompressed) = (0, 0);
            let list: Vec<GzipCheckpoint<'_>> = list
                .iter()
                .take(12)
                .enumerate()
                .map(|(number, checkpoint)| {
                    compressed = checkpoint.compressed.after(compressed);
                    // The first begins the archive, as a rule.
                    if number > 0 || matches!(checkpoint.uncompressed, Number::Any(_)) {
                        uncompressed = checkpoint.uncompressed.after(uncompressed);
                    }
                    let (bits, window) = (checkpoint.bits % 9, &window[..]);
                    GzipCheckpoint {
                        compressed_offset: compressed,
                        uncompressed_offset: uncompressed,
                        bits,
                        window,
                    }
                })
                .collect();
            compressed_size = compressed_size.max(compressed);
            let mut bytes = gzip_checkpoints(4 << 20, list.iter().copied());
            let implied = usize::from(input.lies.is_first_version);
            let count = list.len() + implied;
            bytes[..4].copy_from_slice(&(count as i32).to_le_bytes());
            (CompressionAlgorithm::Gzip, bytes, count)
        }
        Spans::Uncompressed { span_size, count } => {
            compressed_size = u64::from(*span_size) * u64::from(*count);
            let bytes = uncompressed_checkpoints((*span_size).into(), compressed_size);
            (CompressionAlgorithm::Uncompressed, bytes, usize::from(*count))
        }
    };
    // Mostly none.
    let lie = |count: usize, lie: i8| count.saturating_add_signed(isize::from(lie / 100));
    check(Ztoc {
        version: b"0.9".to_vec(),
        build_tool: vec![],
        compressed_size: compressed_size.min(i64::MAX as u64),
        uncompressed_size: uncompressed_size.min(i64::MAX as u64),
        files,
        compression: CompressionInfo {
            algorithm,
            max_span_id: lie(count.saturating_sub(1), input.lies.last_span) as u32,
            span_digests: vec![[1; 32]; lie(count, input.lies.digests)],
            checkpoints,
        },
    });
});

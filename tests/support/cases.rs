//! Generated images that hold every case: each type, attribute, encoding and merge rule that a layer can state.

use super::archive::{SparseEncoding, TestEntry};
use super::content::Content;

/// `security.capability` as `setcap cap_net_raw+ep` writes it (revision 2).
pub const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn noise(seed: u64, length: u64) -> Content {
    Content::Noise { seed, length }
}

/// Three layers with every case that all formats can state, tables of contents (JSON: names are UTF-8, no holes) included.
pub fn every_case() -> Vec<Vec<TestEntry>> {
    vec![
        [types_and_attributes(), sizes(), long_names(), lower_names()].concat(),
        upper_names(),
        third_layer(),
    ]
}

/// [`every_case`], and what only an archive can state.
pub fn every_case_of_archives() -> Vec<Vec<TestEntry>> {
    let mut layers = every_case();
    layers[0].extend(raw_names());
    layers[0].extend(sparse_files(&EVERY_ENCODING));
    layers
}

/// [`every_case_of_archives`] without the sparse entries that Go's archive reader, and so umoci, does not know as files.
pub fn every_case_of_umoci() -> Vec<Vec<TestEntry>> {
    let mut layers = every_case();
    layers[0].extend(raw_names());
    layers[0].extend(sparse_files(&EVERY_ENCODING[1..]));
    layers
}

pub const EVERY_ENCODING: [SparseEncoding; 4] =
    [SparseEncoding::OldGnu, SparseEncoding::Pax00, SparseEncoding::Pax01, SparseEncoding::Pax10];

fn types_and_attributes() -> Vec<TestEntry> {
    vec![
        TestEntry::directory("./").mode(0o751).modified(1_234_567_890, 987_654_321).xattr("user.root", "r"),
        TestEntry::directory("types/"),
        TestEntry::file("types/file", "content"),
        TestEntry::symlink("types/relative", "file"),
        TestEntry::symlink("types/absolute", "/types/file"),
        TestEntry::symlink("types/dangling", "../../../nowhere"),
        TestEntry::symlink("types/owned", "file").owner(7, 8).modified(-5, 6),
        TestEntry::hardlink("types/second name", "types/file"),
        TestEntry::hardlink("third-name", "./types/../types/file"),
        TestEntry::hardlink("types/second name of a link", "types/relative"),
        TestEntry::fifo("types/fifo").mode(0o4622),
        TestEntry::hardlink("types/second-fifo", "types/fifo"),
        TestEntry::character_device("types/null", 1, 3).mode(0o666),
        TestEntry::block_device("types/disk", 259, 65_537),
        TestEntry::character_device("types/largest-device", 4095, 1_048_575),
        TestEntry::directory("modes").mode(0o1777),
        TestEntry::file("modes/setuid", "x").mode(0o4755),
        TestEntry::file("modes/setgid", "x").mode(0o2711),
        TestEntry::file("modes/all", "x").mode(0o7777),
        TestEntry::file("modes/none", "x").mode(0),
        TestEntry::directory("modes/setgid-directory").mode(0o2770),
        TestEntry::directory("owners").owner(1, 2),
        TestEntry::file("owners/nobody", "x").owner(65_534, 65_533),
        TestEntry::file("owners/beyond-octal", "x").owner(2_097_152, 4_294_967_294),
        TestEntry::file("owners/beyond-octal-gnu", "x").owner(4_294_967_294, 2_097_152).gnu(),
        TestEntry::directory("times").modified(1, 1),
        TestEntry::file("times/nanoseconds", "x").modified(1_700_000_000, 999_999_999),
        TestEntry::file("times/tenth", "x").modified(1_700_000_000, 100_000_000),
        TestEntry::file("times/before-1970", "x").modified(-1, 0),
        TestEntry::file("times/half-before-1970", "x").modified(-1, 500_000_000),
        TestEntry::file("times/before-1970-gnu", "x").modified(-86_400 * 365, 0).gnu(),
        TestEntry::file("times/epoch", "x").modified(0, 0),
        TestEntry::file("times/2038", "x").modified(1 << 31, 1),
        TestEntry::file("times/2106", "x").modified(1 << 32, 1),
        TestEntry::file("times/2300-gnu", "x").modified(10_413_792_000, 0).gnu(),
        TestEntry::directory("xattrs").xattr("user.of-directory", "yes"),
        TestEntry::file("xattrs/binary", "x").xattr("user.binary", b"\0\xff\n=\r 17 x=y\n"),
        TestEntry::file("xattrs/empty", "x").xattr("user.empty", ""),
        TestEntry::file("xattrs/capability", "x").mode(0o755).xattr("security.capability", CAPABILITY),
        TestEntry::file("xattrs/trusted", "x").xattr("trusted.some", "thing"),
        TestEntry::file("xattrs/large", "x").xattr("user.large", vec![0xa5; 2000]),
        TestEntry::file("xattrs/many", "x").xattr("user.c", "3").xattr("user.a", "1").xattr("user.b", "2"),
        TestEntry::file("xattrs/overlay", "x")
            .xattr("trusted.overlay.metacopy", "y")
            .xattr("user.overlay.opaque", "y")
            .xattr("user.kept", "k"),
        TestEntry::symlink("xattrs/link", "binary").xattr("trusted.on-link", b"\x01"),
        // Parents that no entry describes.
        TestEntry::file("implied/parents/of/this", "x"),
        TestEntry::directory("implied/later").mode(0o700),
    ]
}

fn sizes() -> Vec<TestEntry> {
    let lengths = [0, 1, 511, 512, 513, 4095, 4096, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000];
    let of = |length: u64| TestEntry::file(format!("sizes/{length}"), noise(length, length));
    lengths.into_iter().map(of).chain([TestEntry::file("sizes/zeros", Content::Zeros(2 << 20))]).collect()
}

fn long_names() -> Vec<TestEntry> {
    let longest = "n".repeat(255);
    let deep = "directory-with-a-name/".repeat(14);
    let target = "../".repeat(200);
    vec![
        TestEntry::file(format!("names/{longest}"), "pax"),
        TestEntry::file(format!("names/gnu/{longest}"), "gnu").gnu(),
        TestEntry::directory(format!("names/{deep}")).mode(0o711),
        TestEntry::file(format!("names/{deep}file"), "deep"),
        TestEntry::symlink("names/long-target", &target),
        TestEntry::symlink("names/long-target-gnu", &target).gnu(),
        TestEntry::hardlink("names/long-hardlink", format!("names/gnu/{longest}")).gnu(),
        TestEntry::file(format!("names/{}", "x".repeat(94)), "exactly 100 bytes"),
        TestEntry::file(format!("names/{}", "x".repeat(95)), "exactly 101 bytes"),
        TestEntry::file("names/with space and\nnewline", "x"),
        TestEntry::file("names/back\\slash", "x"),
        TestEntry::file("names/.wh", "no whiteout"),
        TestEntry::file("names/-", "x"),
        TestEntry::file("names/ümläut", "x"),
        TestEntry::file("names/日本語", "x").gnu(),
        TestEntry::file("/absolute/name", "x"),
        TestEntry::file("../../outside/name", "x"),
        TestEntry::file("names/./dotted//twice/../once", "x"),
    ]
}

fn raw_names() -> Vec<TestEntry> {
    vec![
        TestEntry::file(b"names/latin1-\xe9", "x"),
        TestEntry::file(b"names/latin1-gnu-\xe9", "x").gnu(),
        TestEntry::directory(b"names/\xff\xfe"),
        TestEntry::file(b"names/\xff\xfe/\x01", "x"),
        TestEntry::symlink("names/to-latin1", b"latin1-\xe9"),
        TestEntry::hardlink(b"names/\xff\xfe/link", b"names/latin1-\xe9"),
    ]
}

/// Pieces but the last are whole blocks: otherwise tools disagree on where the next one begins. Every encoding with: two pieces, more pieces than two continuation headers hold, nothing but a hole, and no hole at the end.
pub fn sparse_files(encodings: &[SparseEncoding]) -> Vec<TestEntry> {
    let few =
        Content::Sparse { pieces: vec![(4096, noise(1, 5120)), (1 << 20, noise(2, 1))], length: 3 << 20 };
    let pieces = (0..60).map(|number| (number * 8192 + 512, noise(number, 512 * (1 + number % 3)))).collect();
    let many = Content::Sparse { pieces, length: 1 << 20 };
    let hole = Content::Sparse { pieces: Vec::new(), length: 123_456 };
    let ends_in_data =
        Content::Sparse { pieces: vec![(0, noise(3, 512)), (70_000, noise(4, 3000))], length: 73_000 };
    let mut entries = Vec::new();
    for encoding in encodings.iter().copied() {
        for (name, content) in
            [("few", &few), ("many", &many), ("hole", &hole), ("to-the-end", &ends_in_data)]
        {
            entries.push(TestEntry::sparse(format!("sparse/{encoding:?}-{name}"), content.clone(), encoding));
        }
        let long = format!("sparse/{encoding:?}-{}", "long-name-".repeat(12));
        let entry = TestEntry::sparse(long, few.clone(), encoding).owner(5_000_000, 1).modified(-7, 8);
        entries.push(entry.xattr("user.sparse", "s"));
        // What follows a sparse entry shows whether its end was found.
        entries.push(TestEntry::file(format!("sparse/{encoding:?}-after"), "after"));
    }
    entries
}

fn lower_names() -> Vec<TestEntry> {
    let mut entries = vec![
        TestEntry::directory("merge"),
        TestEntry::file("merge/removed", "lower"),
        TestEntry::directory("merge/removed-directory"),
        TestEntry::file("merge/removed-directory/file", "lower"),
        TestEntry::directory("merge/opaque").mode(0o711).xattr("user.lower", "kept"),
        TestEntry::file("merge/opaque/lower", "lower"),
        TestEntry::directory("merge/silently-opaque").mode(0o750).owner(3, 4).modified(77, 7),
        TestEntry::file("merge/silently-opaque/lower", "lower"),
        TestEntry::directory("merge/attributes").mode(0o700).owner(1, 1).xattr("user.lower", "gone"),
        TestEntry::file("merge/attributes/kept", "lower"),
        TestEntry::directory("merge/remade").xattr("user.lower", "gone"),
        TestEntry::file("merge/remade/lower", "lower"),
        TestEntry::directory("usr/lib").mode(0o711),
        TestEntry::file("usr/lib/lower", "lower"),
        TestEntry::symlink("lib", "usr/lib"),
        TestEntry::symlink("chain", "/merge/../lib"),
        TestEntry::symlink("escape", "../../../../../usr/lib"),
        TestEntry::symlink("to-be-directory", "usr/lib"),
        TestEntry::file("merge/link-target", "lower").owner(9, 9).xattr("user.target", "t"),
        TestEntry::file("merge/hidden-target", "lower and hidden"),
        TestEntry::file("merge/one", "shared"),
        TestEntry::hardlink("merge/two", "merge/one"),
        TestEntry::file("merge/twice", "first"),
        TestEntry::file("merge/twice", "second").mode(0o600),
        TestEntry::directory("merge/type-twice"),
        TestEntry::file("merge/type-twice/below", "x"),
        TestEntry::file("merge/type-twice", "now a file"),
    ];
    for from in TYPES {
        for to in TYPES {
            entries.extend(of_type(&format!("change/{from}-to-{to}"), from));
        }
    }
    entries
}

const TYPES: [&str; 5] = ["directory", "file", "symlink", "fifo", "device"];

/// An entry of that type; a directory holds a file.
fn of_type(name: &str, kind: &str) -> Vec<TestEntry> {
    match kind {
        "directory" => vec![TestEntry::directory(name), TestEntry::file(format!("{name}/below"), kind)],
        "file" => vec![TestEntry::file(name, kind)],
        "symlink" => vec![TestEntry::symlink(name, "../usr/lib")],
        "fifo" => vec![TestEntry::fifo(name)],
        _ => vec![TestEntry::character_device(name, 1, 5)],
    }
}

fn upper_names() -> Vec<TestEntry> {
    let mut entries = vec![
        TestEntry::whiteout("merge/removed"),
        TestEntry::whiteout("merge/removed-directory"),
        TestEntry::whiteout("merge/never-there"),
        TestEntry::directory("merge/opaque").mode(0o755),
        TestEntry::file("merge/opaque/upper", "before the marker"),
        TestEntry::opaque("merge/opaque"),
        TestEntry::file("merge/opaque/later", "after the marker"),
        TestEntry::opaque("merge/silently-opaque"),
        TestEntry::directory("merge/attributes")
            .mode(0o1755)
            .owner(2, 3)
            .modified(5, 5)
            .xattr("user.upper", "new"),
        // Made again, and the whiteout comes last.
        TestEntry::directory("merge/remade").mode(0o705),
        TestEntry::file("merge/remade/upper", "upper"),
        TestEntry::whiteout("merge/remade"),
        TestEntry::file("lib/upper", "below a symlink"),
        TestEntry::file("chain/through-a-chain", "below two symlinks"),
        TestEntry::file("escape/stays-inside", "below a symlink that points outside"),
        TestEntry::whiteout("lib/lower"),
        TestEntry::directory("to-be-directory").mode(0o701),
        TestEntry::file("to-be-directory/own", "not in usr/lib"),
        TestEntry::hardlink("merge/link-to-lower", "merge/link-target"),
        TestEntry::hardlink("merge/link-to-hidden", "merge/hidden-target"),
        TestEntry::whiteout("merge/hidden-target"),
        TestEntry::file("merge/one", "no longer shared"),
        TestEntry::hardlink("merge/own-first-name", "merge/link-to-lower"),
        TestEntry::symlink("own-link", "merge"),
        TestEntry::file("own-link/below-own-link", "x"),
    ];
    for from in TYPES {
        for to in TYPES {
            entries.extend(of_type(&format!("change/{from}-to-{to}"), to));
        }
    }
    entries
}

fn third_layer() -> Vec<TestEntry> {
    vec![
        TestEntry::whiteout("sizes"),
        TestEntry::file("merge/removed", "back again"),
        TestEntry::file("merge/silently-opaque/third", "third"),
        TestEntry::hardlink("merge/third-name", "merge/link-to-lower"),
        TestEntry::whiteout("merge/link-target"),
        TestEntry::directory("implied/parents").mode(0o700),
    ]
}

/// Layers of which each adds, changes and removes something.
pub fn many_layers(count: usize) -> Vec<Vec<TestEntry>> {
    let layer = |number: usize| {
        let mut entries = vec![
            TestEntry::directory("layers").mode(0o700 + number as u32 % 8),
            TestEntry::file(format!("layers/{number}"), noise(number as u64, 100 + number as u64)),
            TestEntry::file("layers/last", format!("layer {number}").as_str()),
            TestEntry::file(format!("deep/{}/{number}", number % 7), "x"),
        ];
        if number % 3 == 2 {
            entries.push(TestEntry::whiteout(format!("layers/{}", number - 1)));
        }
        if number % 10 == 9 {
            entries.push(TestEntry::opaque(format!("deep/{}", number % 7)));
        }
        entries
    };
    (0..count).map(layer).collect()
}

/// One layer with that many small files: half of them in one directory.
pub fn many_files(count: usize) -> Vec<TestEntry> {
    let name = |number: usize| {
        if number.is_multiple_of(2) {
            format!("one-directory/file-{number:07}")
        } else {
            format!("tree/{}/{}/{number}", number % 10, number / 10 % 20)
        }
    };
    (0..count).map(|number| TestEntry::file(name(number), noise(number as u64, number as u64 % 50))).collect()
}

/// A file below that many directories, all of them described.
pub fn deep_path(depth: usize) -> Vec<TestEntry> {
    let mut path = String::new();
    let mut entries = Vec::new();
    for level in 0..depth {
        path.push_str(&format!("{level:09}/"));
        entries.push(TestEntry::directory(&path).mode(0o700 + level as u32 % 64));
    }
    entries.push(TestEntry::file(format!("{path}bottom"), "deep down"));
    entries
}

/// Files of several GiB, nearly all of them holes.
pub fn huge_files() -> Vec<TestEntry> {
    const GIB: u64 = 1 << 30;
    let beyond_four = Content::Sparse {
        pieces: vec![
            (0, noise(1, 4096)),
            (2 * GIB - 1, noise(2, 512)),
            (4 * GIB - 512, noise(3, 1024)),
            (7 * GIB, noise(4, 1)),
        ],
        length: 9 * GIB + 5,
    };
    vec![
        TestEntry::sparse("old-gnu", beyond_four.clone(), SparseEncoding::OldGnu),
        TestEntry::sparse("pax-1.0", beyond_four, SparseEncoding::Pax10),
        TestEntry::sparse(
            "hole",
            Content::Sparse { pieces: vec![], length: 100 * GIB },
            SparseEncoding::Pax01,
        ),
        TestEntry::file("after", "after"),
    ]
}

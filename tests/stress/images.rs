//! What is mounted: six images in all the ways in which layers come, from two registries, and what each must look like, as the reference
//! model says.

use crate::support::archive::TestEntry;
use crate::support::blob::{Encoded, Estargz, Footer, Form, Landmark};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::Peel;
use crate::support::registry::{Authentication, FakeRegistry};
use crate::support::soci;
use crate::support::tree::{Node, NodeKind, Tree};
use std::collections::BTreeSet;
use std::path::Path;

const ESTARGZ: Form = Form::Estargz(Estargz {
    chunk_size: 64 << 10,
    footer: Footer::Modern,
    annotated: true,
    landmark: Some(Landmark::NoPrefetch),
});

/// An image in a registry.
pub struct Image {
    pub reference: String,
    pub layers: Vec<Vec<TestEntry>>,
    pub paths: Vec<Expected>,
    /// Where in `paths` the regular files are, links to them too.
    pub files: Vec<usize>,
}

/// What there must be at a path.
pub struct Expected {
    pub path: String,
    pub what: What,
    pub mode: u32,
    pub links: u64,
}

pub enum What {
    File(Vec<u8>),
    Directory(BTreeSet<String>),
    Symlink(String),
}

impl Image {
    fn new(reference: String, layers: Vec<Vec<TestEntry>>) -> Image {
        let tree = Model::of(&layers).unwrap().tree();
        let paths: Vec<_> = tree.nodes.iter().map(|(path, node)| Expected::new(&tree, path, node)).collect();
        let is_file = |number: &usize| matches!(paths[*number].what, What::File(_));
        let files = (0..paths.len()).filter(is_file).collect();
        Image { reference, layers, paths, files }
    }

    /// The bytes of one of its files.
    pub fn file(&self, number: usize) -> (&str, &[u8]) {
        let expected = &self.paths[self.files[number]];
        let What::File(bytes) = &expected.what else { unreachable!("files are listed as such") };
        (&expected.path, bytes)
    }
}

impl Expected {
    fn new(tree: &Tree, path: &[u8], node: &Node) -> Expected {
        let path = String::from_utf8(path.to_vec()).unwrap();
        let what = match &node.kind {
            NodeKind::File(_) => What::File(tree.read(&path)),
            NodeKind::Symlink(target) => What::Symlink(String::from_utf8(target.clone()).unwrap()),
            NodeKind::Directory => What::Directory(names_in(tree, &path)),
            kind => panic!("no image here has {kind:?}"),
        };
        Expected { path, what, mode: node.mode, links: node.links }
    }
}

fn names_in(tree: &Tree, directory: &str) -> BTreeSet<String> {
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let paths = tree.nodes.keys().map(|path| std::str::from_utf8(path).unwrap());
    let below = paths.filter_map(|path| path.strip_prefix(&prefix)).filter(|name| !name.is_empty());
    below.filter(|name| !name.contains('/')).map(str::to_owned).collect()
}

/// Small files in directories, larger ones, and some of many chunks: 4 MB.
fn lower(seed: u64) -> Vec<TestEntry> {
    let noise = |number: u64, length: u64| Content::Noise { seed: 10_000 * seed + number, length };
    let small =
        (0..160).map(|n| TestEntry::file(format!("small/{}/{n}", n % 4), noise(n, 30 + n * 37)).mode(0o640));
    let medium = (0..12).map(|n| TestEntry::file(format!("medium/{n}"), noise(200 + n, 60_000 + n * 7_001)));
    let text = format!("line of image {seed}\n").repeat(60_000);
    let hole = Content::Sparse { pieces: vec![(500_000, noise(300, 70_000))], length: 900_000 };
    let large = [
        TestEntry::file("large/noise", noise(301, 1_300_000)).mode(0o755),
        TestEntry::file("large/text", text.as_str()),
        TestEntry::file("large/holes", hole),
        TestEntry::hardlink("large/again", "large/noise"),
        TestEntry::symlink("link", "large/text"),
        TestEntry::file("empty", ""),
    ];
    small.chain(medium).chain(large).collect()
}

/// Changes to that: 2 MB.
fn upper(seed: u64) -> Vec<TestEntry> {
    let noise = |number: u64, length: u64| Content::Noise { seed: 10_000 * seed + 5_000 + number, length };
    let replaced = (0..40).map(|n| TestEntry::file(format!("small/1/{}", 4 * n + 1), noise(n, 900 + n)));
    let new = (0..8).map(|n| TestEntry::file(format!("new/{n}"), noise(100 + n, 90_000 + n)));
    let others = [
        TestEntry::whiteout("medium/3"),
        TestEntry::opaque("small/2"),
        TestEntry::file("small/2/only", noise(200, 5_000)),
        TestEntry::file("new/large", noise(201, 1_100_000)),
        TestEntry::hardlink("new/again", "new/large"),
        TestEntry::symlink("new/link", "../medium/5"),
    ];
    replaced.chain(new).chain(others).collect()
}

/// Two registries: one wants tokens that do not last, the other sends clients to signed URLs that do not.
pub fn registries() -> [FakeRegistry; 2] {
    let registries = [FakeRegistry::start(), FakeRegistry::start()];
    registries[0].require(Authentication::Token { login: None, identity_token: None, uses: 60, realm: None });
    registries[1].redirect_blobs(Some(20));
    registries
}

/// All images, put into the registries.
pub fn images(directory: &Path, registries: &[FakeRegistry; 2]) -> Vec<Image> {
    let [first, second] = registries;
    let mut layout = Layout::create(directory.join("layout"));
    let stack = |seed| vec![lower(seed), upper(seed)];
    let mut images = Vec::new();

    layout.image("estargz", &stack(1), ESTARGZ);
    images.push(Image::new(layout.serve(first, "stress/estargz", "estargz"), stack(1)));

    let source = layout.image("source", &stack(2), Form::GZIP);
    let target = directory.join("chunked");
    let destination = format!("oci:{}:1", target.display());
    Peel::new().succeed(&["convert", &source, &destination, "--format", "zstd-chunked", "--quiet"]);
    images.push(Image::new(Layout::open(target).serve(first, "stress/chunked", "1"), stack(2)));

    let with_index: Vec<_> = stack(3).iter().map(|layer| soci::gzip_layer(layer, 128 << 10, 8)).collect();
    let index = soci::put_image(&mut layout, "soci", &with_index);
    images.push(Image::new(soci::serve(&layout, second, "stress/soci", "soci", &index), stack(3)));

    layout.image("gzip", &stack(4), Form::Gzip { members: 5 });
    images.push(Image::new(layout.serve(second, "stress/gzip", "gzip"), stack(4)));

    // Its lower layer is that of the image before in another compression.
    let layers = vec![lower(4), upper(5)];
    layout.image("zstd", &layers, Form::Zstd { frames: 9 });
    images.push(Image::new(layout.serve(second, "stress/zstd", "zstd"), layers));

    // The lower layer is the blob of the first image, the upper one is streamed.
    let layers = vec![lower(1), upper(6)];
    let encoded: Vec<Encoded> =
        vec![layout.put_layer(&layers[0], ESTARGZ), layout.put_layer(&layers[1], Form::Tar)];
    let manifest = layout.put_image(&encoded, this_architecture());
    layout.tag("mixed", &manifest);
    images.push(Image::new(layout.serve(first, "stress/mixed", "mixed"), layers));
    images
}

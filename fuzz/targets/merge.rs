//! Stacks of layers (`layer/builder.rs`, `tree/merge.rs`), described entry by entry: the merged tree is the reference model's, and its
//! table holds together.
#![no_main]

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use peelfs_fuzz::support::archive::{TestEntry, tar_bytes};
use peelfs_fuzz::support::content::Content;
use peelfs_fuzz::support::merged::merged_tree;
use peelfs_fuzz::support::model::Model;
use peelfs_fuzz::support::tree::differences;
use peelfs_fuzz::tar::{check_told, table_of, told};

#[derive(Debug)]
struct Stack(Vec<Vec<TestEntry>>);

impl<'a> Arbitrary<'a> for Stack {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Stack> {
        let mut layers = vec![Vec::new()];
        while !bytes.is_empty() && layers.len() < 5 {
            match bytes.int_in_range(0..=9)? {
                0 => layers.push(Vec::new()),
                _ => layers.last_mut().into_iter().try_for_each(|layer| {
                    layer.push(entry(bytes)?);
                    Ok(())
                })?,
            }
        }
        Ok(Stack(layers))
    }
}

fn entry(bytes: &mut Unstructured<'_>) -> Result<TestEntry> {
    let path = path(bytes)?;
    let mut entry = match bytes.int_in_range(0..=17)? {
        0..=3 => TestEntry::file(path, Content::Noise { seed: 1, length: bytes.int_in_range(0..=3)? * 300 }),
        4..=6 => TestEntry::directory(path),
        7..=9 => TestEntry::symlink(path, target(bytes)?),
        10 | 11 => TestEntry::hardlink(path, target(bytes)?),
        12 => TestEntry::fifo(path),
        13 => TestEntry::character_device(path, 5, bytes.arbitrary()?),
        14..=16 => return Ok(TestEntry::whiteout(path)),
        _ => return Ok(TestEntry::opaque(path)),
    };
    (entry.mode, entry.uid) = (bytes.int_in_range(0..=0o7777)?, bytes.int_in_range(0..=2)?);
    Ok(entry)
}

fn path(bytes: &mut Unstructured<'_>) -> Result<String> {
    let mut names = Vec::new();
    for _ in 0..bytes.int_in_range(1..=4)? {
        names.push(*bytes.choose(&["a", "b", "c"])?);
    }
    Ok(names.join("/"))
}

fn target(bytes: &mut Unstructured<'_>) -> Result<String> {
    let before = *bytes.choose(&["", "", "/", "../", "../../", "./"])?;
    Ok(format!("{before}{}", path(bytes)?))
}

fuzz_target!(|stack: Stack| {
    let layers = Model::with_plain_markers(stack.0);
    for layer in &layers {
        let archive = tar_bytes(layer);
        let told = told(&archive, usize::MAX);
        assert_eq!(told.error, None, "an archive of the tests");
        check_told(&told, &archive);
        table_of(told.entries.iter().map(|(entry, ..)| entry), archive.len() as u64);
    }
    match (Model::of(&layers), merged_tree(&layers)) {
        (Ok(model), Ok(tree)) => {
            let differences = differences(&tree, &model.tree());
            assert!(differences.is_empty(), "{layers:#?}\n{}", differences[0]);
        }
        (Err(_), _) => {}
        (Ok(_), Err(error)) => panic!("refused, though the model accepts it: {error}\n{layers:#?}"),
    }
});

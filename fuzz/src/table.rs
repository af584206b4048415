//! Inode tables: asked for everything, and held against what the writer promises.

use std::collections::HashSet;

use peelfs::table::Table;
use peelfs::table::format::{InodeRecord, MAXIMUM_NAME, NONE, inode_flags};

/// Asks any table, sound or not, for all that it has. Whatever it answers, each answer comes, and there is an end of them.
pub fn ask_everything(table: &Table) {
    let mut answers = 0_u64;
    let mut left = 100_000;
    for (number, inode) in table.inodes().iter().enumerate() {
        for entry in table.directory(inode).iter().take(1000) {
            let name = table.name(entry);
            answers = answers.wrapping_add(name.len() as u64);
            let found = table.find(inode, name);
            answers = answers.wrapping_add(found.is_some().into());
            answers = answers.wrapping_add(table.inode(entry.inode.get()).is_some().into());
            left -= 1;
        }
        answers = answers.wrapping_add(table.target(inode).len() as u64);
        let set = table.xattr_set(inode);
        for (name, value) in table.xattrs(inode) {
            assert!(name.len() + value.len() <= set.len(), "a pair is longer than its set");
        }
        for extent in table.extents(inode).iter().take(1000) {
            ask_content(table, extent.decoded_offset.get(), extent.length.get());
            left -= 1;
        }
        ask_content(table, inode.content.get(), inode.size.get());
        if left < 0 || number > 10_000 {
            break;
        }
    }
    std::hint::black_box((answers, table.has_whiteouts(), table.content_bytes(), table.entry_count()));
}

fn ask_content(table: &Table, decoded_offset: u64, length: u64) {
    let mut total = 0_u64;
    for piece in table.pieces(decoded_offset, length).take(1000) {
        assert!(piece.length > 0, "a piece of nothing");
        total = total.checked_add(piece.length).expect("pieces beyond the numbers");
    }
    assert!(total <= length, "pieces of {total} bytes for {length}");
    let chunks = table.chunks_of(decoded_offset..decoded_offset.saturating_add(length));
    assert!(chunks.start <= chunks.end && chunks.end <= table.chunks().len());
}

/// Holds a table that the project has just written against what its format promises. `decoded_length`: no content lies beyond.
pub fn check_written(table: &Table, decoded_length: u64) {
    let is_layer = table.layer_count() == 0;
    let mut names = vec![0_u32; table.inodes().len()];
    let mut seen = HashSet::from([0]);
    let mut directories = vec![0];
    let mut content = 0_u64;
    let root = table.inode(0).expect("a root");
    assert!(is_directory(root) && root.parent.get() == 0, "the root");
    while let Some(number) = directories.pop() {
        let directory = table.inode(number).expect("an inode that was seen");
        let mut before: Option<&[u8]> = None;
        let mut subdirectories = 0;
        for entry in table.directory(directory) {
            let name = table.name(entry);
            check_name(name);
            assert!(before.is_none_or(|before| before < name), "names out of order");
            before = Some(name);
            let found = table.find(directory, name).expect("a name that was shown is found");
            assert_eq!(found.inode.get(), entry.inode.get());
            if entry.inode.get() == NONE {
                assert!(is_layer && entry.kind.get() == 0, "a whiteout in a merged tree");
                continue;
            }
            let child = table.inode(entry.inode.get()).expect("an entry's inode is there");
            assert_eq!(u32::from(entry.kind.get()), child.mode.get() >> 12, "the type beside the name");
            names[entry.inode.get() as usize] += 1;
            if is_directory(child) {
                assert!(seen.insert(entry.inode.get()), "a directory with two names");
                assert_eq!(child.parent.get(), number, "the parent of a directory");
                subdirectories += 1;
                directories.push(entry.inode.get());
            }
        }
        assert_eq!(directory.link_count.get(), 2 + subdirectories, "links of a directory");
    }
    for (number, inode) in table.inodes().iter().enumerate() {
        check_inode(table, inode, is_layer, decoded_length);
        if !is_directory(inode) {
            assert!(names[number] > 0, "an inode without a name");
            assert_eq!(inode.link_count.get(), names[number], "links of a file");
        }
        if inode.mode.get() & libc::S_IFMT == libc::S_IFREG
            && inode.flags.get() & inode_flags::LINK_TO_LOWER == 0
        {
            content = content.saturating_add(inode.size.get());
        }
    }
    assert_eq!(table.content_bytes(), content);
    check_placement(table);
    ask_everything(table);
}

fn is_directory(inode: &InodeRecord) -> bool {
    inode.mode.get() & libc::S_IFMT == libc::S_IFDIR
}

fn check_name(name: &[u8]) {
    assert!((1..=MAXIMUM_NAME).contains(&name.len()), "a name of {} bytes", name.len());
    assert!(!name.contains(&b'/') && !name.contains(&0), "a name that is none: {}", name.escape_ascii());
    assert!(name != b"." && name != b"..", "a name that leads elsewhere");
}

fn check_inode(table: &Table, inode: &InodeRecord, is_layer: bool, decoded_length: u64) {
    assert!(inode.modified_nanoseconds.get() < 1_000_000_000, "nanoseconds");
    let flags = inode.flags.get();
    assert!(is_layer || flags & !inode_flags::ALL_ZEROS == 0, "flags {flags:#x} in a merged tree");
    let pairs: Vec<_> = table.xattrs(inode).collect();
    assert!(pairs.windows(2).all(|pair| pair[0].0 < pair[1].0), "attributes out of order");
    match inode.mode.get() & libc::S_IFMT {
        libc::S_IFREG if flags & inode_flags::LINK_TO_LOWER != 0 => {
            assert!(!table.target(inode).is_empty(), "a link to nothing");
        }
        libc::S_IFREG if flags & inode_flags::ALL_ZEROS != 0 => {}
        // The extents of a merged tree are in its layers' tables.
        libc::S_IFREG if inode.count.get() > 0 && !is_layer => {}
        libc::S_IFREG if inode.count.get() > 0 => {
            let mut position = 0;
            let extents = table.extents(inode);
            assert_eq!(extents.len(), inode.count.get() as usize);
            for extent in extents {
                assert!(extent.file_offset.get() >= position && extent.length.get() > 0, "extents overlap");
                position = extent.file_offset.get() + extent.length.get();
                assert!(position <= inode.size.get(), "an extent beyond its file");
                assert!(
                    extent.decoded_offset.get() + extent.length.get() <= decoded_length,
                    "content beyond"
                );
            }
        }
        libc::S_IFREG if is_layer => {
            let end = inode.content.get().checked_add(inode.size.get()).expect("content beyond the numbers");
            assert!(end <= decoded_length || inode.size.get() == 0, "content beyond the decoded space");
        }
        libc::S_IFLNK => {
            let target = table.target(inode);
            assert!(!target.is_empty() && !target.contains(&0) && target.len() as u64 == inode.size.get());
        }
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO => {}
        other => panic!("an inode of type {other:#o}"),
    }
}

fn check_placement(table: &Table) {
    let apart = |places: Vec<(u64, u64)>, what| {
        let ends = |&(offset, length): &(u64, u64)| offset.checked_add(length).expect("beyond the numbers");
        assert!(places.windows(2).all(|pair| ends(&pair[0]) <= pair[1].0), "{what} overlap");
    };
    let chunks = table.chunks().iter();
    apart(chunks.map(|chunk| (chunk.decoded_offset.get(), chunk.decoded_length.get())).collect(), "chunks");
    let large = table.large().iter();
    apart(large.map(|part| (part.decoded_offset.get(), part.length.get())).collect(), "large files");
}

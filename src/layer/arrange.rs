//! In which order a layer's entries are written anew, and which of them.
//!
//! Left out are landmarks and tables of contents of formats that list the files of a layer, and what a later entry of the same
//! layer replaces: such a list has one entry for each name. First come the files that are wanted first, each after its parent
//! directories and, if it is a hardlink, after its target; all else stays in the order of the archive.

use std::collections::{HashMap, HashSet};

use super::entry::EntryKind;
use super::path::{PathError, components};
use super::spool::SpooledEntry;
use super::toc::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};

/// Names at the root of a layer that belong to a format and not to the image.
const RESERVED_NAMES: [&[u8]; 3] = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK];

/// Why entries cannot be arranged.
#[derive(Debug, thiserror::Error)]
pub enum ArrangeError {
    /// A name that cannot be in a tree.
    #[error("entry \"{name}\": {reason}")]
    Path {
        /// As written, escaped.
        name: String,
        /// What is wrong with it.
        reason: PathError,
    },
    /// A file that has a second name, and of which the first was taken by another file later.
    #[error(
        "entry \"{name}\" is a hardlink to \"{target}\", which a later entry replaces: a table of contents cannot say that"
    )]
    ReplacedTarget {
        /// The second name, escaped.
        name: String,
        /// The first.
        target: String,
    },
}

/// What is written, by index of the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrangement {
    /// What is wanted first.
    pub wanted: Vec<usize>,
    /// All else.
    pub rest: Vec<usize>,
    /// Positions, in the list of what is wanted, of names that this layer does not have.
    pub missed: Vec<usize>,
}

/// Arranges `entries`; `wanted` are paths in the image, in any form.
///
/// # Errors
/// [`ArrangeError`].
pub fn arrange(entries: &[SpooledEntry], wanted: &[Vec<u8>]) -> Result<Arrangement, ArrangeError> {
    let names = names(entries)?;
    let kept = last_of_each_name(entries, &names);
    check_targets(entries, &names, &kept)?;
    let kept_by_name: HashMap<&[u8], usize> = kept.iter().map(|at| (&names[*at][..], *at)).collect();
    let mut mover = Mover { entries, kept_by_name, moved: HashSet::new(), order: Vec::new() };
    let mut missed = Vec::new();
    for (position, path) in wanted.iter().enumerate() {
        let Ok(name) = cleaned(path) else {
            missed.push(position);
            continue;
        };
        if mover.kept_by_name.contains_key(&name[..]) {
            mover.move_up(name);
        } else {
            missed.push(position);
        }
    }
    let Mover { moved, order, .. } = mover;
    let rest = kept.into_iter().filter(|at| !moved.contains(at)).collect();
    Ok(Arrangement { wanted: order, rest, missed })
}

/// Root-relative, without anything that says nothing; empty for the root.
fn cleaned(path: &[u8]) -> Result<Vec<u8>, PathError> {
    Ok(components(path)?.join(&b'/'))
}

fn names(entries: &[SpooledEntry]) -> Result<Vec<Vec<u8>>, ArrangeError> {
    let name = |spooled: &SpooledEntry| {
        cleaned(&spooled.entry.path).map_err(|reason| ArrangeError::Path {
            name: spooled.entry.path.escape_ascii().to_string(),
            reason,
        })
    };
    entries.iter().map(name).collect()
}

/// The entries that nothing later replaces. What is not a directory replaces all that was below its name, too; and what is below
/// a name replaces what was neither directory nor symlink there.
fn last_of_each_name(entries: &[SpooledEntry], names: &[Vec<u8>]) -> Vec<usize> {
    let mut kept = Vec::new();
    let mut seen: HashSet<&[u8]> = HashSet::new();
    // Names that are directories to what comes later.
    let mut parents: HashSet<&[u8]> = HashSet::new();
    // Names of later entries that are no directories, nor lead to one.
    let mut leaves: HashSet<&[u8]> = HashSet::new();
    for (at, name) in names.iter().enumerate().rev() {
        let kind = &entries[at].entry.kind;
        let is_directory = matches!(kind, EntryKind::Directory);
        let may_lead = is_directory || matches!(kind, EntryKind::Symlink { .. });
        let is_replaced = RESERVED_NAMES.contains(&&name[..])
            || seen.contains(&name[..])
            || (!may_lead && parents.contains(&name[..]))
            || ancestors(name).any(|parent| leaves.contains(parent));
        if is_replaced {
            continue;
        }
        seen.insert(name);
        if !may_lead {
            leaves.insert(name);
        }
        parents.extend(ancestors(name));
        kept.push(at);
    }
    kept.reverse();
    kept
}

/// The names above a cleaned name, without the root.
fn ancestors(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &name[..at])
}

/// A hardlink means the file that its target was when the link was made: that must be the one that is kept.
fn check_targets(entries: &[SpooledEntry], names: &[Vec<u8>], kept: &[usize]) -> Result<(), ArrangeError> {
    let kept_set: HashSet<usize> = kept.iter().copied().collect();
    let mut latest: HashMap<&[u8], usize> = HashMap::new();
    for (at, spooled) in entries.iter().enumerate() {
        if let EntryKind::Hardlink { target } = &spooled.entry.kind
            && kept_set.contains(&at)
            && let Ok(target) = cleaned(target)
            && let Some(then) = latest.get(&target[..])
            && !kept_set.contains(then)
        {
            return Err(ArrangeError::ReplacedTarget {
                name: names[at].escape_ascii().to_string(),
                target: target.escape_ascii().to_string(),
            });
        }
        latest.insert(&names[at], at);
    }
    Ok(())
}

struct Mover<'a> {
    entries: &'a [SpooledEntry],
    kept_by_name: HashMap<&'a [u8], usize>,
    moved: HashSet<usize>,
    order: Vec<usize>,
}

impl Mover<'_> {
    /// Moves what a name needs, and then the name itself. A list instead of recursion: chains of hardlinks may be long.
    fn move_up(&mut self, name: Vec<u8>) {
        enum Step {
            Look(Vec<u8>),
            Take(usize),
        }
        let mut steps = vec![Step::Look(name)];
        let mut looked = HashSet::new();
        while let Some(step) = steps.pop() {
            let name = match step {
                Step::Take(at) => {
                    if self.moved.insert(at) {
                        self.order.push(at);
                    }
                    continue;
                }
                Step::Look(name) => name,
            };
            // A hardlink to what is below itself, or to itself, must not go round.
            if !looked.insert(name.clone()) {
                continue;
            }
            if let Some(&at) = self.kept_by_name.get(&name[..]) {
                steps.push(Step::Take(at));
                if let EntryKind::Hardlink { target } = &self.entries[at].entry.kind
                    && let Ok(target) = cleaned(target)
                {
                    steps.push(Step::Look(target));
                }
            }
            // The deepest first, so that the root is on top.
            let mut parents: Vec<&[u8]> = ancestors(&name).collect();
            parents.reverse();
            for parent in parents {
                steps.extend(self.kept_by_name.get(parent).map(|at| Step::Take(*at)));
            }
            steps.extend(self.kept_by_name.get(&b""[..]).map(|at| Step::Take(*at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::{Content, Entry};

    fn entry(path: &str, kind: EntryKind) -> SpooledEntry {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            modified: Default::default(),
            xattrs: vec![],
        };
        SpooledEntry { entry, headers: 0..0 }
    }

    fn layer(text: &str) -> Vec<SpooledEntry> {
        let one = |word: &str| match (word.split_once('='), word.split_once('@')) {
            (Some((name, target)), _) => entry(name, EntryKind::Hardlink { target: target.into() }),
            (_, Some((name, target))) => entry(name, EntryKind::Symlink { target: target.into() }),
            _ if word.ends_with('/') => entry(word, EntryKind::Directory),
            _ => entry(word, EntryKind::Regular { size: 0, content: Content::Contiguous(0) }),
        };
        text.split(' ').map(one).collect()
    }

    /// Wanted, then a bar, then the rest; as written in the archive.
    fn arranged(text: &str, wanted: &[&str]) -> String {
        let entries = layer(text);
        let wanted: Vec<Vec<u8>> = wanted.iter().map(|path| path.as_bytes().to_vec()).collect();
        let arrangement = arrange(&entries, &wanted).unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        let joined = |order: &[usize]| order.iter().map(|at| words[*at]).collect::<Vec<_>>().join(" ");
        format!("{}|{}", joined(&arrangement.wanted), joined(&arrangement.rest))
    }

    #[test]
    fn what_is_wanted_comes_first_with_what_it_needs() {
        let archive = "./ usr/ usr/bin/ usr/bin/sh usr/bin/ls etc/ etc/passwd usr/bin/bash=usr/bin/sh";
        assert_eq!(arranged(archive, &[]), format!("|{archive}"));
        assert_eq!(
            arranged(archive, &["/etc/passwd", "usr/bin/bash", "/missing", "etc/passwd"]),
            "./ etc/ etc/passwd usr/ usr/bin/ usr/bin/sh usr/bin/bash=usr/bin/sh|usr/bin/ls"
        );
        assert_eq!(arranged("a=b b=a", &["a"]), "b=a a=b|");
        assert_eq!(arranged("a/b c=a/b", &["c"]), "a/b c=a/b|");
    }

    #[test]
    fn missing_names_are_told() {
        let wanted = ["a", "x", "../x/./", "b"].map(|path| path.as_bytes().to_vec());
        assert_eq!(arrange(&layer("a b/"), &wanted).unwrap().missed, [1, 2]);
    }

    #[test]
    fn of_each_name_the_last_entry_is_kept() {
        for (archive, kept) in [
            ("a b a", "b a"),
            ("a/ a/x a/ b", "a/x a/ b"),
            ("a/ a/x a", "a"),
            ("a a/x", "a/x"),
            ("a@b a/x", "a@b a/x"),
            ("a ./a", "./a"),
            (".prefetch.landmark a stargz.index.json ./.no.prefetch.landmark", "a"),
            ("d/stargz.index.json", "d/stargz.index.json"),
            ("a b=a", "a b=a"),
            ("a b=a a/ a/x", ""),
        ] {
            if kept.is_empty() {
                assert!(arrange(&layer(archive), &[]).is_err(), "{archive}");
            } else {
                assert_eq!(arranged(archive, &[]), format!("|{kept}"), "{archive}");
            }
        }
    }

    #[test]
    fn a_link_whose_target_is_replaced_later_is_refused() {
        for archive in ["a b=a a", "a b=a x a/c"] {
            let error = arrange(&layer(archive), &[]).unwrap_err();
            assert!(matches!(error, ArrangeError::ReplacedTarget { .. }), "{archive}");
        }
        // Made after the replacement it means the file that is kept; and a replaced link means nothing.
        assert_eq!(arranged("a a b=a", &[]), "|a b=a");
        assert_eq!(arranged("a b=a a b", &[]), "|a b");
    }
}

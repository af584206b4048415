//! In which order a layer's entries are written anew, and which of them.
//!
//! Left out are landmarks and tables of contents of formats that list the files of a layer, and what a later entry of the same
//! layer replaces: such a list has one entry for each name. First come the files that are wanted first, each after its parent
//! directories and, if it is a hardlink, after its target; all else stays in the order of the archive.

mod names;

use self::names::{Name, NameError, Names};
use super::entry::EntryKind;
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
        reason: NameError,
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
    let layer = Layer::new(entries)?;
    let is_kept = layer.last_of_each_name();
    layer.check_targets(&is_kept)?;
    let kept = || (0..entries.len()).filter(|at| is_kept[*at]);
    let mut kept_as = vec![None; layer.names.count()];
    for at in kept() {
        kept_as[layer.name_of[at].index()] = Some(at);
    }
    let mut mover = Mover {
        layer: &layer,
        kept_as,
        looked: vec![false; layer.names.count()],
        moved: vec![false; entries.len()],
        order: Vec::new(),
    };
    let mut missed = Vec::new();
    for (position, path) in wanted.iter().enumerate() {
        match layer.names.find(path).filter(|name| mover.kept_as[name.index()].is_some()) {
            Some(name) => mover.move_up(name),
            None => missed.push(position),
        }
    }
    let Mover { moved, order, .. } = mover;
    let rest = kept().filter(|at| !moved[*at]).collect();
    Ok(Arrangement { wanted: order, rest, missed })
}

/// The entries of a layer, and what they are called.
struct Layer<'a> {
    entries: &'a [SpooledEntry],
    names: Names<'a>,
    /// Of each entry.
    name_of: Vec<Name>,
}

/// What is known of a name while the entries are looked at from the last to the first.
#[derive(Clone, Copy, Default)]
struct Later {
    /// A later entry has it.
    is_taken: bool,
    /// It is a directory to later entries.
    is_parent: bool,
    /// The later entry is no directory, nor leads to one.
    is_leaf: bool,
}

impl<'a> Layer<'a> {
    fn new(entries: &'a [SpooledEntry]) -> Result<Self, ArrangeError> {
        let mut names = Names::new();
        let mut name_of = Vec::with_capacity(entries.len());
        for SpooledEntry { entry, .. } in entries {
            let name = names.add(&entry.path).map_err(|reason| ArrangeError::Path {
                name: entry.path.escape_ascii().to_string(),
                reason,
            })?;
            name_of.push(name);
        }
        Ok(Layer { entries, names, name_of })
    }

    /// Whether each entry is one that nothing later replaces. What is not a directory replaces all that was below its name, too; and
    /// what is below a name replaces what was neither directory nor symlink there.
    fn last_of_each_name(&self) -> Vec<bool> {
        let reserved = RESERVED_NAMES.map(|name| self.names.find(name));
        let mut is_kept = vec![false; self.entries.len()];
        let mut later = vec![Later::default(); self.names.count()];
        for (at, name) in self.name_of.iter().copied().enumerate().rev() {
            let kind = &self.entries[at].entry.kind;
            let is_directory = matches!(kind, EntryKind::Directory);
            let may_lead = is_directory || matches!(kind, EntryKind::Symlink { .. });
            let Later { is_taken, is_parent, .. } = later[name.index()];
            let is_replaced = reserved.contains(&Some(name))
                || is_taken
                || (!may_lead && is_parent)
                || self.names.above(name).any(|above| later[above.index()].is_leaf);
            if is_replaced {
                continue;
            }
            later[name.index()].is_taken = true;
            later[name.index()].is_leaf = !may_lead;
            for above in self.names.above(name) {
                later[above.index()].is_parent = true;
            }
            is_kept[at] = true;
        }
        is_kept
    }

    /// A hardlink means the file that its target was when the link was made: that must be the one that is kept.
    fn check_targets(&self, is_kept: &[bool]) -> Result<(), ArrangeError> {
        let mut latest: Vec<Option<usize>> = vec![None; self.names.count()];
        for (at, SpooledEntry { entry, .. }) in self.entries.iter().enumerate() {
            if let EntryKind::Hardlink { target } = &entry.kind
                && is_kept[at]
                && let Some(named) = self.names.find(target)
                && let Some(then) = latest[named.index()]
                && !is_kept[then]
            {
                return Err(ArrangeError::ReplacedTarget {
                    name: entry.path.escape_ascii().to_string(),
                    target: target.escape_ascii().to_string(),
                });
            }
            latest[self.name_of[at].index()] = Some(at);
        }
        Ok(())
    }
}

struct Mover<'a> {
    layer: &'a Layer<'a>,
    /// The entry that is kept of each name.
    kept_as: Vec<Option<usize>>,
    /// Names that were moved with all that they need. A hardlink to what is below itself, or to itself, must not go round.
    looked: Vec<bool>,
    moved: Vec<bool>,
    order: Vec<usize>,
}

impl Mover<'_> {
    /// Moves what a name needs, and then the name itself. A list instead of recursion: chains of hardlinks may be long.
    fn move_up(&mut self, name: Name) {
        enum Step {
            Look(Name),
            Take(usize),
        }
        let mut steps = vec![Step::Look(name)];
        while let Some(step) = steps.pop() {
            let name = match step {
                Step::Take(at) => {
                    if !std::mem::replace(&mut self.moved[at], true) {
                        self.order.push(at);
                    }
                    continue;
                }
                Step::Look(name) => name,
            };
            if std::mem::replace(&mut self.looked[name.index()], true) {
                continue;
            }
            if let Some(at) = self.kept_as[name.index()] {
                steps.push(Step::Take(at));
                if let EntryKind::Hardlink { target } = &self.layer.entries[at].entry.kind {
                    steps.extend(self.layer.names.find(target).map(Step::Look));
                }
            }
            // The deepest first, so that the root is on top.
            for above in self.layer.names.above(name).chain([Name::ROOT]) {
                steps.extend(self.kept_as[above.index()].map(Step::Take));
            }
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

    /// Each of these names is 8 KB long and 4,000 deep; who hashes each path above them hashes 6 GB.
    #[test]
    fn long_names_cost_no_more_than_their_bytes() {
        let deep = "d/".repeat(4000);
        let name = |number: usize| format!("{deep}{number}");
        let files = (0..200).map(|number| {
            entry(&name(number), EntryKind::Regular { size: 0, content: Content::Contiguous(0) })
        });
        let links = (0..200).map(|number| {
            let target = if number == 0 { name(0) } else { format!("{}-link", name(number - 1)) };
            entry(&format!("{}-link", name(number)), EntryKind::Hardlink { target: target.into() })
        });
        let entries: Vec<SpooledEntry> = files.chain(links).collect();
        // The whole chain of links, wanted link by link.
        let wanted: Vec<Vec<u8>> = (0..200).map(|number| format!("{}-link", name(number)).into()).collect();
        let arrangement = arrange(&entries, &wanted).unwrap();
        let first: Vec<usize> = [0].into_iter().chain(200..400).collect();
        let expected = Arrangement { wanted: first, rest: (1..200).collect(), missed: vec![] };
        assert_eq!(arrangement, expected);
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

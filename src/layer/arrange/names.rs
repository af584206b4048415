//! The names of a layer as a tree of numbers.
//!
//! ```text
//! usr/bin/sh   ─▶  root 0 ── usr 1 ── bin 2 ── sh 3
//! ./usr/bin/ls ─▶                          └── ls 4
//! ```
//!
//! A name is looked at once, component by component, so work and memory grow with the bytes of all names, however deep they are nested:
//! who compared whole paths with each other would be kept busy by a small archive of long ones.

use std::collections::HashMap;

use crate::layer::path::{PathError, components};
use crate::table::format::MAXIMUM_INODES;

/// The number of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(usize);

impl Name {
    /// Of the root, which no component leads to.
    pub const ROOT: Name = Name(0);

    /// A place for it in arrays of as many elements as there are names.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Names are cleaned: root-relative, without anything that says nothing.
#[derive(Debug)]
pub struct Names<'a> {
    parents: Vec<Name>,
    children: HashMap<(Name, &'a [u8]), Name>,
}

/// Why a name cannot be in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// What is written there.
    #[error(transparent)]
    Path(#[from] PathError),
    /// How many there are before it.
    #[error("the layer has more than {MAXIMUM_INODES} names")]
    TooMany,
}

impl<'a> Names<'a> {
    /// A tree of the root alone.
    pub fn new() -> Self {
        Names { parents: vec![Name::ROOT], children: HashMap::new() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.parents.len()
    }

    /// The number of a path, and of all names above it from now on.
    ///
    /// # Errors
    /// If no tree can have it.
    pub fn add(&mut self, path: &'a [u8]) -> Result<Name, NameError> {
        let mut name = Name::ROOT;
        for component in components(path)? {
            let next = Name(self.parents.len());
            let child = *self.children.entry((name, component)).or_insert(next);
            if child == next {
                if next.0 >= MAXIMUM_INODES {
                    return Err(NameError::TooMany);
                }
                self.parents.push(name);
            }
            name = child;
        }
        Ok(name)
    }

    /// The number that a path has already.
    pub fn find(&self, path: &[u8]) -> Option<Name> {
        let components = components(path).ok()?;
        components.into_iter().try_fold(Name::ROOT, |name, component| {
            // A key that lives no longer than the path.
            let children: &HashMap<(Name, &[u8]), Name> = &self.children;
            children.get(&(name, component)).copied()
        })
    }

    /// The names above one, the nearest first, without the root.
    pub fn above(&self, name: Name) -> impl Iterator<Item = Name> + '_ {
        let parent = |name: &Name| Some(self.parents[name.0]).filter(|parent| *parent != Name::ROOT);
        std::iter::successors(parent(&name), parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_however_it_is_written() {
        let mut names = Names::new();
        let sh = names.add(b"usr/bin/sh").unwrap();
        assert_eq!(names.add(b"./usr//bin/../bin/sh/"), Ok(sh));
        assert_eq!(names.add(b"/"), Ok(Name::ROOT));
        assert_eq!(names.count(), 4);
        let ls = names.add(b"usr/bin/ls").unwrap();
        assert_ne!(ls, sh);
        let (usr, bin) = (names.find(b"usr").unwrap(), names.find(b"/usr/bin").unwrap());
        assert_eq!(names.above(ls).collect::<Vec<_>>(), [bin, usr]);
        assert_eq!(names.above(usr).next(), None);
        assert_eq!(names.above(Name::ROOT).next(), None);
        for missing in [&b"bin"[..], b"usr/bin/sh/x", b"usr/\0"] {
            assert_eq!(names.find(missing), None);
        }
        assert_eq!(names.add(b"a\0b"), Err(NameError::Path(PathError::Nul)));
    }
}

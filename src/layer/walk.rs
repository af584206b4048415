//! Walking a path through a tree of numbered nodes, as the kernel would inside a `chroot`: `..` stops at the root, an absolute
//! symlink begins there again, and after [`MAXIMUM_SYMLINKS`] links the path is taken to be a circle.
//!
//! What the next name leads to, the caller looks up: in the tree of one layer, or in the tree of those below.

use crate::table::format::{MAXIMUM_DEPTH, MAXIMUM_NAME};

/// As many symlinks are followed in one path as Linux follows.
pub const MAXIMUM_SYMLINKS: usize = 40;

/// Most bytes of symlink targets that are followed for all paths of a layer, or of a tree, together. 8 million files below a link like
/// `lib -> usr/lib/x86_64-linux-gnu` take three quarters of it; who wants us to walk for hours comes to its end in seconds.
pub const MAXIMUM_FOLLOWED: u64 = 256 << 20;

/// What is left of [`MAXIMUM_FOLLOWED`].
pub struct Patience {
    left: u64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { left: MAXIMUM_FOLLOWED }
    }
}

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// More than [`MAXIMUM_SYMLINKS`].
    #[error("its parent leads through too many symlinks")]
    Symlinks,
    /// More than [`MAXIMUM_DEPTH`] directories.
    #[error("its parent is nested too deep")]
    Deep,
    /// More than [`MAXIMUM_FOLLOWED`].
    #[error("the symlinks on the ways to all names add up to more than {MAXIMUM_FOLLOWED} bytes")]
    Patience,
    /// A symlink's target has a component longer than [`MAXIMUM_NAME`].
    #[error("a symlink on its way has too long a name")]
    LongName,
}

/// A path being walked. `N` is a name, owned or borrowed.
pub struct Walk<N> {
    /// The directories from the root to here, never empty.
    place: Vec<u32>,
    /// The names that are still to be walked, the next one last.
    left: Vec<N>,
    followed: usize,
}

impl<N: AsRef<[u8]>> Walk<N> {
    /// Begins in the last of `place`, the directories from the root on (the root is added if there is none), with these names.
    pub fn new(place: Vec<u32>, names: impl DoubleEndedIterator<Item = N>) -> Walk<N> {
        let place = if place.is_empty() { vec![0] } else { place };
        Walk { place, left: names.rev().collect(), followed: 0 }
    }

    /// The next name to look up in [`here`](Self::here).
    pub fn next_name(&mut self) -> Option<N> {
        loop {
            let name = self.left.pop()?;
            if name.as_ref() != b".." {
                return Some(name);
            }
            self.place.truncate(self.place.len().saturating_sub(1).max(1));
        }
    }

    /// The directory that was reached.
    pub fn here(&self) -> u32 {
        self.place.last().copied().unwrap_or_default()
    }

    /// Whether no name is left.
    pub fn is_at_end(&self) -> bool {
        self.left.is_empty()
    }

    /// The name led to that directory.
    pub fn enter(&mut self, directory: u32) -> Result<(), WalkError> {
        self.place.push(directory);
        if self.place.len() + self.left.len() > MAXIMUM_DEPTH { Err(WalkError::Deep) } else { Ok(()) }
    }

    /// The name led to a symlink: goes on with its target.
    pub fn follow<'a>(&mut self, target: &'a [u8], patience: &mut Patience) -> Result<(), WalkError>
    where
        N: From<&'a [u8]>,
    {
        patience.left = patience.left.checked_sub(target.len() as u64).ok_or(WalkError::Patience)?;
        self.followed += 1;
        if self.followed > MAXIMUM_SYMLINKS {
            return Err(WalkError::Symlinks);
        }
        if target.first() == Some(&b'/') {
            self.place.truncate(1);
        }
        for component in target.split(|byte| *byte == b'/').rev() {
            match component {
                b"" | b"." => {}
                _ if component.len() > MAXIMUM_NAME => return Err(WalkError::LongName),
                _ => self.left.push(component.into()),
            }
        }
        if self.left.len() > MAXIMUM_DEPTH { Err(WalkError::Deep) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_go_on_from_where_they_lie_or_from_the_root_and_never_above_it() {
        let mut walk: Walk<&[u8]> = Walk::new(vec![], [&b"a"[..], b"link", b"x"].into_iter());
        assert_eq!(walk.next_name(), Some(&b"a"[..]));
        walk.enter(7).unwrap();
        assert_eq!(walk.next_name(), Some(&b"link"[..]));
        walk.follow(b"../../b/./c", &mut Patience::default()).unwrap();
        assert_eq!((walk.next_name(), walk.here()), (Some(&b"b"[..]), 0));
        walk.enter(8).unwrap();
        assert_eq!((walk.next_name(), walk.here()), (Some(&b"c"[..]), 8));
        walk.follow(b"/d", &mut Patience::default()).unwrap();
        assert_eq!((walk.next_name(), walk.here()), (Some(&b"d"[..]), 0));
        assert_eq!((walk.next_name(), walk.is_at_end()), (Some(&b"x"[..]), true));
        assert_eq!(walk.next_name(), None);
    }

    #[test]
    fn circles_and_depths_end() {
        let mut walk: Walk<&[u8]> = Walk::new(vec![], std::iter::empty());
        let ends = (0..1000).find_map(|_| walk.follow(b"loop", &mut Patience::default()).err());
        assert_eq!(ends, Some(WalkError::Symlinks));
        let mut patience = Patience { left: 100 };
        let mut followed =
            || Walk::<&[u8]>::new(vec![], std::iter::empty()).follow(b"x/../x/../y", &mut patience);
        assert_eq!((0..9).find_map(|_| followed().err()), None);
        assert_eq!(followed(), Err(WalkError::Patience));
        let mut walk: Walk<&[u8]> = Walk::new(vec![], std::iter::empty());
        let ends = (0..100_000).find_map(|directory| walk.enter(directory).err());
        assert_eq!(ends, Some(WalkError::Deep));
    }
}

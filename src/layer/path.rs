//! Names as archives write them: cleaned into components, and the whiteout syntax of the OCI layer specification.

use crate::table::format::{MAXIMUM_DEPTH, MAXIMUM_NAME};

/// A name that cannot be in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// One component is longer than [`MAXIMUM_NAME`] bytes.
    #[error("a component of the name is longer than {MAXIMUM_NAME} bytes")]
    LongName,
    /// More than [`MAXIMUM_DEPTH`] components.
    #[error("the name is nested deeper than {MAXIMUM_DEPTH} directories")]
    Deep,
    /// A NUL byte.
    #[error("the name holds a NUL byte")]
    Nul,
    /// `.wh.` alone, `.wh..` or `.wh...`.
    #[error("the whiteout names no file")]
    EmptyWhiteout,
}

/// The components of a path, root-relative: empty ones and `.` are dropped, `..` removes the one before and stops at the
/// root, as `filepath.Clean("/" + name)` does in the reference implementations.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            _ if component.len() > MAXIMUM_NAME => return Err(PathError::LongName),
            _ if component.contains(&0) => return Err(PathError::Nul),
            _ => components.push(component),
        }
        if components.len() > MAXIMUM_DEPTH {
            return Err(PathError::Deep);
        }
    }
    Ok(components)
}

/// What the last component of an entry's name means (OCI image specification, layer.md, "Whiteouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Name(&'a [u8]),
    /// This name of lower layers is gone.
    Whiteout(&'a [u8]),
    /// All that lower layers have in this directory is gone.
    OpaqueWhiteout,
    /// Bookkeeping of AUFS (`.wh..wh.plnk` and the like): not a part of the image.
    Bookkeeping,
}

/// The meaning of one component.
pub fn meaning(name: &[u8]) -> Result<Meaning<'_>, PathError> {
    Ok(match name.strip_prefix(b".wh.") {
        None => Meaning::Name(name),
        Some(b".wh..opq") => Meaning::OpaqueWhiteout,
        Some(rest) if rest.starts_with(b".wh.") => Meaning::Bookkeeping,
        Some(b"" | b"." | b"..") => return Err(PathError::EmptyWhiteout),
        Some(rest) => Meaning::Whiteout(rest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_never_leave_the_root() {
        let cases: [(&[u8], &[&[u8]]); 7] = [
            (b"usr/bin/", &[b"usr", b"bin"]),
            (b"./usr//./bin", &[b"usr", b"bin"]),
            (b"/etc/passwd", &[b"etc", b"passwd"]),
            (b"../../etc", &[b"etc"]),
            (b"usr/../../etc/./x", &[b"etc", b"x"]),
            (b"./", &[]),
            (b"\xff\xfe", &[b"\xff\xfe"]),
        ];
        for (path, expected) in cases {
            assert_eq!(components(path).as_deref(), Ok(expected), "{}", path.escape_ascii());
        }
        assert_eq!(components(&[b'x'; 256]), Err(PathError::LongName));
        assert_eq!(components(&b"x/".repeat(MAXIMUM_DEPTH + 1)), Err(PathError::Deep));
        assert_eq!(components(b"a\0b"), Err(PathError::Nul));
    }

    #[test]
    fn whiteouts_are_told_from_names() {
        let cases: [(&[u8], Result<Meaning<'_>, PathError>); 6] = [
            (b".wh.x", Ok(Meaning::Whiteout(b"x"))),
            (b".wh..x", Ok(Meaning::Whiteout(b".x"))),
            (b".wh..wh..opq", Ok(Meaning::OpaqueWhiteout)),
            (b".wh..wh.plnk", Ok(Meaning::Bookkeeping)),
            (b".whx", Ok(Meaning::Name(b".whx"))),
            (b".wh...", Err(PathError::EmptyWhiteout)),
        ];
        for (name, expected) in cases {
            assert_eq!(meaning(name), expected, "{}", name.escape_ascii());
        }
    }
}

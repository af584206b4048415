//! What a person types to name an image.
//!
//! ```text
//! python                                → docker.io/library/python:latest
//! quay.io/org/name:tag                  host, repository, tag
//! host:5000/name:tag@sha256:…           the digest decides; the tag is only remembered
//! oci:PATH[:NAME] · oci:PATH@sha256:…   an OCI image layout in a local directory
//! ```
//!
//! The grammar is that of the distribution project's `reference` package: the text before the first slash is a host
//! if it contains a dot or a colon, is `localhost`, or has an upper-case letter; otherwise the host is docker.io.

mod grammar;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use grammar::{
    MAXIMUM_NAME_LENGTH, MAXIMUM_TAG_LENGTH, is_host, is_layout_name, is_path_component, is_tag, names_a_host,
};

/// The host that is meant when none is named.
pub const DEFAULT_HOST: &str = "docker.io";
/// The tag that is meant when neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";

/// An image, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageReference {
    /// In a registry.
    Registry(Reference),
    /// In an OCI image layout on disk.
    Layout(LayoutReference),
}

impl ImageReference {
    /// The document to ask for: the digest if there is one, else the tag.
    pub fn target(&self) -> Target {
        match self {
            ImageReference::Registry(reference) => reference.target(),
            ImageReference::Layout(layout) => match (&layout.digest, &layout.name) {
                (Some(digest), _) => Target::Digest(digest.clone()),
                (None, Some(name)) => Target::Tag(name.clone()),
                (None, None) => Target::OnlyImage,
            },
        }
    }

    /// What stands beside it under its tag and that suffix, in the same repository or layout; nothing if it has no tag, or none that
    /// can be made longer.
    pub fn sibling(&self, suffix: &str) -> Option<Target> {
        let (tag, is_valid): (_, fn(&str) -> bool) = match self {
            ImageReference::Registry(reference) => (reference.tag(), is_tag),
            ImageReference::Layout(layout) => (layout.name.as_deref(), is_layout_name),
        };
        let tag = format!("{}{suffix}", tag?);
        is_valid(&tag).then_some(Target::Tag(tag))
    }

    /// The digest, if the reference is pinned by one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            ImageReference::Registry(reference) => reference.digest(),
            ImageReference::Layout(layout) => layout.digest.as_ref(),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageReference::Registry(reference) => reference.fmt(formatter),
            ImageReference::Layout(layout) => layout.fmt(formatter),
        }
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("oci:") {
            Some(rest) => rest.parse().map(ImageReference::Layout),
            None => text.parse().map(ImageReference::Registry),
        }
    }
}

/// Which document of a repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// What the tag points to now.
    Tag(String),
    /// Exactly this content.
    Digest(Digest),
    /// The one image of a layout that holds one; a registry takes it as the tag `latest`.
    OnlyImage,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tag(tag) => formatter.write_str(tag),
            Target::Digest(digest) => digest.fmt(formatter),
            Target::OnlyImage => formatter.write_str("the only image"),
        }
    }
}

/// An image in a registry, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's name as people write it, with its port if it has one: `docker.io`, `host:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository on that host, `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. There is always a tag or a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned by one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The document to ask for: the digest if there is one, else the tag.
    pub fn target(&self) -> Target {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Target::Digest(digest.clone()),
            (None, Some(tag)) => Target::Tag(tag.clone()),
            (None, None) => Target::Tag(DEFAULT_TAG.to_owned()),
        }
    }

    /// The same repository, pinned by `digest`.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// The host that serves the API: Docker Hub's differs from its name.
    pub(crate) fn api_host(&self) -> &str {
        if self.host == DEFAULT_HOST { "registry-1.docker.io" } else { &self.host }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |problem| ReferenceError { text: text.chars().take(300).collect(), problem };
        if text.is_empty() {
            return Err(refused(Problem::Empty));
        }
        if text.contains("://") {
            return Err(refused(Problem::Scheme));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|cause| refused(Problem::Digest(cause)))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].find(':') {
            Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(refused(Problem::Tag));
        }
        let (host, repository) = match name.split_once('/') {
            Some((first, repository)) if names_a_host(first) => (first, repository),
            _ => (DEFAULT_HOST, name),
        };
        if !is_host(host) {
            return Err(refused(Problem::Host));
        }
        // The distribution grammar forbids this too: it reads like an image ID of Docker.
        if name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refused(Problem::ImageId));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(refused(Problem::UpperCase));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(refused(Problem::Repository));
        }
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let repository = if host == DEFAULT_HOST && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if host.len() + 1 + repository.len() > MAXIMUM_NAME_LENGTH {
            return Err(refused(Problem::TooLong));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Reference { host: host.to_owned(), repository, tag, digest })
    }
}

/// An image in an OCI image layout on disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayoutReference {
    /// The directory that holds `oci-layout` and `index.json`, as it was typed.
    pub path: PathBuf,
    /// The entry's `org.opencontainers.image.ref.name`.
    pub name: Option<String>,
    /// The digest, if the reference is pinned by one.
    pub digest: Option<Digest>,
}

impl LayoutReference {
    /// The directory of the layout.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "oci:{}", self.path.display())?;
        if let Some(name) = &self.name {
            write!(formatter, ":{name}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for LayoutReference {
    type Err = ReferenceError;

    /// Parses what follows `oci:`. As with other tools, the path ends at the first colon.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |problem| ReferenceError { text: format!("oci:{text}"), problem };
        let (rest, digest) = match text.rsplit_once('@') {
            Some((rest, digest)) if digest.starts_with("sha256:") || digest.starts_with("sha512:") => {
                (rest, Some(digest.parse().map_err(|cause| refused(Problem::Digest(cause)))?))
            }
            _ => (text, None),
        };
        let (path, name) = match rest.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(refused(Problem::NoPath));
        }
        if let Some(name) = name
            && !is_layout_name(name)
        {
            return Err(refused(Problem::LayoutName));
        }
        Ok(LayoutReference { path: PathBuf::from(path), name: name.map(str::to_owned), digest })
    }
}

/// A text that names no image, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {problem}")]
pub struct ReferenceError {
    text: String,
    #[source]
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("leave out the scheme (write host/name:tag; plain HTTP is chosen with --plain-http)")]
    Scheme,
    #[error("the host is malformed (letters, digits, dots and dashes, with an optional :port)")]
    Host,
    #[error("repository names are lower case")]
    UpperCase,
    #[error("the repository is malformed (components of a-z and 0-9, joined by '.', '_', '__' or dashes)")]
    Repository,
    #[error("64 hex digits look like an image ID, which no registry knows; name the repository")]
    ImageId,
    #[error("host and repository are longer than {MAXIMUM_NAME_LENGTH} bytes")]
    TooLong,
    #[error(
        "the tag is malformed (up to {MAXIMUM_TAG_LENGTH} of A-Z a-z 0-9 _ . -, not beginning with . or -)"
    )]
    Tag,
    #[error("{0}")]
    Digest(DigestError),
    #[error("the path of the layout is missing (oci:PATH[:NAME])")]
    NoPath,
    #[error("the name after the path is malformed (A-Z a-z 0-9 and - . _ : @ + /)")]
    LayoutName,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn defaults_are_filled_in_as_docker_does() {
        for (typed, canonical, target) in [
            ("python", "docker.io/library/python:latest", "latest"),
            ("python:3.12", "docker.io/library/python:3.12", "3.12"),
            ("docker.io/python", "docker.io/library/python:latest", "latest"),
            ("index.docker.io/python", "docker.io/library/python:latest", "latest"),
            ("org/name", "docker.io/org/name:latest", "latest"),
            ("localhost/name", "localhost/name:latest", "latest"),
            ("localhost:5000/name", "localhost:5000/name:latest", "latest"),
            ("HOST/name:t", "HOST/name:t", "t"),
            ("host:5000/a/b_c/d__e/f-g/h---i/j.k:v1", "host:5000/a/b_c/d__e/f-g/h---i/j.k:v1", "v1"),
            ("[::1]:5000/name:t", "[::1]:5000/name:t", "t"),
            ("quay.io/org/name", "quay.io/org/name:latest", "latest"),
        ] {
            let reference: Reference = typed.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{typed}");
            assert_eq!(reference.target(), Target::Tag(target.to_owned()), "{typed}");
            assert_eq!(
                canonical.parse::<Reference>().unwrap(),
                reference,
                "{typed}: canonical form parses back"
            );
        }
    }

    #[test]
    fn the_digest_decides_and_the_tag_is_remembered() {
        let reference: Reference = format!("host:5000/name:tag@{DIGEST}").parse().unwrap();
        assert_eq!(reference.tag(), Some("tag"));
        assert_eq!(reference.target(), Target::Digest(DIGEST.parse().unwrap()));
        let reference: Reference = format!("name@{DIGEST}").parse().unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.to_string(), format!("docker.io/library/name@{DIGEST}"));
    }

    #[test]
    fn docker_hub_is_served_by_another_host() {
        assert_eq!("python".parse::<Reference>().unwrap().api_host(), "registry-1.docker.io");
        assert_eq!("quay.io/a/b".parse::<Reference>().unwrap().api_host(), "quay.io");
    }

    #[test]
    fn what_the_grammar_forbids_is_refused() {
        let long_tag = format!("name:{}", "t".repeat(129));
        let long_name = format!("host.example/{}", "a/".repeat(130) + "b");
        for text in [
            "",
            ":tag",
            "/name",
            "name:",
            "name@",
            "name:-tag",
            "name:.tag",
            "name:ta g",
            "Name",
            "host.example/Name",
            "host.example//name",
            "host.example/name/",
            "host.example/../name",
            "host.example/na..me",
            "host.example/na___me",
            "host.example/-name",
            "host.example/name-",
            "host.example:port/name",
            "host.example:99999/name",
            "host..example/name",
            "-host.example/name",
            "[::1/name",
            "[::g]:5000/name",
            "https://host.example/name",
            "docker://python",
            "name@sha256:short",
            "name@md5:d41d8cd98f00b204e9800998ecf8427e",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "na\nme",
            "nämé",
            &long_tag,
            &long_name,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_sibling_has_a_longer_tag() {
        let sibling = |text: &str| text.parse::<ImageReference>().unwrap().sibling("-more");
        let tag = |tag: &str| Some(Target::Tag(tag.to_owned()));
        assert_eq!(sibling("host:5000/name:tag"), tag("tag-more"));
        assert_eq!(sibling("name"), tag("latest-more"));
        assert_eq!(sibling(&format!("name:tag@{DIGEST}")), tag("tag-more"));
        assert_eq!(sibling("oci:dir:host/name:tag"), tag("host/name:tag-more"));
        for without in [format!("name@{DIGEST}"), "oci:dir".to_owned(), format!("oci:dir@{DIGEST}")] {
            assert_eq!(sibling(&without), None, "{without}");
        }
        assert_eq!(sibling(&format!("name:{}", "t".repeat(123))), tag(&format!("{}-more", "t".repeat(123))));
        assert_eq!(sibling(&format!("name:{}", "t".repeat(124))), None);
    }

    #[test]
    fn layouts_are_named_by_path_and_name() {
        let parse = |text: &str| text.parse::<ImageReference>();
        let layout = |path: &str, name: Option<&str>, digest: Option<&str>| {
            Ok(ImageReference::Layout(LayoutReference {
                path: path.into(),
                name: name.map(str::to_owned),
                digest: digest.map(|digest| digest.parse().unwrap()),
            }))
        };
        assert_eq!(parse("oci:dir"), layout("dir", None, None));
        assert_eq!(parse("oci:/a/b c:1.0"), layout("/a/b c", Some("1.0"), None));
        assert_eq!(parse("oci:dir:host/name:tag"), layout("dir", Some("host/name:tag"), None));
        assert_eq!(parse(&format!("oci:dir@{DIGEST}")), layout("dir", None, Some(DIGEST)));
        assert_eq!(parse(&format!("oci:dir:t@{DIGEST}")).unwrap().to_string(), format!("oci:dir:t@{DIGEST}"));
        for text in ["oci:", "oci::tag", "oci:dir:", "oci:dir:a b", "oci:dir@sha256:short"] {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
    }
}

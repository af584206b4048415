//! The SELinux label that all files of a mount show, whatever the tree says of them.
//!
//! ```text
//!   SELinux enabled ──> mount option `context=`    the kernel labels every file, and asks nobody
//!   else ─────────────> `security.selinux`         is answered here: people and tools see the label, nobody enforces it
//! ```
//!
//! It cannot be changed while the mount lasts. Without a label, files show what the tree says, where the kernel has no SELinux.

use std::fmt;
use std::str::FromStr;

use rustix::fs::statfs;

/// The extended attribute that has a file's label.
pub(crate) const ATTRIBUTE: &[u8] = b"security.selinux";
/// Longest label: what fits a page, in which the kernel hands it over.
const LONGEST: usize = 4095;
/// Where the kernel shows SELinux, and what is mounted there if it is enabled (`SELINUX_MAGIC`).
const SELINUX: &str = "/sys/fs/selinux";
const SELINUX_MAGIC: u32 = 0xf97c_ff8c;

/// A label as SELinux writes it: `user:role:type` or `user:role:type:level`, such as `system_u:object_r:container_file_t:s0:c1,c2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(String);

/// What is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no SELinux label: it must be user:role:type or user:role:type:level, such as system_u:object_r:container_file_t:s0"
)]
pub struct LabelError(String);

impl FromStr for Label {
    type Err = LabelError;

    /// Reads a label. Whether the machine's policy knows it, the kernel says when it is used.
    fn from_str(text: &str) -> Result<Label, LabelError> {
        let is_word = |word: &str, also: &str| {
            !word.is_empty()
                && word.chars().all(|letter| letter.is_ascii_alphanumeric() || also.contains(letter))
        };
        let mut parts = text.splitn(4, ':');
        let names = parts.by_ref().take(3).filter(|name| is_word(name, "_-.")).count();
        let level = parts.next();
        // Sensitivities and categories, and a range of both.
        let is_label = names == 3 && level.is_none_or(|level| is_word(level, "_-.,:"));
        if is_label && text.len() <= LONGEST {
            Ok(Label(text.to_owned()))
        } else {
            Err(LabelError(text.chars().take(200).collect()))
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Label {
    /// Whether this machine's kernel enforces labels, or would log what they forbid.
    pub fn is_enforced_here() -> bool {
        // Where there is no such directory, or an ordinary one, there is no SELinux.
        statfs(SELINUX).is_ok_and(|found| found.f_type as u32 == SELINUX_MAGIC)
    }

    /// The value of the attribute, which ends with a zero as the kernel has it.
    pub(crate) fn value(&self) -> Vec<u8> {
        [self.0.as_bytes(), b"\0"].concat()
    }

    /// The option with which a mount is made, if the kernel knows it: its name and value. Commas need no quotes, as options are handed over
    /// one by one (`fsconfig(2)`).
    pub(crate) fn option(label: Option<&Label>, is_enabled: bool) -> Option<(&'static str, &str)> {
        label.filter(|_| is_enabled).map(|label| ("context", label.0.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_three_names_and_perhaps_a_level() {
        for text in [
            "system_u:object_r:container_file_t:s0",
            "system_u:object_r:container_file_t:s0:c1,c2",
            "unconfined_u:object_r:user_home_t:s0-s0:c0.c1023",
            "root:object_r:tmp_t",
            "a.b-c:r:t",
        ] {
            assert_eq!(text.parse::<Label>().map(|label| label.to_string()), Ok(text.to_owned()));
        }
        let long = format!("u:r:{}", "t".repeat(5000));
        for text in [
            "",
            "container_file_t",
            "u:r",
            "u::t",
            ":r:t",
            "u:r:t:",
            "u:r:t s0",
            "u:r:t:s0\n",
            "u:r:t:s0\0",
            "\"u:r:t:s0\"",
            "u:r:t:s0\"",
            "u:r:t,dev:s0",
            "u:r:t:s0;x",
            "ü:r:t",
            &long,
        ] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_kernel_is_told_of_a_label_only_if_it_knows_what_that_is() {
        let label: Label = "system_u:object_r:container_file_t:s0:c1,c2".parse().expect("a label");
        let option = Some(("context", "system_u:object_r:container_file_t:s0:c1,c2"));
        assert_eq!(Label::option(Some(&label), true), option);
        assert_eq!(Label::option(Some(&label), false), None);
        assert_eq!(Label::option(None, true), None);
        assert_eq!(label.value(), b"system_u:object_r:container_file_t:s0:c1,c2\0");
    }
}

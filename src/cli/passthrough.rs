//! What the commands that mount have of passing large files through.

use std::ffi::OsString;

use clap::ValueEnum;
use peelfs::mount::passthrough::Passthrough;

/// When the kernel reads large files itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PassthroughArgument {
    /// If large files (16 MiB and more) are half of the image or more, and the mount cannot be written to
    Auto,
    /// In any image
    Always,
    /// Not at all
    Never,
}

impl From<PassthroughArgument> for Passthrough {
    fn from(argument: PassthroughArgument) -> Passthrough {
        match argument {
            PassthroughArgument::Auto => Passthrough::Auto,
            PassthroughArgument::Always => Passthrough::Always,
            PassthroughArgument::Never => Passthrough::Never,
        }
    }
}

impl PassthroughArgument {
    /// The argument that says so to another process.
    pub fn to_argument(self) -> Option<OsString> {
        self.to_possible_value().map(|value| format!("--passthrough={}", value.get_name()).into())
    }
}

//! `peel diff NAME LOWER UPPER`

use std::path::Path;
use std::process::ExitCode;

use peelfs::compose::Operation;

use super::failure;
use super::meant::MeantImage;
use super::merge::make;
use super::pull::Bringing;

/// Make an image of what leads from one image to another
///
/// Laid over the first with `peel merge`, it gives the second. If the second has the first one's layers below its own, it is those above them;
/// else the difference is calculated: it can be mounted and merged, but it is no layer that could be pushed. Nothing of the layers is fetched.
#[derive(clap::Args)]
pub struct Arguments {
    /// The name of the new image; without a host, it is one of localhost/
    #[arg(value_name = "NAME")]
    name: String,
    /// What is there before; "scratch" is nothing
    #[arg(value_name = "LOWER", value_parser = side)]
    lower: Side,
    /// What is there after; "scratch" is nothing
    #[arg(value_name = "UPPER", value_parser = side)]
    upper: Side,
    #[command(flatten)]
    bringing: Bringing,
}

#[derive(Clone, Debug)]
enum Side {
    Nothing,
    Image(MeantImage),
}

impl Side {
    fn image(&self) -> Option<&MeantImage> {
        match self {
            Side::Nothing => None,
            Side::Image(image) => Some(image),
        }
    }
}

/// Nobody can give an image of the registry this name: Docker Hub keeps it.
fn side(text: &str) -> anyhow::Result<Side> {
    if text == "scratch" { Ok(Side::Nothing) } else { MeantImage::parse(text).map(Side::Image) }
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    let Arguments { name, lower, upper, bringing } = arguments;
    let sides = [lower.image(), upper.image()];
    if sides == [None, None] {
        return Err(failure::Usage("nothing leads from scratch to scratch; name an image".to_owned()).into());
    }
    make(name, &sides, bringing, store, verbose, |images| match sides {
        [Some(_), Some(_)] => Operation::Diff { lower: images.first(), upper: images.last() },
        [Some(_), None] => Operation::Diff { lower: images.first(), upper: None },
        [None, _] => Operation::Diff { lower: None, upper: images.first() },
    })
}

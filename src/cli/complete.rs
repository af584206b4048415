//! `peel complete DIR`, and what the commands that mount have of it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use peelfs::mount::completion::Wish;
use peelfs::mount::live::{LiveMount, Liveness, live_mounts};
use peelfs::store::Store;

use super::failure::NotFound;
use super::{environment, quantity, unmount};

/// Fetch what is missing of a mounted image, in the background and when nobody else needs the link
///
/// Returns at once. After it is done, the image needs no network; `peel status` tells how far it is. It begins when no reader has waited for the
/// registry for a second, stops when one does, evicts nothing, and tries again later if the registry cannot be reached or the store has no room.
/// It goes on until the image is unmounted, also if the serving process is killed.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory at which it is mounted, or the image: then all its mounts
    #[arg(value_name = "DIR|REF")]
    target: OsString,
    /// Take at most RATE bytes per second, such as 10M, or none for as many as there are [default: as it was]
    #[arg(long, value_name = "RATE", value_parser = limit)]
    rate: Option<Limit>,
    /// Fetch nothing until it is resumed
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on, which is what happens without --pause
    #[arg(long)]
    resume: bool,
}

/// Of commands that mount.
#[derive(clap::Args)]
pub struct CompletionArgument {
    /// Fetch what is missing in the background, when nobody else needs the link, at most RATE bytes per second, such as 10M; `peel complete` pauses it
    #[arg(long, value_name = "RATE", num_args = 0..=1, require_equals = true, default_missing_value = "none", value_parser = limit)]
    complete: Option<Limit>,
}

/// Bytes per second; nothing if as many as there are.
#[derive(Clone, Copy)]
struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        _ => match quantity::bytes(text)? {
            0 => Err("nothing would ever come; `peel complete --pause` is for that".to_owned()),
            rate => Ok(Limit(Some(rate))),
        },
    }
}

impl CompletionArgument {
    /// What is wished, if anything is.
    pub fn wish(&self) -> Option<Wish> {
        self.complete.map(|Limit(rate)| Wish { rate, ..Wish::default() })
    }

    /// The argument that says so to another process.
    pub fn to_argument(&self) -> Option<OsString> {
        let rate = |Limit(rate): Limit| rate.map_or("none".to_owned(), |rate| rate.to_string());
        self.complete.map(|limit| format!("--complete={}", rate(limit)).into())
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let mut mounts = live_mounts(&store)?;
    mounts.retain(|mount| mount.liveness == Liveness::Live && is_meant(mount, &arguments.target));
    let mut told = 0;
    for (mount, files) in mounts.iter().filter_map(|mount| Some((mount, mount.completion()?))) {
        let before = files.wish().unwrap_or_default();
        let rate = arguments.rate.map_or(before.rate, |Limit(rate)| rate);
        let is_paused = arguments.pause && !arguments.resume;
        let wish = Wish { rate, is_paused, asked: before.asked.wrapping_add(1) };
        files.set_wish(wish).context("cannot tell the process that serves the mount")?;
        // Who forgets a mount removes its files afterwards. If that is done, nobody would remove this one.
        match store.database().find_mount(&mount.record.mountpoint)? {
            Some(record) if record.pid == mount.record.pid => told += 1,
            _ => files.remove(),
        }
    }
    if told == 0 {
        let target = arguments.target.display();
        return Err(NotFound(format!("{target} is not mounted; `peel status` lists what is")).into());
    }
    Ok(ExitCode::SUCCESS)
}

fn is_meant(mount: &LiveMount, target: &OsString) -> bool {
    let is_directory =
        || unmount::resolved(Path::new(target)).is_ok_and(|path| path == mount.record.mountpoint);
    let reference = target.to_str().and_then(|text| environment::reference(text).ok());
    is_directory() || reference.is_some_and(|reference| reference.to_string() == mount.record.reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_to_another_process_as_it_was_typed() {
        for (text, expected) in
            [("none", Some(None)), ("10M", Some(Some(10 << 20))), ("0", None), ("x", None)]
        {
            let limit = limit(text).ok();
            assert_eq!(limit.map(|Limit(rate)| rate), expected, "{text}");
            let argument = CompletionArgument { complete: limit };
            let told = argument.to_argument().map(|word| word.into_string().unwrap());
            let again = told.and_then(|word| super::limit(word.strip_prefix("--complete=")?).ok());
            assert_eq!(again.map(|Limit(rate)| rate), expected, "{text}");
        }
    }
}

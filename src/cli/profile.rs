//! `peel profile`

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use peelfs::fetch::profile::{Profile, TypicalFile, format, kept, referrer};
use peelfs::store::Store;
use peelfs_registry::Client;
use serde::Serialize;

use super::environment;
use super::failure::NotFound;
use super::known::KnownImage;
use super::network::{self, NetworkArguments};
use super::output::{self, Align};

/// What mounts of an image read, and in which order
///
/// Each mount records that, unless it is told not to. What is known of an image is fetched first when it is mounted the next time
/// and not here (`peel mount --prefetch`), also that of a new tag of its repository; and it can be put first in a converted image
/// (`peel convert --order-profile`).
#[derive(clap::Subcommand)]
pub enum Command {
    Show(ShowArguments),
    Export(ExportArguments),
    Push(PushArguments),
    Rm(RemoveArguments),
}

/// List the files that mounts of an image read, the most wanted first
#[derive(clap::Args)]
pub struct ShowArguments {
    #[command(flatten)]
    image: KnownImage,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print the profile of an image, for `peel convert --order` here or elsewhere
#[derive(clap::Args)]
pub struct ExportArguments {
    #[command(flatten)]
    image: KnownImage,
}

/// Put the profile of an image beside it, in its registry or layout, for machines that have none
///
/// It becomes a manifest that refers to the image, which stays as it is. It names the files of the image that its mounts here have read, and when,
/// so think whether everybody who may pull the image may know. `peel mount --profile-from-registry` uses it.
#[derive(clap::Args)]
pub struct PushArguments {
    #[command(flatten)]
    image: KnownImage,
    #[command(flatten)]
    network: NetworkArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Forget what mounts of an image read
///
/// What a mount that still is there has read so far is recorded again when it reads more.
#[derive(clap::Args)]
pub struct RemoveArguments {
    #[command(flatten)]
    image: KnownImage,
}

#[derive(Serialize)]
struct PushedSheet {
    reference: String,
    manifest_digest: String,
    /// Digest of the profile's own manifest.
    profile_digest: String,
    runs: usize,
}

#[derive(Serialize)]
struct ProfileSheet {
    reference: String,
    platform: String,
    manifest_digest: String,
    /// Mounts that are told apart; what was before counts as one.
    runs: usize,
    /// The most wanted first.
    files: Vec<FileLine>,
}

#[derive(Serialize)]
struct FileLine {
    /// `%` and bytes that are not UTF-8 are `%` and two hexadecimal digits.
    path: String,
    /// How many of the runs touched it.
    runs: usize,
    /// It comes after all others, and is not prefetched.
    seldom: bool,
    /// When it is typically touched, in milliseconds since the mount.
    milliseconds: u64,
    /// Beginning and end of the parts that were touched; none if it is all of it.
    parts: Vec<(u64, u64)>,
}

/// Runs the command.
pub fn run(command: &Command, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let store = Store::open(store)?;
    match command {
        Command::Show(arguments) => show(arguments, &store)?,
        Command::Export(ExportArguments { image }) => export(image, &store)?,
        Command::Push(arguments) => push(arguments, &store)?,
        Command::Rm(RemoveArguments { image }) => remove(image, &store)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(arguments: &ShowArguments, store: &Store) -> anyhow::Result<()> {
    let profile = find(&arguments.image, store)?;
    let sheet = ProfileSheet {
        reference: arguments.image.reference.to_string(),
        platform: arguments.image.platform().to_string(),
        files: profile.typical().into_iter().map(line).collect(),
        runs: profile.runs.len(),
        manifest_digest: profile.manifest,
    };
    if arguments.json { output::json(&sheet) } else { Ok(output::print(&table(&sheet))?) }
}

fn line(typical: TypicalFile) -> FileLine {
    let TypicalFile { file, runs, is_seldom } = typical;
    FileLine {
        path: format::escaped(&file.path),
        runs,
        seldom: is_seldom,
        milliseconds: file.milliseconds,
        parts: file.parts.iter().map(|part| (part.start, part.end)).collect(),
    }
}

fn export(image: &KnownImage, store: &Store) -> anyhow::Result<()> {
    let text = format::write(&find(image, store)?);
    match std::io::stdout().lock().write_all(&text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the profile"),
    }
}

fn push(arguments: &PushArguments, store: &Store) -> anyhow::Result<()> {
    let PushArguments { image, network, json } = arguments;
    let manifest = image.find(store)?.manifest_digest;
    let profile = find(image, store)?;
    let runtime = network::runtime()?;
    let pushed = runtime.block_on(async {
        let client = Client::new(network.client())?;
        let repository = client.repository(&image.reference)?;
        anyhow::Ok(referrer::push(&repository, &manifest, &profile, &environment::scratch()).await?)
    })?;
    let sheet = PushedSheet {
        reference: image.reference.to_string(),
        manifest_digest: manifest.to_string(),
        profile_digest: pushed.to_string(),
        runs: profile.runs.len(),
    };
    if *json { output::json(&sheet) } else { Ok(output::print(&format!("{}\n", sheet.profile_digest))?) }
}

fn remove(image: &KnownImage, store: &Store) -> anyhow::Result<()> {
    let manifest = image.find(store)?.manifest_digest;
    if store.profiles().remove(manifest.as_str())? { Ok(()) } else { Err(none(image).into()) }
}

fn find(image: &KnownImage, store: &Store) -> anyhow::Result<Profile> {
    let manifest = image.find(store)?.manifest_digest;
    Ok(kept::load(store, manifest.as_str())?.ok_or_else(|| none(image))?)
}

fn none(image: &KnownImage) -> NotFound {
    NotFound(format!("no mount of {} has recorded yet what it reads", image.reference))
}

fn table(sheet: &ProfileSheet) -> String {
    let columns = [
        ("", Align::Right),
        ("RUNS", Align::Right),
        ("AT", Align::Right),
        ("READ", Align::Right),
        ("FILE", Align::Left),
    ];
    let rows: Vec<_> = sheet
        .files
        .iter()
        .enumerate()
        .map(|(place, file)| {
            let read = match file.parts.iter().map(|(start, end)| end - start).sum() {
                0 => "all".to_owned(),
                bytes => output::bytes(bytes),
            };
            let at = format!("{:.3} s", file.milliseconds as f64 / 1000.0);
            let runs = format!("{} of {}", file.runs, sheet.runs);
            vec![(place + 1).to_string(), runs, at, read, on_one_line(&file.path)]
        })
        .collect();
    output::table(&columns, &rows)
}

/// A name must not move the cursor.
fn on_one_line(name: &str) -> String {
    let escaped = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    name.chars().map(escaped).collect()
}

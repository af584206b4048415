//! The command line: one file per command, and what they share.
//!
//! Only here are environment, terminal and signals known. A command gives an error that [`failure`] tells to the person and
//! turns into an exit code.

mod asking;
mod background;
mod beginning;
mod changes;
mod check;
mod commit;
mod complete;
mod convert;
mod ctr_pull;
mod diff;
mod directory;
mod environment;
mod explain;
mod extract;
mod failure;
mod filter;
mod gc;
mod holder;
mod index;
mod inherited;
mod known;
mod lease;
mod log_file;
mod ls;
mod meant;
mod merge;
mod messages;
mod mount;
mod network;
mod output;
mod passthrough;
mod profile;
mod progress;
mod pull;
mod push;
mod quantity;
mod records;
mod restarts;
mod rm;
mod serve;
mod server;
mod show;
mod signals;
mod snapshot;
mod stack;
mod status;
mod status_snapshots;
mod store;
mod succession;
mod tag;
mod tree;
mod trial;
mod unmount;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::beginning::Beginning;

/// Mount a container image the moment it is named; its bytes are fetched when they are read.
#[derive(Parser)]
#[command(name = "peel", version, max_term_width = 100)]
struct Arguments {
    /// Directory of the store [default: /var/lib/peel; without root $XDG_DATA_HOME/peel]
    #[arg(long, global = true, value_name = "DIR", env = "PEEL_STORE")]
    store: Option<PathBuf>,
    /// Log more: once for what happens, twice for how
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Mount(mount::Arguments),
    Pull(pull::Arguments),
    Extract(extract::Arguments),
    Complete(complete::Arguments),
    Unmount(unmount::Arguments),
    Upgrade(upgrade::Arguments),
    Push(push::Arguments),
    Ls(ls::Arguments),
    Show(show::Arguments),
    Explain(explain::Arguments),
    Tree(tree::Arguments),
    Status(status::Arguments),
    Check(check::Arguments),
    Tag(tag::Arguments),
    Rm(rm::Arguments),
    #[command(visible_alias = "prune")]
    Gc(gc::Arguments),
    Store(store::Arguments),
    Records(records::Arguments),
    #[command(subcommand)]
    Lease(lease::Command),
    Commit(commit::Arguments),
    Merge(merge::Arguments),
    Diff(diff::Arguments),
    #[command(subcommand)]
    Directory(directory::Command),
    Changes(changes::Arguments),
    Serve(serve::Arguments),
    CtrPull(ctr_pull::Arguments),
    #[command(name = stack::NAME, hide = true)]
    Stack(stack::Arguments),
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    Convert(convert::Arguments),
    #[command(subcommand)]
    Profile(profile::Command),
    #[command(subcommand)]
    Index(index::Command),
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let beginning = match Beginning::find() {
        Ok(beginning) => beginning,
        Err(error) => return failure::report(&error),
    };
    let arguments = Arguments::parse_from(beginning.line.words());
    allow_many_open_files();
    let store = arguments.store.map_or_else(environment::default_store, Ok);
    let result = store.and_then(|store| match arguments.command {
        Command::Mount(command) => mount::run(command, &store, arguments.verbose, beginning),
        Command::Pull(command) => pull::run(&command, &store, arguments.verbose),
        Command::Extract(command) => extract::run(&command, &store, arguments.verbose),
        Command::Complete(command) => complete::run(&command, &store),
        Command::Unmount(command) => unmount::run(command, &store),
        Command::Upgrade(command) => upgrade::run(&command, &store),
        Command::Push(command) => push::run(&command, &store, arguments.verbose),
        Command::Ls(command) => ls::run(&command, &store),
        Command::Show(command) => show::run(&command, &store),
        Command::Explain(command) => explain::run(&command, &store),
        Command::Tree(command) => tree::run(&command, &store),
        Command::Status(command) => status::run(&command, &store),
        Command::Check(command) => check::run(&command, &store),
        Command::Commit(command) => commit::run(command, &store, arguments.verbose),
        Command::Merge(command) => merge::run(&command, &store, arguments.verbose),
        Command::Diff(command) => diff::run(&command, &store, arguments.verbose),
        Command::Directory(command) => directory::run(&command, &store, arguments.verbose),
        Command::Changes(command) => changes::run(&command, &store, arguments.verbose),
        Command::Snapshot(command) => snapshot::run(command, &store),
        Command::Serve(command) => serve::run(&command, &store, arguments.verbose),
        Command::CtrPull(command) => ctr_pull::run(&command, arguments.verbose),
        Command::Stack(command) => stack::run(&command, &store, arguments.verbose, beginning),
        Command::Tag(command) => tag::run(&command, &store),
        Command::Rm(command) => rm::run(&command, &store),
        Command::Records(command) => records::run(&command, &store),
        Command::Lease(command) => lease::run(command, &store),
        Command::Gc(command) => gc::run(&command, &store, arguments.verbose),
        Command::Store(command) => store::run(&command, &store, arguments.verbose),
        Command::Convert(command) => convert::run(&command, &store, arguments.verbose),
        Command::Profile(command) => profile::run(&command, &store, arguments.verbose),
        Command::Index(command) => index::run(&command, arguments.verbose),
    });
    match result {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

/// The usual limit of open files is low for the sake of programs that wait with `select(2)`, which none here does. Deep directories are walked
/// with one open for each level.
fn allow_many_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        // Without it, very deep directories are an error that says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

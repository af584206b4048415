//! The binary `peel`: what the command line, the environment and the terminal have to do with; all else is the library's.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}

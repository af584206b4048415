//! Credential helpers: `docker-credential-NAME get`, the server on standard input, JSON on standard output.
//!
//! The helper is somebody else's program: it runs in a process group of its own, which is killed when it takes too long,
//! and what it prints is bounded.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::{Credential, CredentialError};

/// More than this is no answer.
const MAXIMUM_ANSWER: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credential that helper `name` keeps for `server`, or `None` if it has none.
pub(super) fn get(
    directories: &[PathBuf],
    name: &str,
    server: &str,
    timeout: Duration,
) -> Result<Option<Credential>, CredentialError> {
    let failed = |problem: String| CredentialError::Helper { helper: name.to_owned(), problem };
    // The name becomes part of a program's name; with a slash it would be a path.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(failed("has a malformed name".to_owned()));
    }
    let program = format!("docker-credential-{name}");
    let Some(program) =
        directories.iter().map(|directory| directory.join(&program)).find(|path| path.is_file())
    else {
        return Err(failed("is not installed".to_owned()));
    };
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let (sender, receiver) = mpsc::channel();
    let input = child.stdin.take();
    let output = child.stdout.take();
    let server = server.to_owned();
    std::thread::spawn(move || {
        // A helper that does not read its input has made up its mind; its output tells.
        let _ = input.map(|mut input| input.write_all(server.as_bytes()));
        let mut answer = Vec::new();
        let read = output.map(|output| output.take(MAXIMUM_ANSWER).read_to_end(&mut answer));
        let _ = sender.send(read.transpose().map(|_| answer));
    });
    let answer = match receiver.recv_timeout(timeout) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            stop(&mut child);
            return Err(failed(format!("cannot be read: {error}")));
        }
        Err(_) => {
            stop(&mut child);
            return Err(failed(format!("did not answer within {} s", timeout.as_secs())));
        }
    };
    // Its output is closed, so it is about to end; one that lingers is of no more use.
    let status = match child.try_wait() {
        Ok(Some(status)) => status,
        _ => match wait_briefly(&mut child) {
            Some(status) => status,
            None => {
                stop(&mut child);
                return Err(failed("did not end".to_owned()));
            }
        },
    };
    if !status.success() {
        // The protocol's only way to say "none" is this text.
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("failed ({status})")));
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else {
        return Err(failed("gave an answer that is not {Username, Secret}".to_owned()));
    };
    Ok(match (answer.username.as_str(), answer.secret.as_str()) {
        ("", "") => None,
        ("<token>", _) => Some(Credential::IdentityToken(answer.secret)),
        _ => Some(Credential::Password { user: answer.username, password: answer.secret }),
    })
}

fn wait_briefly(child: &mut Child) -> Option<std::process::ExitStatus> {
    for _ in 0..500 {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Kills the helper with all that it started, and waits for it.
fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

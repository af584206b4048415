//! What a holder does when another program is wanted to serve its mount: it starts a successor of that on trial, and becomes that program
//! itself when the successor has proved that it serves.

use std::os::fd::AsFd;

use rustix::process::{Pid, WaitStatus};

use super::asking::Wish;
use super::beginning::Baton;
use super::holder::{Holder, reap};
use super::messages::Message;
use super::signals::Wishes;
use super::trial::{Serving, Trial};

impl Holder {
    /// Somebody wants another program.
    pub(super) fn hear_wish(&mut self) {
        let Some((asker, pipe)) = self.wishes.as_ref().and_then(Wishes::take) else { return };
        let trial_of = |candidate: &Serving| candidate.trial.as_ref().map(|trial| trial.asker);
        if self.candidate.as_ref().is_some_and(|candidate| trial_of(candidate) == Some(asker)) {
            return;
        }
        let Some(wish) = Wish::of(asker, pipe) else { return };
        let Some(held) = &self.held else {
            let text = "this kernel hands out no request twice (Linux 6.9): a mount ends with the program that serves it";
            return wish.answer.say(text, 7);
        };
        if self.candidate.as_ref().is_some_and(Serving::is_going) {
            return wish.answer.say("another program takes over at this moment", 1);
        }
        // One that prepares may never come to an end.
        if let Some(candidate) = self.candidate.take() {
            candidate.end();
            let _ = reap(candidate.process);
            if let Some(trial) = candidate.trial {
                trial.answer.say("somebody else asked for another program", 1);
            }
        }
        match Serving::on_trial(wish, &self.line, held) {
            Ok(candidate) => self.candidate = Some(candidate),
            Err((answer, error)) => answer.say(&format!("no successor can be started: {error}"), 1),
        }
    }

    /// The successor on trial, beside that server, says something or is gone.
    pub(super) fn hear_candidate(&mut self, server: Pid) {
        let Some(candidate) = &mut self.candidate else { return };
        let code = match Message::receive(&candidate.socket) {
            Some(Message::Ready) if !candidate.is_going() => return candidate.go(server),
            Some(Message::Failed(code)) => code,
            _ => 1,
        };
        // Whether or not it lives: it does not serve.
        candidate.end();
        let Some(candidate) = self.candidate.take() else { return };
        let status = reap(candidate.process);
        if let Some(trial) = candidate.trial {
            let killed = status.and_then(WaitStatus::terminating_signal);
            let text = killed.map(|signal| format!("it was ended by signal {signal}; nothing has changed"));
            trial.answer.say(&text.filter(|_| code == 1).unwrap_or_default(), code);
        }
    }

    /// This process is of the other program from now on, and returns to [`Holder::again`]; or it stays what it was, and holds.
    pub(super) fn become_program_of(&mut self, trial: Trial, server: &Serving) {
        let Some(held) = &self.held else { return };
        let Trial { program, answer, .. } = trial;
        let (number, socket) = (server.process.as_raw_nonzero().get().cast_unsigned(), server.socket.as_fd());
        let became = Baton::write(held, (number, socket), Some(answer.as_fd())).map(|baton| {
            let of_baton = [held.device.as_fd(), socket, answer.as_fd()];
            self.line.hold_by(program.as_fd(), baton.as_fd(), &of_baton)
        });
        let (Ok(error) | Err(error)) = became;
        let text = format!(
            "the program serves, but cannot hold: {error}; the one that held before goes on to do that"
        );
        answer.say(&text, 1);
    }
}

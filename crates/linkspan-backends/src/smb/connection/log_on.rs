//! The log-on: NTLM, as SPNEGO has it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use linkspan_smb2::client::Event;
use linkspan_smb2::ntlm::{self, Nonces};
use linkspan_smb2::{spnego, status};

use super::super::error::Error;
use super::{Connection, Login, random};

/// From 1601 to 1970, in 100 ns.
const EPOCH: u64 = 116_444_736_000_000_000;

impl Connection {
    /// Negotiates and logs on.
    pub(super) fn log_on(&mut self, login: &Login) -> Result<(), Error> {
        let name = || match login.user.as_str() {
            "" => "nobody".into(),
            user => user.to_string(),
        };
        self.client.negotiate()?;
        let offered = match self.step()? {
            Event::Negotiated(token) => token,
            other => return Err(refused("NEGOTIATE", &other)),
        };
        self.timed = Instant::now();
        if !spnego::names_ntlm(&offered)? {
            return Err(Error::KerberosOnly);
        }
        let first = ntlm::negotiate();
        self.client.log_on(&spnego::init(&first), None)?;
        let token = match self.step()? {
            Event::Token(token) => token,
            Event::Response(response) => return Err(no_session(name(), response.status())),
            other => return Err(refused("SESSION_SETUP", &other)),
        };
        let nonces = Nonces {
            challenge: random()?,
            key: random()?,
        };
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(since.as_nanos() / 100).unwrap_or(0) + EPOCH;
        let challenge = spnego::token(&token)?;
        let answer = ntlm::authenticate(login, &first, challenge, nonces, now)?;
        let signature = answer.key.map(|key| ntlm::sign(key, &spnego::mechanisms()));
        let last = spnego::response(&answer.token, signature.as_ref().map(|bytes| &bytes[..]));
        self.client.log_on(&last, answer.key)?;
        match self.step()? {
            Event::LoggedOn(_) => {}
            Event::Response(response) => return Err(no_session(name(), response.status())),
            other => return Err(refused("SESSION_SETUP", &other)),
        }
        Ok(())
    }

    /// The next event of the log-on.
    fn step(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.client.poll_event() {
                return Ok(event);
            }
            self.exchange()?;
        }
    }
}

fn no_session(user: String, status: u32) -> Error {
    Error::LogOn { user, status }
}

fn refused(what: &str, event: &Event) -> Error {
    let status = match event {
        Event::Response(response) => response.status(),
        _ => status::INVALID_PARAMETER,
    };
    Error::Refused {
        what: what.into(),
        status,
    }
}

//! Shutdown: the host asks the guest to end, to restart, or to hibernate (Linux:
//! `struct shutdown_msg_data`).

use alloc::string::String;
use alloc::vec::Vec;

use super::guest::{GuestService, Handled, Loader, Saver};
use super::host::HostError;
use super::service::{SHUTDOWN, Service, Version};
use super::single::Single;
use super::status::Status;
use linkspan_mem::record::RestoreError;

pub use super::single::Event;

/// Bytes before the text: reason, seconds, flags, 32 bits each.
const HEAD: usize = 12;

/// Bytes of the text, with the zero at its end.
const TEXT: usize = 2048;

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    /// End.
    PowerOff = 0,
    /// Begin anew.
    Restart = 2,
    /// Sleep on disk; only version 3.2 has it.
    Hibernate = 4,
}

/// A wish of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub action: Action,
    /// Whether applications are not asked.
    pub force: bool,
    /// Why, as Windows counts reasons.
    pub reason: u32,
    /// Within how many seconds.
    pub timeout_s: u32,
    /// What to tell people.
    pub message: String,
}

/// `force`, in the flags.
const FORCE: u32 = 1;

/// The guest's end. Its effect is the wish: it is answered with whether it is
/// allowed, and done only after the reply was sent, since nobody sends it later.
#[derive(Clone, Copy, Debug, Default)]
pub struct Obedience;

impl GuestService for Obedience {
    const SERVICE: &'static Service = &SHUTDOWN;
    type Effect = Request;

    fn request(&mut self, version: Version, body: &mut [u8]) -> Handled<Request> {
        let Some((head, text)) = body.split_first_chunk::<HEAD>() else {
            return Handled::Answer(Status::INVALID_ARGUMENT);
        };
        let [reason, timeout_s, flags] = words(*head);
        let action = match flags & !FORCE {
            0 => Action::PowerOff,
            2 => Action::Restart,
            4 if version >= SHUTDOWN.versions[0] => Action::Hibernate,
            _ => return Handled::Answer(Status::FAIL),
        };
        let text = &text[..text.len().min(TEXT)];
        let end = text.iter().position(|byte| *byte == 0);
        let text = &text[..end.unwrap_or(text.len())];
        Handled::Do(Request {
            action,
            force: flags & FORCE != 0,
            reason,
            timeout_s,
            message: String::from_utf8_lossy(text).into_owned(),
        })
    }

    fn done(&mut self, status: Status) -> Handled<Request> {
        Handled::Answer(status)
    }

    fn reset(&mut self) -> Option<Request> {
        None
    }

    fn save(&self, _to: Saver<'_>) {}

    fn load(&mut self, _from: Loader<'_, '_>) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn words(bytes: [u8; HEAD]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_le_bytes)
}

const MAGIC: [u8; 8] = *b"LSicshd1";

/// The host's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester(Single);

impl Default for Requester {
    fn default() -> Self {
        Self(Single::new(&SHUTDOWN))
    }
}

impl Requester {
    /// The message that begins the conversation.
    pub fn start(&mut self) -> Vec<u8> {
        self.0.start()
    }

    /// The message with a wish. One that was not answered is not awaited any more.
    ///
    /// # Errors
    /// Nothing is negotiated.
    pub fn request(&mut self, wish: &Request) -> Result<Vec<u8>, HostError> {
        let header = self.0.request(HEAD + TEXT)?;
        let flags = wish.action as u32 | u32::from(wish.force);
        let mut message = header.to_vec();
        for word in [wish.reason, wish.timeout_s, flags] {
            message.extend(word.to_le_bytes());
        }
        // Cut where a character ends, with a zero behind it.
        let mut cut = wish.message.len().min(TEXT - 1);
        while !wish.message.is_char_boundary(cut) {
            cut -= 1;
        }
        message.extend(&wish.message.as_bytes()[..cut]);
        message.resize(header.len() + HEAD + TEXT, 0);
        Ok(message)
    }

    /// Takes a message of the guest.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn receive(&mut self, payload: &[u8]) -> Result<Event, HostError> {
        self.0.receive(payload)
    }

    /// The conversation as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.0.snapshot(MAGIC)
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        Single::restore(&SHUTDOWN, "requester of shutdowns", MAGIC, bytes).map(Self)
    }
}

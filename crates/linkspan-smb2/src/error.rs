//! What is wrong with a message or a peer, with the numbers in it.

use thiserror::Error;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer broke the protocol.
    Peer,
    /// The peer does not speak, or refuses, what is needed.
    Unsupported,
    /// The caller asked for what cannot be.
    Local,
}

/// Why a message is not taken, or a request not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A message, or a part of one, is shorter than its fixed part.
    #[error("{what} of {got} bytes, less than {want}")]
    Short {
        /// Which.
        what: &'static str,
        /// Bytes that are there.
        got: usize,
        /// Bytes that it has at least.
        want: usize,
    },
    /// A message, or a part of one, is longer than it may be.
    #[error("{what} of {got} bytes, more than {max}")]
    Long {
        /// Which.
        what: &'static str,
        /// Bytes.
        got: u64,
        /// Bytes that it may have.
        max: u64,
    },
    /// The four bytes that begin each message.
    #[error("the message begins with {got:#010x}, which is no SMB2")]
    Protocol {
        /// What stands there, little-endian.
        got: u32,
    },
    /// `StructureSize` of a header or a body.
    #[error("StructureSize of {what} is {got}, not {want}")]
    StructureSize {
        /// Which.
        what: &'static str,
        /// What it says.
        got: u16,
        /// What it has to say.
        want: u16,
    },
    /// A part lies outside its message.
    #[error("{what} at {offset}, {length} bytes long, is not within {from}..{len}")]
    Outside {
        /// Which part.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        length: u64,
        /// Where it may begin.
        from: usize,
        /// Bytes of the message.
        len: usize,
    },
    /// A field says what it may not.
    #[error("{field} is {value:#x}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// `NextCommand` of a compound.
    #[error("NextCommand is {next} in a message of {len} bytes")]
    NextCommand {
        /// What it says.
        next: u32,
        /// Bytes from this header to the end.
        len: usize,
    },
    /// More parts than anybody needs.
    #[error("more than {max} {what}")]
    TooMany {
        /// Which parts.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// A name is not UTF-16.
    #[error("{what} is no UTF-16")]
    Utf16 {
        /// Which.
        what: &'static str,
    },
    /// A response to nothing that was asked.
    #[error("a response to message {message}, which is not awaited")]
    NotAwaited {
        /// Its MessageId.
        message: u64,
    },
    /// A response of another kind than its request.
    #[error("message {message} is {want:?} and its response {got:?}")]
    OtherCommand {
        /// Its MessageId.
        message: u64,
        /// What was asked.
        want: crate::Command,
        /// What came.
        got: crate::Command,
    },
    /// A response that has to be signed and is not.
    #[error("the response to message {message} is not signed")]
    NotSigned {
        /// Its MessageId.
        message: u64,
    },
    /// A signature that is wrong.
    #[error("the signature of message {message} is wrong")]
    Signature {
        /// Its MessageId.
        message: u64,
    },
    /// A response that has to be encrypted and is not.
    #[error("the response to message {message} is not encrypted")]
    NotEncrypted {
        /// Its MessageId.
        message: u64,
    },
    /// An encrypted message that cannot be decrypted.
    #[error("an encrypted message of session {session:#x} cannot be decrypted")]
    Sealed {
        /// Its SessionId.
        session: u64,
    },
    /// The peer chose or requires what is not offered.
    #[error("the server chose {what} {value:#06x}, which was not offered")]
    NotOffered {
        /// Which choice.
        what: &'static str,
        /// What it chose.
        value: u32,
    },
    /// The peer does not have what is required.
    #[error("the server does not offer {what}, which is required")]
    Lacks {
        /// What.
        what: &'static str,
    },
    /// The server took a user who has a name for a guest, or for nobody: the session would
    /// have no key, and anybody in between could be that server.
    #[error("the server took the user for a guest, so that nothing would be protected")]
    Guest,
    /// An oplock or a lease is taken back that was not asked for.
    #[error("the server takes back an oplock or a lease, and gave none")]
    Unasked,
    /// The negotiation was changed by somebody in between (MS-SMB2 3.2.5.5).
    #[error("the server says that it negotiated otherwise: {what}")]
    Downgraded {
        /// What differs.
        what: &'static str,
    },
    /// No credit is left and none is on its way.
    #[error("no credit is left, and no response is awaited that could bring one")]
    NoCredits,
    /// So many credits are needed and there are fewer.
    #[error("{need} credits are needed and {have} are there")]
    Credits {
        /// Needed.
        need: u32,
        /// There.
        have: u32,
    },
    /// The request is not possible now.
    #[error("{what} is not possible now")]
    State {
        /// Which.
        what: &'static str,
    },
    /// A token of the authentication cannot be read.
    #[error("the server's token cannot be read: {what}")]
    Token {
        /// What is wrong.
        what: &'static str,
    },
}

impl Error {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Lacks { .. } | Self::Guest => Blame::Unsupported,
            Self::Credits { .. } | Self::State { .. } => Blame::Local,
            _ => Blame::Peer,
        }
    }
}

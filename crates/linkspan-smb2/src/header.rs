//! The header of each message (MS-SMB2 2.2.1), and compounds of messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Error;
use crate::wire;

/// `\xFESMB`, little-endian.
pub const PROTOCOL_ID: u32 = 0x424D_53FE;

/// `\xFDSMB`: an encrypted message.
pub const TRANSFORM_ID: u32 = 0x424D_53FD;

/// `\xFCSMB`: a compressed one, which is never asked for.
pub const COMPRESSION_ID: u32 = 0x424D_53FC;

/// The MessageId of what a server says unasked.
pub const UNSOLICITED: u64 = u64::MAX;

/// Messages in one compound that anybody needs.
pub const COMPOUND_MAX: usize = 64;

/// Flags of a header.
pub mod flags {
    /// From the server.
    pub const RESPONSE: u32 = 0x0000_0001;
    /// The header has an AsyncId instead of a TreeId.
    pub const ASYNC: u32 = 0x0000_0002;
    /// The file, session and share of the message before in the compound.
    pub const RELATED: u32 = 0x0000_0004;
    /// The signature counts.
    pub const SIGNED: u32 = 0x0000_0008;
    /// Asked once more, after a connection was lost.
    pub const REPLAY: u32 = 0x2000_0000;
}

macro_rules! commands {
    ($($name:ident = $code:literal, $request:literal, $response:literal;)*) => {
        /// What a message is about (MS-SMB2 2.2.1.2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the names are those of MS-SMB2")]
        #[repr(u16)]
        pub enum Command { $($name = $code,)* }

        /// All commands: with `StructureSize` of the request and of the response.
        pub const COMMANDS: &[(Command, u16, u16)] =
            &[$((Command::$name, $request, $response),)*];

        impl Command {
            /// By its code.
            ///
            /// # Errors
            /// There is no such command.
            pub fn of(code: u16) -> Result<Self, Error> {
                match code {
                    $($code => Ok(Self::$name),)*
                    _ => Err(Error::Field { field: "Command", value: code.into() }),
                }
            }
        }
    };
}

commands! {
    Negotiate = 0, 36, 65;
    SessionSetup = 1, 25, 9;
    Logoff = 2, 4, 4;
    TreeConnect = 3, 9, 16;
    TreeDisconnect = 4, 4, 4;
    Create = 5, 57, 89;
    Close = 6, 24, 60;
    Flush = 7, 24, 4;
    Read = 8, 49, 17;
    Write = 9, 49, 17;
    Lock = 10, 48, 4;
    Ioctl = 11, 57, 49;
    Cancel = 12, 4, 0;
    Echo = 13, 4, 4;
    QueryDirectory = 14, 33, 9;
    ChangeNotify = 15, 32, 9;
    QueryInfo = 16, 41, 9;
    SetInfo = 17, 33, 2;
    OplockBreak = 18, 24, 24;
}

/// The 64 bytes that begin a message.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// [`PROTOCOL_ID`].
    pub protocol_id: U32,
    /// 64.
    pub structure_size: U16,
    /// Credits that the message costs; 0 in dialect 2.0.2.
    pub credit_charge: U16,
    /// Of a response: NTSTATUS. Of a request: ChannelSequence, and zeroes.
    pub status: U32,
    /// [`Command`].
    pub command: U16,
    /// Credits that are asked for or granted.
    pub credits: U16,
    /// [`flags`].
    pub flags: U32,
    /// From this header to the next one in the compound; 0 in the last.
    pub next_command: U32,
    /// The number of the message.
    pub message_id: U64,
    /// The lower half of an AsyncId, or nothing.
    pub process_id: U32,
    /// The share, or the upper half of an AsyncId.
    pub tree_id: U32,
    /// The session.
    pub session_id: U64,
    /// Of the whole message, with zeroes here.
    pub signature: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == Header::LEN);

impl Header {
    /// Its bytes.
    pub const LEN: usize = 64;

    /// Where the signature is.
    pub const SIGNATURE: core::ops::Range<usize> = 48..64;

    /// The header of a request.
    #[must_use]
    pub fn request(command: Command) -> Self {
        Self {
            protocol_id: PROTOCOL_ID.into(),
            structure_size: 64.into(),
            command: (command as u16).into(),
            ..Self::default()
        }
    }

    /// Reads and checks what begins a message.
    ///
    /// # Errors
    /// It is short, of another protocol, or of no command.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let header = Self::parse_any(message)?;
        Command::of(header.command.get())?;
        Ok(header)
    }

    /// As [`Header::parse`], of whatever command: for who passes on what it does not know.
    ///
    /// # Errors
    /// It is short, or of another protocol.
    pub fn parse_any(message: &[u8]) -> Result<Self, Error> {
        let header: Self = wire::view("an SMB2 header", message)?;
        let got = header.protocol_id.get();
        if got != PROTOCOL_ID {
            return Err(Error::Protocol { got });
        }
        let got = header.structure_size.get();
        if got != 64 {
            return Err(Error::StructureSize {
                what: "an SMB2 header",
                got,
                want: 64,
            });
        }
        Ok(header)
    }

    /// What it is about.
    ///
    /// # Errors
    /// There is no such command: never after [`Header::parse`].
    pub fn command(&self) -> Result<Command, Error> {
        Command::of(self.command.get())
    }

    /// Whether this flag is set.
    #[must_use]
    pub fn is(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    /// The number of an operation that takes time, if the header has one.
    #[must_use]
    pub fn async_id(&self) -> Option<u64> {
        let (low, high) = (self.process_id.get(), self.tree_id.get());
        self.is(flags::ASYNC)
            .then_some(u64::from(high) << 32 | u64::from(low))
    }
}

/// The messages of a compound, each with its header (MS-SMB2 3.3.5.2.7). One message is a
/// compound of one.
#[derive(Clone, Debug)]
pub struct Compound<'a> {
    rest: Option<&'a [u8]>,
    left: usize,
}

impl<'a> Compound<'a> {
    /// What arrived.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: Some(bytes),
            left: COMPOUND_MAX,
        }
    }

    fn step(&mut self, bytes: &'a [u8]) -> Result<(Header, &'a [u8]), Error> {
        let header = Header::parse(bytes)?;
        self.left = self.left.checked_sub(1).ok_or(Error::TooMany {
            what: "messages in a compound",
            max: COMPOUND_MAX,
        })?;
        let next = header.next_command.get();
        if next == 0 {
            return Ok((header, bytes));
        }
        let at = next as usize;
        if at < Self::MIN || !at.is_multiple_of(8) || at >= bytes.len() {
            return Err(Error::NextCommand {
                next,
                len: bytes.len(),
            });
        }
        let (message, rest) = bytes.split_at(at);
        self.rest = Some(rest);
        Ok((header, message))
    }

    /// A header and the shortest body.
    const MIN: usize = Header::LEN + 2;
}

impl<'a> Iterator for Compound<'a> {
    type Item = Result<(Header, &'a [u8]), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.rest.take()?;
        Some(self.step(bytes))
    }
}

/// Puts messages into one compound: fills each up to a multiple of 8, and says where the
/// next one is. Signatures come after that.
#[must_use]
pub fn compound(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(messages.iter().map(|message| message.len() + 8).sum());
    for (index, message) in messages.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(message);
        if index + 1 < messages.len() {
            wire::align8(&mut out, start);
            let next = wire::len32(out.len() - start);
            out[start + 20..start + 24].copy_from_slice(&next.to_le_bytes());
        }
    }
    out
}

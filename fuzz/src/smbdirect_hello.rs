//! The first messages of `linkspan smbdirect`: what a listener takes for a hello, and
//! what an initiator makes of an answer to one.
//!
//! The first byte says which: 0 is a first message, any other one an answer to a hello
//! that asked for so many times 256 bytes.

use linkspan_backends::smbdirect::{Hello, Peer};

/// The target `smbdirect_hello`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// What it is.
pub fn run(bytes: &[u8]) -> &'static str {
    let Some((&kind, message)) = bytes.split_first() else {
        return "nothing";
    };
    if kind == 0 {
        let hello = Hello::parse(message);
        assert!(hello.is_none_or(|hello| hello.to_bytes() == message));
        return if hello.is_some() { "hello" } else { "message" };
    }
    let memory = u32::from(kind) << 8;
    match Peer::of(Hello { memory }, message) {
        Peer::Ours(welcome) => {
            assert_eq!(welcome.to_bytes(), message);
            "ours"
        }
        Peer::Smb { .. } => "smb",
        Peer::Echo => "echo",
        Peer::Other => "other",
    }
}

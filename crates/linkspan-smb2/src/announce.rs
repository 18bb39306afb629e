//! What a relay before a server tells of SMB Direct, without I/O: who asks the server over TCP
//! for its interfaces (MS-SMB2 3.3.5.15.11) hears of one more that has RDMA.
//!
//! A relay has no key: an answer that is signed goes on as it is, and a question that is
//! encrypted is not seen. So do answers that make no sense, since that is the client's to judge.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

use zerocopy::IntoBytes as _;

use crate::gateway::is_compound;
use crate::header::{Command, Header, flags};
use crate::ioctl::{
    self, INTERFACE_LEN, Interface, IoctlRequest, IoctlResponse, RDMA_CAPABLE, code,
};
use crate::status;
use crate::wire::{Body as _, len32};

/// Bytes of a message from the client that have to be seen, if it has as many.
pub const ASK_LEN: usize = Header::LEN + size_of::<IoctlRequest>();

/// Bytes of the longest answer that is changed: 400 interfaces.
pub const ANSWER_MAX: usize = 65_536;

/// Questions that may be unanswered; others are answered as the server does.
const ASKED_MAX: usize = 16;

/// Bits a second of an interface of which nothing is known.
const LINK_SPEED: u64 = 1_000_000_000;

/// What one connection remembers.
#[derive(Clone, Debug)]
pub struct Announce {
    address: IpAddr,
    /// Messages that asked, and the bytes of output that they take.
    asked: BTreeMap<u64, u32>,
}

impl Announce {
    /// Tells of SMB Direct at this address.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            asked: BTreeMap::new(),
        }
    }

    /// Questions that are not answered.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Sees how a message from the client begins: [`ASK_LEN`] bytes, or all of a shorter one.
    pub fn from_client(&mut self, head: &[u8]) {
        let Some((header, id)) = plain(head, Command::Ioctl) else {
            return;
        };
        let Ok(request) = IoctlRequest::read(head) else {
            return;
        };
        let is_it = request.code.get() == code::QUERY_NETWORK_INTERFACE_INFO;
        if is_it && !header.is(flags::RESPONSE) && self.asked.len() < ASKED_MAX {
            self.asked.insert(id, request.max_output.get());
        }
    }

    /// Whether all of a message of `len` bytes from the server has to be seen, which begins so:
    /// with [`Header::LEN`] bytes.
    pub fn wants(&mut self, head: &[u8], len: usize) -> bool {
        if self.asked.is_empty() {
            return false;
        }
        let Some((header, id)) = plain(head, Command::Ioctl) else {
            return false;
        };
        let is_interim = header.status.get() == status::PENDING;
        if is_interim || !self.asked.contains_key(&id) {
            return false;
        }
        let is_short = len <= ANSWER_MAX;
        if !is_short || header.status.get() != status::SUCCESS {
            self.asked.remove(&id);
            return false;
        }
        true
    }

    /// The answer in place of the server's, which was [wanted](Self::wants); `None`: as it is.
    pub fn from_server(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let (header, id) = plain(message, Command::Ioctl)?;
        let max = self.asked.remove(&id)?;
        let response = IoctlResponse::read(message).ok()?;
        if response.code.get() != code::QUERY_NETWORK_INTERFACE_INFO {
            return None;
        }
        let output = with(response.output(message).ok()?, self.address)?;
        if len32(output.len()) > max {
            return None;
        }
        let fixed = IoctlResponse {
            input_length: 0.into(),
            ..response
        };
        Some([header.as_bytes(), &fixed.body(&output)].concat())
    }
}

/// The header of a message of this command, and its number, if it is alone, and neither
/// encrypted nor signed.
fn plain(head: &[u8], command: Command) -> Option<(Header, u64)> {
    // What is encrypted begins otherwise.
    let header = Header::parse_any(head).ok()?;
    let is_it = header.command.get() == command as u16;
    let is_plain = !is_compound(head) && !header.is(flags::SIGNED) && !header.is(flags::RELATED);
    (is_it && is_plain).then(|| (header, header.message_id.get()))
}

/// The interfaces with one that has RDMA at this address: the server's own if it has one
/// there, else one more. `None` if they say so already, or make no sense.
fn with(output: &[u8], address: IpAddr) -> Option<Vec<u8>> {
    let interfaces = ioctl::interfaces(output).ok()?;
    let mut bytes = output.to_vec();
    let (mut at, mut last, mut found) = (0, None, false);
    let mut one = Interface::at(address);
    one.link_speed = LINK_SPEED.into();
    for (number, interface) in interfaces.iter().enumerate() {
        let capability = interface.capability.get();
        if interface.ip() == Some(address) {
            if capability & RDMA_CAPABLE != 0 {
                return None;
            }
            found = true;
            bytes[at + 8..at + 12].copy_from_slice(&(capability | RDMA_CAPABLE).to_le_bytes());
        }
        let index = one.index.get().max(interface.index.get().saturating_add(1));
        one.index = index.into();
        if number == 0 || interface.link_speed.get() > one.link_speed.get() {
            one.link_speed = interface.link_speed;
        }
        last = Some(at);
        at += interface.next.get() as usize;
    }
    if found {
        return Some(bytes);
    }
    if let Some(last) = last {
        let begin = bytes.len().next_multiple_of(8);
        bytes.resize(begin, 0);
        bytes[last..last + 4].copy_from_slice(&len32(begin - last).to_le_bytes());
    }
    let begin = bytes.len();
    bytes.extend_from_slice(one.as_bytes());
    bytes.resize(begin + INTERFACE_LEN, 0);
    Some(bytes)
}

//! A server's stream against the client's session.
//!
//! The bytes are a script: questions, and messages and raw bytes of the server with
//! descriptors, in any pieces.

use linkspan_mem::Iova;
use linkspan_vfio::client::{Answer, Ask, Client, Heard, WAITING_MAX};
use linkspan_vfio::describe::Watcher;
use linkspan_vfio::wire::{BODY_MAX, HEADER_BYTES, Header};
use linkspan_vfio::{Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};
use zerocopy::IntoBytes;

use super::{Outcome, watch};
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Length and descriptors, 8 bits each, and the bytes.
    pub(crate) const RAW: u8 = 0;
    /// Number of the question, 8 bits; number of the message, 16 bits; flags, descriptors,
    /// piece size, 8 bits each; body size, 16 bits; the body.
    pub(crate) const MESSAGE: u8 = 1;
    /// Which question, 8 bits, and a number for it, 16 bits.
    pub(crate) const ASK: u8 = 2;
    /// How many there are.
    pub(crate) const COUNT: u8 = 3;
}

struct Script {
    client: Client,
    over: bool,
    /// Of what the server says.
    watcher: Watcher,
    outcome: Outcome,
}

/// Runs a script to the end.
pub(super) fn run(data: &[u8]) -> Outcome {
    let wish = Capabilities {
        msg_fds: 8,
        write_multiple: true,
        gfx_plane: true,
        ..Capabilities::default()
    };
    let (client, first) = Client::new(wish);
    assert!(first.len() > HEADER_BYTES);
    let mut script = Script {
        client,
        over: false,
        watcher: Watcher::default(),
        outcome: Outcome::default(),
    };
    let mut input = Input::new(data);
    while script.step(&mut input).is_some() {}
    script.outcome
}

impl Script {
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.u8()? % step::COUNT {
            step::RAW => {
                let (len, fds) = (input.u8()?, input.u8()?);
                let bytes = input.bytes(len.into());
                self.give(bytes, fds.into(), usize::MAX);
            }
            step::MESSAGE => {
                let (id, command, flags) = (input.u8()?, input.u16()?, input.u8()?);
                let (fds, piece, len) = (input.u8()?, input.u8()?, input.u16()?);
                let body = input.bytes(len.into());
                let header = Header {
                    id: id.into(),
                    command,
                    size: u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX),
                    flags: flags.into(),
                    error: 0,
                };
                let bytes = [header.as_bytes(), body].concat();
                self.give(&bytes, fds.into(), usize::from(piece).max(1));
            }
            _ => {
                let (kind, number) = (input.u8()?, input.u16()?);
                self.ask(kind, number);
            }
        }
        Some(())
    }

    fn ask(&mut self, kind: u8, number: u16) {
        let wide = u64::from(number);
        let data = vec![3; usize::from(number).min(64)];
        let set = SetIrqs {
            index: number.into(),
            start: 0,
            count: 2,
            action: IrqAction::Trigger,
            data: IrqData::Bool(vec![true, false]),
        };
        let writes: [(u32, u64, &[u8]); 2] = [(0, wide, &[1]), (1, wide, &[2; 9])];
        let map = DmaMap {
            address: Iova(wide),
            size: 4096,
            offset: 0,
            readable: true,
            writable: true,
            shared: true,
        };
        let (region, offset, count) = (kind.into(), wide, u32::from(number));
        let ask = match kind % 12 {
            _ if kind == 12 => Ask::Doorbells {
                index: count,
                room: number.into(),
            },
            0 => Ask::Info,
            1 => Ask::Region {
                index: 0,
                room: number.into(),
            },
            2 => Ask::Irq { index: count },
            3 => Ask::SetIrqs(&set),
            4 => Ask::Read {
                region,
                offset,
                count,
            },
            5 => Ask::Write {
                region,
                offset,
                bytes: &data,
            },
            6 => Ask::WriteMulti(&writes),
            7 => Ask::Reset,
            8 => Ask::QueryPlane { flags: 2, kind: 1 },
            9 => Ask::GetPlane { id: count },
            10 => Ask::Map(map),
            _ => Ask::UnmapAll,
        };
        match self.client.ask(&ask) {
            Ok((_, bytes)) => assert!(bytes.len() >= HEADER_BYTES),
            Err(error) => {
                self.outcome.refused += 1;
                self.outcome.error = Some(error.to_string());
            }
        }
    }

    fn give(&mut self, bytes: &[u8], fds: usize, piece: usize) {
        let (mut rest, mut fds) = (bytes, fds);
        while !rest.is_empty() && !self.over {
            let wanted = self.client.wanted();
            assert!(wanted > 0 && wanted <= BODY_MAX);
            let (now, later) = rest.split_at(wanted.min(piece).min(rest.len()));
            rest = later;
            watch(&mut self.watcher, now, fds);
            match self.client.receive(now, std::mem::take(&mut fds)) {
                Ok(None) => {}
                Ok(Some(heard)) => self.heard(&heard),
                Err(error) => {
                    self.over = true;
                    self.outcome.error = Some(error.to_string());
                    assert_eq!(self.client.wanted(), 0);
                    assert!(self.client.ask(&Ask::Info).is_err());
                }
            }
        }
    }

    fn heard(&mut self, heard: &Heard) {
        self.outcome.done += 1;
        match heard {
            Heard::Asked(question) => {
                let data = vec![1; question.count as usize];
                let answer = self.client.answer(question, Ok(&data));
                assert!(answer.is_none_or(|answer| answer.len() == HEADER_BYTES + 16 + data.len()));
            }
            Heard::Answer { id, answer } => {
                assert!(usize::from(*id) < WAITING_MAX * 1024);
                if let Answer::Region(info, bytes) = answer {
                    // Whatever stands there, it is a chain or none.
                    let chain = linkspan_display::region::capabilities(bytes, info.cap_offset);
                    assert!(chain.is_err() || bytes.len() >= 32);
                }
            }
            _ => {}
        }
    }
}

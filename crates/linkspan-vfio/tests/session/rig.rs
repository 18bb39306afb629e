//! A device without a system behind it, and messages by hand.

use linkspan_vfio::server::{Answer, Effect, PlaneState};
use linkspan_vfio::wire::{
    BUFFER_MEMORY, HEADER_BYTES, Header, IRQ_EVENTFD, PlaneBuffer, PlaneInfo, errno,
};
use linkspan_vfio::{Error, FdId, Irq, Offer, Region, Server};
use zerocopy::{FromBytes, IntoBytes};

/// Region 0 can be mapped, 1 can only be read, 2 does not exist.
pub(crate) fn offer() -> Offer {
    Offer {
        regions: vec![
            Region {
                kind: Some((1, 1)),
                ..Region::mapped(0x2000)
            },
            Region {
                writable: false,
                doorbells: (0..9).map(|at| at..at + 1).collect(),
                ..Region::of(16)
            },
            Region::default(),
        ],
        irqs: vec![
            Irq::default(),
            Irq {
                count: 4,
                flags: IRQ_EVENTFD,
            },
        ],
        reset: true,
        dma_maps: 3,
        planes: true,
    }
}

/// Messages that were sent, each with the number of its descriptors.
pub(crate) type Sent = Vec<(Vec<u8>, usize)>;

/// What a device did.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) memory: Vec<u8>,
    pub(crate) done: Vec<Effect>,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self {
            memory: vec![0; 0x2000],
            done: Vec::new(),
        }
    }

    fn answer(&mut self, effect: &Effect) -> Result<Answer, u32> {
        Ok(match effect {
            Effect::Read { offset, count, .. } => {
                let start = usize::try_from(*offset).unwrap();
                Answer::Bytes(self.memory[start..start + *count as usize].to_vec())
            }
            Effect::Write { offset, bytes, .. } => {
                let start = usize::try_from(*offset).unwrap();
                self.memory[start..start + bytes.len()].copy_from_slice(bytes);
                Answer::Done
            }
            Effect::RegionFd { .. } => Answer::Fd(FdId(1)),
            Effect::DoorbellFds { count, .. } => Answer::Fds(vec![FdId(3); *count]),
            Effect::QueryPlane { kind: 1 } => Answer::Plane(PlaneState::Shown(PlaneInfo {
                argsz: 0,
                flags: 0,
                plane_type: 9,
                format: 0x3432_5258,
                modifier: 0,
                width: 640,
                height: 480,
                stride: 2560,
                size: 2560 * 480,
                x: 0,
                y: 0,
                x_hot: u32::MAX,
                y_hot: u32::MAX,
                handle: 5,
                reserved: 0,
            })),
            Effect::QueryPlane { kind: 2 } => Answer::Plane(PlaneState::Off),
            Effect::QueryPlane { .. } => Answer::Plane(PlaneState::Refused("rotation".into())),
            Effect::GetPlane { id: id @ 5 } => {
                let buffer = PlaneBuffer {
                    id: *id,
                    kind: BUFFER_MEMORY,
                    offset: 4096,
                    len: 8192,
                };
                Answer::Buffer(buffer, FdId(2))
            }
            Effect::GetPlane { .. } => return Err(errno::ENOENT),
            _ => Answer::Done,
        })
    }

    /// Gives bytes to a server and carries out what it wants: what it sends, with the
    /// number of descriptors of each message.
    pub(crate) fn serve(
        &mut self,
        server: &mut Server,
        bytes: &[u8],
        fds: usize,
    ) -> (Sent, Result<(), Error>) {
        let (mut sent, mut result) = (Vec::new(), Ok(()));
        let (mut rest, mut fds) = (bytes, fds);
        loop {
            while let Some(effect) = server.poll_effect() {
                if let Effect::Send { bytes, fds } = effect {
                    sent.push((bytes, fds.len()));
                    continue;
                }
                if effect.needs_answer() {
                    let answer = self.answer(&effect);
                    if let Err(error) = server.answer(answer) {
                        result = Err(error);
                    }
                }
                self.done.push(effect);
            }
            let wanted = server.wanted().min(rest.len());
            if wanted == 0 {
                assert!(rest.is_empty() || server.is_over());
                return (sent, result);
            }
            let (now, later) = rest.split_at(wanted);
            rest = later;
            if let Err(error) = server.receive(now, std::mem::take(&mut fds)) {
                result = Err(error);
            }
        }
    }
}

/// A message.
pub(crate) fn message(command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        id: 77,
        command,
        size: u32::try_from(HEADER_BYTES + body.len()).unwrap(),
        flags,
        error: 0,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// The version of a client that can do all.
pub(crate) fn version() -> Vec<u8> {
    let text =
        "{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true,\"gfx_plane\":true}}\0";
    message(1, 0, &[&[0, 0, 0, 0], text.as_bytes()].concat())
}

/// A server that has agreed with its client.
pub(crate) fn agreed() -> (Server, Device) {
    let (mut server, mut device) = (Server::new(offer()), Device::new());
    let (sent, result) = device.serve(&mut server, &version(), 0);
    assert_eq!((sent.len(), result), (1, Ok(())));
    (server, device)
}

/// The header of a message.
pub(crate) fn header(bytes: &[u8]) -> Header {
    Header::read_from_prefix(bytes).unwrap().0
}

//! What each message of a client means.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::size_of;

use linkspan_mem::Iova;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{Agreed, Answer, Effect, PlaneState, Server, version_body};
use crate::dma::{DmaMap, Place};
use crate::error::{Cause, Misuse};
use crate::fd::{FdId, FdSlot};
use crate::framing::Frame;
use crate::irq::SetIrqs;
use crate::message::{Command, Gate, Message, Sender};
use crate::region::Region;
use crate::version::{self, Capabilities, VersionError};
use crate::wire::{
    Access, DATA_MAX, DEVICE_PCI, DEVICE_RESET, DeviceInfo, DmaMapBody, DmaUnmapBody, FDS_MAX,
    Header, IO_EVENT, IoEvent, IoFds, IrqInfo, IrqSet, MultiWrite, PLANE_DMABUF, PLANE_PROBE,
    PLANE_REFUSED, PLANE_REGION, PLANE_WORDS_MAX, PlaneInfo, RegionInfo, UNMAP_ALL, head,
};

/// Planes of the kernel's structure: overlay, primary, cursor.
const PLANE_TYPES: u32 = 3;

/// What follows from a message.
#[derive(Debug)]
pub(super) enum Step {
    /// Something is to be done first.
    Ask(Effect, Commit),
    /// It is done; this is its reply, and the descriptors that go with it.
    Reply(Vec<u8>, Vec<FdId>),
}

/// What follows once it was done.
#[derive(Debug)]
pub(super) enum Commit {
    /// The reply has this body.
    Reply(Vec<u8>),
    /// A map is there.
    Mapped { at: usize, map: DmaMap },
    /// So many bytes are read.
    Read { access: Access },
    /// The information of a region goes out with its descriptor.
    Region { body: Vec<u8> },
    /// The parts of a region that are eventfds go out with these.
    Doorbells { body: Vec<u8>, count: usize },
    /// These writes are left.
    Writes { left: VecDeque<Write>, count: u64 },
    /// The plane's information is the reply.
    Plane { query: PlaneInfo },
    /// The plane's descriptor is.
    Buffer { id: u32 },
}

/// One write of several.
#[derive(Debug)]
pub(super) struct Write {
    region: u32,
    offset: u64,
    bytes: Vec<u8>,
}

impl From<Write> for Effect {
    fn from(write: Write) -> Self {
        let Write {
            region,
            offset,
            bytes,
        } = write;
        Self::Write {
            region,
            offset,
            bytes,
        }
    }
}

fn done() -> Step {
    Step::Reply(Vec::new(), Vec::new())
}

impl Server {
    /// The message's row, if it is legal now.
    fn judge(&self, frame: &Frame) -> Result<&'static Message, Cause> {
        let row = Command::row(frame.header.command).ok_or(Cause::UnknownCommand)?;
        if row.sender == Sender::Server {
            return Err(Cause::WrongEnd);
        }
        let capabilities = self.agreed.as_ref().map(|agreed| agreed.capabilities);
        let legal = match (row.gate, capabilities) {
            (Gate::First, agreed) => agreed.is_none(),
            (_, None) => return Err(Cause::BeforeVersion),
            (Gate::Open, _) => true,
            (Gate::WriteMultiple, Some(agreed)) => agreed.write_multiple,
            (Gate::Planes, Some(agreed)) => agreed.gfx_plane,
            (Gate::Refused, _) => false,
        };
        if !legal {
            return Err(Cause::of_gate(row.gate));
        }
        let (got, min, max) = (frame.body.len(), row.body_min, row.body_max);
        if !(min..=max).contains(&got) {
            return Err(Cause::BodySize { got, min, max });
        }
        let (got, max) = (frame.fds, row.fds_max);
        if got > max {
            return Err(Cause::FdCount { got, max });
        }
        Ok(row)
    }

    pub(super) fn dispatch(&mut self, frame: Frame) -> Result<Step, Cause> {
        let command = self.judge(&frame)?.command;
        let body = frame.body.as_slice();
        match command {
            Command::Version => self.version(&frame),
            Command::DmaMap => self.map(body, frame.fds),
            Command::DmaUnmap => self.unmap(body),
            Command::DeviceGetInfo => self.info(body),
            Command::DeviceGetRegionInfo => self.region_info(body),
            Command::DeviceGetRegionIoFds => self.doorbells(body),
            Command::DeviceGetIrqInfo => self.irq_info(body),
            Command::DeviceSetIrqs => self.set_irqs(body, frame.fds),
            Command::RegionRead => self.read(body),
            Command::RegionWrite => self.write(frame.body),
            Command::RegionWriteMulti => self.write_multi(body),
            Command::DeviceReset if self.offer.reset => {
                Ok(Step::Ask(Effect::Reset, Commit::Reply(Vec::new())))
            }
            Command::QueryGfxPlane => query_plane(body),
            Command::GetGfxDmabuf => {
                let id = body.first_chunk().map_or(0, |id| u32::from_ne_bytes(*id));
                Ok(Step::Ask(Effect::GetPlane { id }, Commit::Buffer { id }))
            }
            // What is gated off does not come here.
            _ => Err(Cause::Unsupported),
        }
    }

    /// What follows once an effect was carried out.
    pub(super) fn commit(&mut self, commit: Commit, answer: Answer) -> Result<Step, Cause> {
        match (commit, answer) {
            (Commit::Reply(body), Answer::Done) => Ok(Step::Reply(body, Vec::new())),
            (Commit::Mapped { at, map }, Answer::Done) => {
                self.maps.insert(at, map);
                Ok(done())
            }
            (Commit::Read { access }, Answer::Bytes(bytes))
                if bytes.len() as u64 == u64::from(access.count) =>
            {
                let mut body = access.as_bytes().to_vec();
                body.extend_from_slice(&bytes);
                Ok(Step::Reply(body, Vec::new()))
            }
            (Commit::Region { body }, Answer::Fd(fd)) => Ok(Step::Reply(body, vec![fd])),
            (Commit::Doorbells { body, count }, Answer::Fds(fds)) if fds.len() == count => {
                Ok(Step::Reply(body, fds))
            }
            (Commit::Writes { mut left, count }, Answer::Done) => match left.pop_front() {
                Some(next) => Ok(Step::Ask(next.into(), Commit::Writes { left, count })),
                None => Ok(Step::Reply(count.as_bytes().to_vec(), Vec::new())),
            },
            (Commit::Plane { query }, Answer::Plane(state)) => plane(&query, state),
            (Commit::Buffer { id }, Answer::Buffer(buffer, fd)) if buffer.id == id => {
                Ok(Step::Reply(buffer.as_bytes().to_vec(), vec![fd]))
            }
            _ => Err(Misuse::WrongAnswer.into()),
        }
    }

    fn version(&mut self, frame: &Frame) -> Result<Step, Cause> {
        if frame.header.flags & Header::NO_REPLY != 0 {
            return Err(VersionError::NoReply.into());
        }
        let (version, said) = version::agree(&frame.body)?;
        let answer = said.answer(Capabilities::ours(self.offer.dma_maps, self.offer.planes));
        let common = answer.capabilities;
        let version = (version.major, version.minor);
        self.agreed = Some(Agreed {
            version,
            capabilities: Capabilities {
                write_multiple: common.write_multiple,
                gfx_plane: common.gfx_plane,
                ..said.capabilities
            },
        });
        Ok(Step::Reply(
            version_body(version, &answer.to_bytes()),
            Vec::new(),
        ))
    }

    fn map(&mut self, body: &[u8], fds: usize) -> Result<Step, Cause> {
        let (body, _) = structure::<DmaMapBody>(body)?;
        let map = DmaMap::new(&body, fds > 0)?;
        match self.maps.place(&map, self.offer.dma_maps)? {
            Place::There if !map.shared => Ok(done()),
            // Which file it is cannot be seen from here.
            Place::There => {
                let fd = FdSlot(0);
                let effect = Effect::MapAgain { map, fd };
                Ok(Step::Ask(effect, Commit::Reply(Vec::new())))
            }
            Place::At(at) => {
                let fd = map.shared.then_some(FdSlot(0));
                let effect = Effect::Map { map, fd };
                Ok(Step::Ask(effect, Commit::Mapped { at, map }))
            }
        }
    }

    fn unmap(&mut self, body: &[u8]) -> Result<Step, Cause> {
        let reply = body.to_vec();
        let (body, _) = structure::<DmaUnmapBody>(body)?;
        room(body.argsz, size_of::<DmaUnmapBody>())?;
        let DmaUnmapBody {
            flags,
            address,
            size,
            ..
        } = body;
        let gone = match flags {
            0 => {
                let at = self.maps.find(Iova(address), size)?;
                vec![self.maps.remove(at)]
            }
            UNMAP_ALL if (address, size) == (0, 0) => {
                let all = self.maps.all().to_vec();
                self.maps.clear();
                all
            }
            flags => return Err(Cause::Flags { flags }),
        };
        Ok(Step::Ask(Effect::Unmap(gone), Commit::Reply(reply)))
    }

    fn info(&self, body: &[u8]) -> Result<Step, Cause> {
        let (asked, _) = structure::<DeviceInfo>(body)?;
        room(asked.argsz, size_of::<DeviceInfo>())?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let info = DeviceInfo {
            argsz: count(size_of::<DeviceInfo>()),
            flags: DEVICE_PCI | if self.offer.reset { DEVICE_RESET } else { 0 },
            num_regions: count(self.offer.regions.len()),
            num_irqs: count(self.offer.irqs.len()),
        };
        Ok(Step::Reply(info.as_bytes().to_vec(), Vec::new()))
    }

    fn region(&self, index: u32) -> Result<&Region, Cause> {
        let known = usize::try_from(index)
            .ok()
            .and_then(|index| self.offer.regions.get(index));
        known.ok_or(Cause::RegionIndex {
            index,
            regions: self.offer.regions.len(),
        })
    }

    fn region_info(&self, body: &[u8]) -> Result<Step, Cause> {
        let (asked, _) = structure::<RegionInfo>(body)?;
        room(asked.argsz, size_of::<RegionInfo>())?;
        let region = self.region(asked.index)?;
        let mut body = region.info(asked.index);
        // Who has less room is told how much there is, and asks again.
        if usize::try_from(asked.argsz).is_ok_and(|room| room < body.len()) {
            body.truncate(size_of::<RegionInfo>());
            return Ok(Step::Reply(body, Vec::new()));
        }
        if region.mappable.is_empty() {
            return Ok(Step::Reply(body, Vec::new()));
        }
        let region = asked.index;
        let commit = Commit::Region { body };
        Ok(Step::Ask(Effect::RegionFd { region }, commit))
    }

    /// Parts of a region that are eventfds: as many as the client takes descriptors, in
    /// their order. The others are written by messages.
    fn doorbells(&self, body: &[u8]) -> Result<Step, Cause> {
        let (asked, _) = structure::<IoFds>(body)?;
        let head = size_of::<IoFds>();
        room(asked.argsz, head)?;
        let (flags, index) = (asked.flags, asked.index);
        if flags != 0 {
            return Err(Cause::Flags { flags });
        }
        if asked.count != 0 {
            let (count, got) = (asked.count.into(), 0);
            return Err(Cause::Count { count, got });
        }
        let takes = self.agreed.map_or(0, |agreed| agreed.capabilities.msg_fds);
        let takes = usize::try_from(takes).unwrap_or(FDS_MAX).min(FDS_MAX);
        let parts = &self.region(index)?.doorbells;
        let parts = &parts[..parts.len().min(takes)];
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let len = head + parts.len() * size_of::<IoEvent>();
        let answer = IoFds {
            argsz: number(len),
            flags,
            index,
            count: number(parts.len()),
        };
        let mut body = answer.as_bytes().to_vec();
        let fits = usize::try_from(asked.argsz).is_ok_and(|room| room >= len);
        if parts.is_empty() || !fits {
            return Ok(Step::Reply(body, Vec::new()));
        }
        for (fd_index, part) in (0..).zip(parts) {
            let event = IoEvent {
                offset: part.start,
                size: part.end - part.start,
                fd_index,
                kind: IO_EVENT,
                flags: 0,
                shadow_fd_index: 0,
                shadow_offset: 0,
                value: 0,
            };
            body.extend_from_slice(event.as_bytes());
        }
        let (region, count) = (index, parts.len());
        let commit = Commit::Doorbells { body, count };
        Ok(Step::Ask(Effect::DoorbellFds { region, count }, commit))
    }

    fn irq_info(&self, body: &[u8]) -> Result<Step, Cause> {
        let (asked, _) = structure::<IrqInfo>(body)?;
        let argsz = room(asked.argsz, size_of::<IrqInfo>())?;
        let index = asked.index;
        let known = usize::try_from(index)
            .ok()
            .and_then(|index| self.offer.irqs.get(index));
        let kinds = self.offer.irqs.len();
        let known = known.ok_or(crate::irq::IrqError::Kind { index, kinds })?;
        let info = IrqInfo {
            argsz,
            flags: known.flags,
            index,
            count: known.count,
        };
        Ok(Step::Reply(info.as_bytes().to_vec(), Vec::new()))
    }

    fn set_irqs(&self, body: &[u8], fds: usize) -> Result<Step, Cause> {
        let (set, data) = structure::<IrqSet>(body)?;
        room(set.argsz, size_of::<IrqSet>())?;
        let set = SetIrqs::new(&set, data, fds, &self.offer.irqs)?;
        Ok(Step::Ask(Effect::SetIrqs(set), Commit::Reply(Vec::new())))
    }

    /// Whether these bytes of a region can be had.
    fn check(&self, access: &Access, write: bool, max: u64) -> Result<(), Cause> {
        let Access {
            offset,
            region,
            count,
        } = *access;
        let known = self.region(region)?;
        let (count, size) = (u64::from(count), known.size);
        if count > max {
            return Err(Cause::Transfer { count, max });
        }
        let end = offset.checked_add(count);
        if count == 0 || end.is_none_or(|end| end > size) {
            return Err(Cause::RegionRange {
                region,
                offset,
                count,
                size,
            });
        }
        match if write {
            known.writable
        } else {
            known.readable
        } {
            true => Ok(()),
            false => Err(Cause::RegionAccess { region, write }),
        }
    }

    fn read(&self, body: &[u8]) -> Result<Step, Cause> {
        let (access, _) = structure::<Access>(body)?;
        let takes = self.agreed.map(|agreed| agreed.capabilities.data_xfer_size);
        let max = takes.unwrap_or(0).min(DATA_MAX as u64);
        self.check(&access, false, max)?;
        let Access {
            offset,
            region,
            count,
        } = access;
        let effect = Effect::Read {
            region,
            offset,
            count,
        };
        Ok(Step::Ask(effect, Commit::Read { access }))
    }

    fn write(&self, mut body: Vec<u8>) -> Result<Step, Cause> {
        let (access, data) = structure::<Access>(&body)?;
        if u64::from(access.count) != data.len() as u64 {
            let (count, got) = (access.count.into(), data.len());
            return Err(Cause::Count { count, got });
        }
        self.check(&access, true, DATA_MAX as u64)?;
        body.drain(..size_of::<Access>());
        let effect = Effect::Write {
            region: access.region,
            offset: access.offset,
            bytes: body,
        };
        Ok(Step::Ask(effect, Commit::Reply(access.as_bytes().to_vec())))
    }

    fn write_multi(&self, body: &[u8]) -> Result<Step, Cause> {
        let (count, rest) = structure::<u64>(body)?;
        let got = rest.len();
        let want = count.checked_mul(size_of::<MultiWrite>() as u64);
        if want != Some(got as u64) {
            return Err(Cause::Count { count, got });
        }
        // All are checked before the first one is done.
        let mut left = VecDeque::new();
        for bytes in rest.chunks_exact(size_of::<MultiWrite>()) {
            let (one, _) = structure::<MultiWrite>(bytes)?;
            self.check(&one.access, true, one.data.len() as u64)?;
            let len = usize::try_from(one.access.count).unwrap_or(0);
            left.push_back(Write {
                region: one.access.region,
                offset: one.access.offset,
                bytes: one.data[..len].to_vec(),
            });
        }
        match left.pop_front() {
            Some(first) => Ok(Step::Ask(first.into(), Commit::Writes { left, count })),
            None => Ok(Step::Reply(0u64.as_bytes().to_vec(), Vec::new())),
        }
    }
}

/// What is asked of a plane. It can be asked whether planes come by descriptor, which
/// they do, or within a region, which they do not.
fn query_plane(body: &[u8]) -> Result<Step, Cause> {
    let (query, _) = structure::<PlaneInfo>(body)?;
    let (argsz, flags) = (query.argsz, query.flags);
    let want = PlaneInfo::MIN;
    if argsz < want {
        return Err(Cause::Argsz { argsz, want });
    }
    match flags & !PLANE_PROBE {
        PLANE_DMABUF if flags & PLANE_PROBE != 0 => {
            let mut body = query;
            body.argsz = PlaneInfo::BYTES;
            return Ok(Step::Reply(body.as_bytes().to_vec(), Vec::new()));
        }
        PLANE_DMABUF => {}
        PLANE_REGION => return Err(Cause::Unsupported),
        _ => return Err(Cause::Flags { flags }),
    }
    let kind = query.plane_type;
    if kind >= PLANE_TYPES {
        return Err(Cause::PlaneType { kind });
    }
    let commit = Commit::Plane { query };
    Ok(Step::Ask(Effect::QueryPlane { kind }, commit))
}

/// The reply to what is asked of a plane. Of one that is refused it is an error, unless there is
/// room for words.
fn plane(query: &PlaneInfo, state: PlaneState) -> Result<Step, Cause> {
    let nothing = PlaneInfo::new_zeroed();
    let (shown, flag, why) = match state {
        PlaneState::Off => (nothing, 0, String::new()),
        PlaneState::Shown(shown) => (shown, 0, String::new()),
        PlaneState::Refused(why) => (nothing, PLANE_REFUSED, why),
    };
    let room = query.argsz.saturating_sub(PlaneInfo::BYTES);
    let room = usize::try_from(room).unwrap_or(PLANE_WORDS_MAX);
    let words = &why.as_bytes()[..why.len().min(room).min(PLANE_WORDS_MAX)];
    if flag != 0 && words.is_empty() {
        return Err(Cause::Unsupported);
    }
    let head = PlaneInfo {
        argsz: PlaneInfo::BYTES + u32::try_from(words.len()).unwrap_or(0),
        flags: query.flags | flag,
        plane_type: query.plane_type,
        ..shown
    };
    Ok(Step::Reply([head.as_bytes(), words].concat(), Vec::new()))
}

/// A structure of a body whose length the table has checked.
fn structure<T: zerocopy::FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Cause> {
    let (got, min) = (body.len(), size_of::<T>());
    head(body).ok_or(Cause::BodySize { got, min, max: min })
}

/// Whether there is room for a reply of so many bytes, which this returns.
fn room(argsz: u32, want: usize) -> Result<u32, Cause> {
    let want = u32::try_from(want).unwrap_or(u32::MAX);
    match argsz >= want {
        true => Ok(want),
        false => Err(Cause::Argsz { argsz, want }),
    }
}

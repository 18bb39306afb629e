//! The GPU device (virtio 1.3 5.7), 2D: resources, screens and pointers, without I/O.
//!
//! A driver makes resources, gives them memory, has it copied to ours, and says which part
//! of which resource a screen shows. What is shown is told to `each` as [`Event`]s. Who
//! keeps the memory of a resource is `M`; it is made by whoever runs the device. Lists of
//! guest memory take memory of ours too: each is charged, and has an `S` until it is gone.
//!
//! Whatever a command says is checked before anything changes, and what is wrong with it is
//! in its answer, as a [`Code`].

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{AddressSpace, Gpa, Region};
use linkspan_virtio::Chain;
use zerocopy::FromBytes;

mod config;
mod format;
mod resource;
mod wire;

pub use config::{CONFIG_LEN, Config, EVENT_DISPLAY};
pub use format::Format;
pub use resource::ENTRIES_MAX;
pub use wire::{ANSWER_MAX, Answer, Code, HEADER_LEN};

use resource::Resource;
use wire::Header;

/// The most screens (`VIRTIO_GPU_MAX_SCANOUTS`).
pub const HEADS_MAX: usize = 16;
/// The most bytes of an EDID.
pub const EDID_MAX: usize = 1024;
/// The longest side of a resource, in pixels.
pub const SIDE_MAX: u32 = 16384;
/// The largest resource, in pixels: 8K.
pub const PIXELS_MAX: u32 = 7680 * 4320;
/// The most resources at a time.
pub const RESOURCES_MAX: usize = 512;
/// `VIRTIO_GPU_F_EDID`.
pub const VIRTIO_GPU_F_EDID: u64 = 1 << 1;

/// What a driver asks, as it was read: nothing of it was checked but its length.
#[derive(Debug)]
pub struct Command {
    header: Header,
    body: Body,
}

#[derive(Debug)]
enum Body {
    DisplayInfo,
    Edid {
        head: u32,
    },
    Create {
        id: u32,
        format: u32,
        size: (u32, u32),
    },
    Unref {
        id: u32,
    },
    Scanout {
        id: u32,
        head: u32,
        part: Part,
    },
    Flush {
        id: u32,
        part: Part,
    },
    Transfer {
        id: u32,
        part: Part,
        offset: u64,
    },
    Attach {
        id: u32,
        entries: Vec<(u64, u32)>,
    },
    Detach {
        id: u32,
    },
    Cursor {
        head: u32,
        place: (u32, u32),
        /// The resource and where it points; `None`: it moves only.
        shape: Option<(u32, (u32, u32))>,
    },
    Bad(Code),
}

/// A part of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The leftmost pixel.
    pub x: u32,
    /// The topmost pixel.
    pub y: u32,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl From<wire::Rect> for Part {
    fn from(rect: wire::Rect) -> Self {
        Self {
            x: rect.x.get(),
            y: rect.y.get(),
            width: rect.width.get(),
            height: rect.height.get(),
        }
    }
}

/// A picture: a part of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture<M> {
    /// Who keeps its memory.
    pub memory: M,
    /// Its format.
    pub format: Format,
    /// Bytes from a line to the next one.
    pub stride: u32,
    /// The part of the resource.
    pub part: Part,
}

/// What happens on the screens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<M> {
    /// A screen shows this from now on, or nothing.
    Scanout {
        /// Which.
        head: u8,
        /// What.
        picture: Option<Picture<M>>,
    },
    /// A part of a screen is another one.
    Flush {
        /// Which.
        head: u8,
        /// Where, on the screen.
        part: Part,
    },
    /// The pointer has this shape from now on, or is gone.
    Cursor {
        /// On which screen.
        head: u8,
        /// Where, on the screen; with signs.
        place: (u32, u32),
        /// What it shows and the pixel that points.
        shape: Option<(Picture<M>, (u32, u32))>,
    },
    /// The pointer is somewhere else.
    Moved {
        /// On which screen.
        head: u8,
        /// Where.
        place: (u32, u32),
    },
    /// A resource is gone: nobody is to get its memory any more.
    Gone {
        /// Who kept it.
        memory: M,
    },
}

/// What is known to whoever runs the device, and asked of him.
#[derive(Debug)]
pub enum Outcome {
    /// The answer.
    Answer(Answer),
    /// The sizes of the screens are to be asked for.
    DisplayInfo,
    /// What this screen says of itself is to be asked for.
    Edid {
        /// Which.
        head: u8,
    },
}

impl Command {
    /// Reads a command from a chain; `None` when it has not even a header. What is read is
    /// cut off.
    pub fn read(chain: &mut Chain, table: &linkspan_mem::RegionTable) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        chain.read_front(table, &mut bytes).ok()?;
        let header = Header::read_from_bytes(&bytes).ok()?;
        let body = Body::read(header.kind.get(), chain, table).unwrap_or_else(Body::Bad);
        Some(Self { header, body })
    }

    /// Writes an answer to this command; how many bytes it has.
    pub fn answer(&self, answer: &Answer, target: &mut [u8; ANSWER_MAX]) -> usize {
        answer.write(&self.header, target)
    }
}

impl Body {
    fn read(kind: u32, chain: &mut Chain, table: &linkspan_mem::RegionTable) -> Result<Self, Code> {
        Ok(match kind {
            wire::GET_DISPLAY_INFO => Self::DisplayInfo,
            wire::GET_EDID => {
                let asked: wire::Named = take(chain, table)?;
                let head = asked.resource.get();
                Self::Edid { head }
            }
            wire::RESOURCE_CREATE_2D => {
                let wire: wire::Create2d = take(chain, table)?;
                Self::Create {
                    id: wire.resource.get(),
                    format: wire.format.get(),
                    size: (wire.width.get(), wire.height.get()),
                }
            }
            wire::RESOURCE_UNREF => {
                let wire: wire::Named = take(chain, table)?;
                let id = wire.resource.get();
                Self::Unref { id }
            }
            wire::SET_SCANOUT => {
                let wire: wire::SetScanout = take(chain, table)?;
                Self::Scanout {
                    id: wire.resource.get(),
                    head: wire.scanout.get(),
                    part: wire.rect.into(),
                }
            }
            wire::RESOURCE_FLUSH => {
                let wire: wire::Flush = take(chain, table)?;
                Self::Flush {
                    id: wire.resource.get(),
                    part: wire.rect.into(),
                }
            }
            wire::TRANSFER_TO_HOST_2D => {
                let wire: wire::Transfer = take(chain, table)?;
                Self::Transfer {
                    id: wire.resource.get(),
                    part: wire.rect.into(),
                    offset: wire.offset.get(),
                }
            }
            wire::RESOURCE_ATTACH_BACKING => {
                let wire: wire::AttachBacking = take(chain, table)?;
                let entries = entries(wire.entries.get(), chain, table)?;
                let id = wire.resource.get();
                Self::Attach { id, entries }
            }
            wire::RESOURCE_DETACH_BACKING => {
                let wire: wire::Named = take(chain, table)?;
                let id = wire.resource.get();
                Self::Detach { id }
            }
            wire::UPDATE_CURSOR | wire::MOVE_CURSOR => {
                let wire: wire::UpdateCursor = take(chain, table)?;
                let shape = (wire.resource.get(), (wire.hot_x.get(), wire.hot_y.get()));
                Self::Cursor {
                    head: wire.scanout.get(),
                    place: (wire.x.get(), wire.y.get()),
                    shape: (kind == wire::UPDATE_CURSOR).then_some(shape),
                }
            }
            _ => return Err(Code::Unspecified),
        })
    }
}

fn take<T: FromBytes>(chain: &mut Chain, table: &linkspan_mem::RegionTable) -> Result<T, Code> {
    let mut bytes = [0; 64];
    let bytes = &mut bytes[..size_of::<T>()];
    chain
        .read_front(table, bytes)
        .map_err(|_| Code::Parameter)?;
    T::read_from_bytes(bytes).map_err(|_| Code::Parameter)
}

fn entries(
    count: u32,
    chain: &mut Chain,
    table: &linkspan_mem::RegionTable,
) -> Result<Vec<(u64, u32)>, Code> {
    const ENTRY: usize = size_of::<wire::MemEntry>();
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    // A driver that lies about the count gets no memory for it.
    if count > ENTRIES_MAX || chain.readable_len() < (count * ENTRY) as u64 {
        return Err(Code::Parameter);
    }
    let mut entries = fault::try_with_capacity(count).map_err(|_| Code::OutOfMemory)?;
    for _ in 0..count {
        let wire: wire::MemEntry = take(chain, table)?;
        entries.push((wire.address.get(), wire.len.get()));
    }
    Ok(entries)
}

/// What a screen shows.
#[derive(Clone, Copy, Debug)]
struct Scanout {
    resource: u32,
    part: Part,
}

/// The state of a GPU.
#[derive(Debug)]
pub struct Gpu<M, S> {
    heads: usize,
    resources: BTreeMap<u32, Resource<M, S>>,
    scanouts: [Option<Scanout>; HEADS_MAX],
}

impl<M: Clone, S> Gpu<M, S> {
    /// A GPU with so many screens, 1 to [`HEADS_MAX`].
    #[must_use]
    pub fn new(heads: usize) -> Self {
        Self {
            heads: heads.clamp(1, HEADS_MAX),
            resources: BTreeMap::new(),
            scanouts: [None; HEADS_MAX],
        }
    }

    /// All is forgotten.
    pub fn reset(&mut self) {
        self.resources.clear();
        self.scanouts = [None; HEADS_MAX];
    }

    /// How many resources there are.
    #[must_use]
    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    /// Carries out a command. `make` makes memory of so many bytes, and `charge` counts as
    /// many that are taken of ours; `each` is told what happens on the screens. How many
    /// bytes were copied comes with the outcome.
    pub fn execute(
        &mut self,
        command: &mut Command,
        guest: &AddressSpace<Gpa>,
        make: impl FnOnce(u64) -> Result<(Region, M), Code>,
        charge: impl FnOnce(u64) -> Result<S, Code>,
        each: &mut dyn FnMut(Event<M>),
    ) -> (Outcome, u64) {
        let mut copied = 0;
        let done = match core::mem::replace(&mut command.body, Body::Bad(Code::Unspecified)) {
            Body::DisplayInfo => return (Outcome::DisplayInfo, 0),
            Body::Edid { head } => match self.head(head) {
                Ok(head) => return (Outcome::Edid { head }, 0),
                Err(code) => Err(code),
            },
            Body::Create { id, format, size } => self.create(id, format, size, make),
            Body::Unref { id } => self.unref(id, each),
            Body::Scanout { id, head, part } => self.scanout(id, head, part, each),
            Body::Flush { id, part } => self.flush(id, part, each),
            Body::Transfer { id, part, offset } => {
                let moved = self.transfer(id, part, offset, guest);
                moved.map(|bytes| copied = bytes)
            }
            Body::Attach { id, entries } => {
                let resource = self.resources.get_mut(&id).ok_or(Code::ResourceId);
                resource.and_then(|resource| resource.attach(entries, guest, charge))
            }
            Body::Detach { id } => {
                let resource = self.resources.get_mut(&id).ok_or(Code::ResourceId);
                resource.and_then(Resource::detach)
            }
            Body::Cursor { head, place, shape } => self.cursor(head, place, shape, each),
            Body::Bad(code) => Err(code),
        };
        let answer = match done {
            Ok(()) => Answer::Done,
            Err(code) => Answer::Failed(code),
        };
        (Outcome::Answer(answer), copied)
    }

    fn head(&self, head: u32) -> Result<u8, Code> {
        let known = u8::try_from(head).ok();
        let known = known.filter(|head| usize::from(*head) < self.heads);
        known.ok_or(Code::ScanoutId)
    }

    fn resource(&self, id: u32) -> Result<&Resource<M, S>, Code> {
        self.resources.get(&id).ok_or(Code::ResourceId)
    }

    fn create(
        &mut self,
        id: u32,
        format: u32,
        size: (u32, u32),
        make: impl FnOnce(u64) -> Result<(Region, M), Code>,
    ) -> Result<(), Code> {
        let (width, height) = size;
        if id == 0 || self.resources.contains_key(&id) {
            return Err(Code::ResourceId);
        }
        let format = Format::find(format).ok_or(Code::Parameter)?;
        let sized = (1..=SIDE_MAX).contains(&width) && (1..=SIDE_MAX).contains(&height);
        if !sized || width * height > PIXELS_MAX {
            return Err(Code::Parameter);
        }
        if self.resources.len() >= RESOURCES_MAX {
            return Err(Code::OutOfMemory);
        }
        let memory = make(u64::from(width) * u64::from(height) * 4)?;
        let resource = Resource::new(size, format, memory);
        self.resources.insert(id, resource);
        Ok(())
    }

    fn unref(&mut self, id: u32, each: &mut dyn FnMut(Event<M>)) -> Result<(), Code> {
        let resource = self.resources.remove(&id).ok_or(Code::ResourceId)?;
        for (head, scanout) in (0..).zip(&mut self.scanouts) {
            if scanout.is_some_and(|scanout| scanout.resource == id) {
                *scanout = None;
                let picture = None;
                each(Event::Scanout { head, picture });
            }
        }
        let memory = resource.memory;
        each(Event::Gone { memory });
        Ok(())
    }

    fn scanout(
        &mut self,
        id: u32,
        head: u32,
        part: Part,
        each: &mut dyn FnMut(Event<M>),
    ) -> Result<(), Code> {
        let head = self.head(head)?;
        let (scanout, picture) = if id == 0 {
            (None, None)
        } else {
            let resource = self.resource(id)?;
            if !resource.holds(part.x, part.y, part.width, part.height) {
                return Err(Code::Parameter);
            }
            let resource = resource.picture(part);
            let scanout = Scanout { resource: id, part };
            (Some(scanout), Some(resource))
        };
        self.scanouts[usize::from(head)] = scanout;
        each(Event::Scanout { head, picture });
        Ok(())
    }

    fn flush(&self, id: u32, part: Part, each: &mut dyn FnMut(Event<M>)) -> Result<(), Code> {
        let resource = self.resource(id)?;
        if !resource.holds(part.x, part.y, part.width, part.height) {
            return Err(Code::Parameter);
        }
        for (head, scanout) in (0..).zip(&self.scanouts) {
            let Some(scanout) = scanout.filter(|scanout| scanout.resource == id) else {
                continue;
            };
            if let Some(part) = part.on(scanout.part) {
                each(Event::Flush { head, part });
            }
        }
        Ok(())
    }

    fn transfer(
        &self,
        id: u32,
        part: Part,
        offset: u64,
        guest: &AddressSpace<Gpa>,
    ) -> Result<u64, Code> {
        let resource = self.resource(id)?;
        let Part {
            x,
            y,
            width,
            height,
        } = part;
        if !resource.holds(x, y, width, height) {
            return Err(Code::Parameter);
        }
        resource.transfer((x, y, width, height), offset, guest)
    }

    fn cursor(
        &self,
        head: u32,
        place: (u32, u32),
        shape: Option<(u32, (u32, u32))>,
        each: &mut dyn FnMut(Event<M>),
    ) -> Result<(), Code> {
        let head = self.head(head)?;
        let Some((id, hot)) = shape else {
            each(Event::Moved { head, place });
            return Ok(());
        };
        let shape = match id {
            0 => None,
            id => {
                let resource = self.resource(id)?;
                let whole = Part {
                    x: 0,
                    y: 0,
                    width: resource.width,
                    height: resource.height,
                };
                Some((resource.picture(whole), hot))
            }
        };
        each(Event::Cursor { head, place, shape });
        Ok(())
    }
}

impl<M: Clone, S> Resource<M, S> {
    fn picture(&self, part: Part) -> Picture<M> {
        Picture {
            memory: self.memory.clone(),
            format: self.format,
            stride: self.stride(),
            part,
        }
    }
}

impl Part {
    /// What both have, as a part of `screen`. Both are parts of a resource, whose sides are
    /// short.
    fn on(self, screen: Self) -> Option<Self> {
        let x = self.x.max(screen.x);
        let y = self.y.max(screen.y);
        let right = (self.x + self.width).min(screen.x + screen.width);
        let bottom = (self.y + self.height).min(screen.y + screen.height);
        (right > x && bottom > y).then(|| Self {
            x: x - screen.x,
            y: y - screen.y,
            width: right - x,
            height: bottom - y,
        })
    }
}

impl From<Injected> for Code {
    fn from(_: Injected) -> Self {
        Self::OutOfMemory
    }
}

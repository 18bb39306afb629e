//! A display over vfio-user, whose client is the viewer itself: the private messages for
//! planes, and the region that tells a screen.

use std::path::Path;

use linkspan_display::edid::{self, Mode};
use linkspan_display::region::{
    Capability, EDID_HEAD, EDID_LINK, EDID_SIZE, EdidRegion, LINK_DOWN, LINK_UP, SUBTYPE_EDID,
    TYPE_GFX, capabilities,
};
use linkspan_display::{
    FourCc, HotSpot, Kind, Loss, Modifier, Plane, Position, Reason, RefusedPlane, Surface,
};
use linkspan_engine::vfio_user::{Connection, ConnectionError};
use linkspan_sys::{PeerMemory, View, reaper};
use linkspan_vfio::Capabilities;
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::wire::{BUFFER_DMABUF, PLANE_DMABUF, PlaneBuffer, PlaneInfo, errno};

use super::socket::peer_dma_buf;
use super::source::{Memory, Shown, Source, SourceError};

/// Planes that are asked for, as `DRM_PLANE_TYPE_*`.
const KINDS: [(u32, Kind); 3] = [(1, Kind::Primary), (0, Kind::Sprite(1)), (2, Kind::Cursor)];
/// Of a plane that is on, by a device that has no words for it.
const NOT_SHOWN: &str = "the device does not show this plane and does not say why";
/// Ids whose memory is kept.
const KEPT_MAX: usize = 8;
/// The most room for what a region says of itself.
const ROOM_MAX: u32 = 64 << 10;
/// The most regions that are looked at.
const REGIONS_MAX: u32 = 64;

impl From<ConnectionError> for SourceError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::System { what, source } => Self::System { what, source },
            ConnectionError::Closed => Self::Lost(Loss::Ended),
            ConnectionError::Refused { .. } => Self::Unsupported(error.to_string()),
            error => Self::Broken(error.to_string()),
        }
    }
}

fn unexpected(what: &str) -> SourceError {
    SourceError::Broken(format!("another answer than that to {what}"))
}

/// A device over vfio-user.
#[derive(Debug)]
pub struct VfioUserSource {
    name: String,
    connection: Connection,
    /// The latest comes first.
    kept: Vec<(PlaneBuffer, Memory)>,
    refused: Vec<RefusedPlane>,
}

impl VfioUserSource {
    /// Connects to a device as its only client.
    ///
    /// # Errors
    /// Nobody listens there, or it shows no planes.
    pub fn connect(path: &Path) -> Result<Self, SourceError> {
        let wish = Capabilities {
            gfx_plane: true,
            ..Capabilities::default()
        };
        let connection = Connection::open(path, wish)?;
        if !connection.agreed().capabilities.gfx_plane {
            let text = "the device does not have the messages for planes";
            return Err(SourceError::Unsupported(text.into()));
        }
        Ok(Self {
            name: format!("vfio-user:{}", path.display()),
            connection,
            kept: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// The memory of an id, asked for once while it is kept.
    fn keep(&mut self, id: u32) -> Result<&(PlaneBuffer, Memory), SourceError> {
        match self.kept.iter().position(|(buffer, _)| buffer.id == id) {
            Some(at) => self.kept[..=at].rotate_right(1),
            None => {
                let kept = self.get(id)?;
                self.kept.truncate(KEPT_MAX - 1);
                self.kept.insert(0, kept);
            }
        }
        self.kept.first().ok_or(SourceError::Retired { id })
    }

    fn get(&mut self, id: u32) -> Result<(PlaneBuffer, Memory), SourceError> {
        let (answer, mut fds) = match self.connection.ask(&Ask::GetPlane { id }, &[]) {
            Err(ConnectionError::Refused { .. }) => return Err(SourceError::Retired { id }),
            result => result?,
        };
        let (Answer::Buffer(buffer), Some(fd)) = (answer, fds.pop()) else {
            fds.into_iter().for_each(reaper::dispose);
            return Err(unexpected("a plane's memory"));
        };
        let memory = match buffer.kind {
            BUFFER_DMABUF => peer_dma_buf(fd, buffer.len)?,
            _ => {
                let file = PeerMemory::check(fd)?;
                View::of_peer(&file, 0, buffer.len)?.into()
            }
        };
        Ok((buffer, memory))
    }

    fn plane(&mut self, kind: Kind, info: &PlaneInfo) -> Result<Shown, SourceError> {
        let (buffer, _) = self.keep(info.handle)?;
        let surface = Surface {
            format: FourCc(info.format),
            modifier: Modifier(info.modifier),
            width: info.width,
            height: info.height,
            stride: info.stride,
            offset: buffer.offset,
            x: 0,
            y: 0,
        };
        Ok(Shown {
            head: 0,
            kind,
            id: info.handle,
            plane: Plane {
                surface,
                size: buffer.len,
                position: Position::from_wire(info.x, info.y),
                hot_spot: HotSpot::from_wire(info.x_hot, info.y_hot, info.width, info.height),
            },
            content: 0,
        })
    }

    /// The region that tells a screen.
    fn edid_region(&mut self) -> Result<u32, SourceError> {
        let Answer::Info(info) = self.connection.ask(&Ask::Info, &[])?.0 else {
            return Err(unexpected("what the device is"));
        };
        let wanted = Capability::Type {
            kind: TYPE_GFX,
            subtype: SUBTYPE_EDID,
        };
        for index in 9..info.num_regions.min(REGIONS_MAX) {
            let room = ROOM_MAX;
            let (answer, fds) = self.connection.ask(&Ask::Region { index, room }, &[])?;
            fds.into_iter().for_each(reaper::dispose);
            let Answer::Region(info, bytes) = answer else {
                return Err(unexpected("what a region is"));
            };
            let all = capabilities(&bytes, info.cap_offset);
            if all.is_ok_and(|all| all.contains(&wanted)) {
                return Ok(index);
            }
        }
        let text = "the device has no region that tells a screen";
        Err(SourceError::Unsupported(text.into()))
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), SourceError> {
        let write = Ask::Write {
            region,
            offset,
            bytes,
        };
        self.connection.ask(&write, &[])?;
        Ok(())
    }
}

impl Source for VfioUserSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        let mut planes = Vec::new();
        self.refused.clear();
        for (number, kind) in KINDS {
            let flags = PLANE_DMABUF;
            let query = Ask::QueryPlane {
                flags,
                kind: number,
            };
            let answer = match self.connection.ask(&query, &[]) {
                Err(ConnectionError::Refused { errno }) if errno == errno::EOPNOTSUPP => {
                    let (head, why) = (0, Reason::new(NOT_SHOWN));
                    self.refused.push(RefusedPlane { head, kind, why });
                    continue;
                }
                answer => answer?.0,
            };
            let info = match answer {
                Answer::Plane(info) => info,
                Answer::PlaneRefused(words) => {
                    let broken = || unexpected("why a plane is not shown");
                    let (head, why) = (0, Reason::from_bytes(&words).ok_or_else(broken)?);
                    self.refused.push(RefusedPlane { head, kind, why });
                    continue;
                }
                _ => return Err(unexpected("what a plane shows")),
            };
            if info.format == 0 || info.width == 0 {
                continue;
            }
            match self.plane(kind, &info) {
                // It has just been replaced: the next look finds the other one.
                Err(SourceError::Retired { .. }) => {}
                plane => planes.push(plane?),
            }
        }
        match planes.is_empty() && self.refused.is_empty() {
            true => Err(SourceError::Lost(Loss::Off)),
            false => Ok(planes),
        }
    }

    fn refused(&self) -> &[RefusedPlane] {
        &self.refused
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        Ok(self.keep(shown.id)?.1.clone())
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        let told = |error: &dyn std::error::Error| SourceError::Unsupported(error.to_string());
        if head != 0 {
            return Err(SourceError::Unsupported("there is one screen".into()));
        }
        let mode = Mode::reduced(width, height, 60).map_err(|error| told(&error))?;
        let blob = edid::make(&mode, "Linkspan", 0);
        let region = self.edid_region()?;
        let mut words = [0; EDID_HEAD / 4];
        for (word, offset) in words.iter_mut().zip((0..).step_by(4)) {
            let count = 4;
            let read = Ask::Read {
                region,
                offset,
                count,
            };
            let Answer::Bytes(bytes) = self.connection.ask(&read, &[])?.0 else {
                return Err(unexpected("a word of the region"));
            };
            let bytes = bytes.first_chunk().copied().unwrap_or_default();
            *word = u32::from_ne_bytes(bytes);
        }
        let head = EdidRegion::from_words(words);
        let size = u32::try_from(blob.len()).unwrap_or(u32::MAX);
        head.check(size, width, height)
            .map_err(|error| told(&error))?;
        self.write(region, EDID_LINK, &LINK_DOWN.to_ne_bytes())?;
        let told = self
            .write(region, EDID_SIZE, &size.to_ne_bytes())
            .and_then(|()| self.write(region, head.offset.into(), &blob));
        // Whatever came of it, the screen is there again.
        let up = self.write(region, EDID_LINK, &LINK_UP.to_ne_bytes());
        told.and(up)
    }
}

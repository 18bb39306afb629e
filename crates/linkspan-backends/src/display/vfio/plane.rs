//! A plane that the kernel tells, and its memory: a region or a dma-buf.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use linkspan_display::{FourCc, HotSpot, Kind, Modifier, Plane, Position, Surface};
use linkspan_sys::View;
use linkspan_sys::dmabuf::DmaBuf;
use linkspan_sys::vfio::PlaneInfo;
use rustix::io::Errno;

use super::super::source::{Memory, Shown, SourceError};
use super::device::Device;
use super::error::failed;

/// Memory of an id that was asked for.
#[derive(Debug)]
pub(super) enum Kept {
    Mapped(Memory),
    /// It cannot be mapped. It is kept all the same, so that nobody asks again.
    Not {
        _fd: OwnedFd,
        why: String,
    },
}

/// What came of a query instead of a plane.
#[derive(Debug)]
pub(super) enum Query {
    Gone,
    /// The driver says nothing this time.
    Later(io::Error),
    /// The memory cannot be mapped.
    Unmapped(String),
    Source(SourceError),
}

impl From<io::Error> for Query {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NODEV) => Self::Gone,
            _ => Self::Later(error),
        }
    }
}

impl From<SourceError> for Query {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// What the kernel says of a plane.
pub(super) fn shown(kind: Kind, info: &PlaneInfo) -> Shown {
    let surface = Surface {
        format: FourCc(info.drm_format),
        modifier: Modifier(info.drm_format_mod),
        width: info.width,
        height: info.height,
        stride: info.stride,
        offset: 0,
        x: 0,
        y: 0,
    };
    let spot = HotSpot::from_wire(info.x_hot, info.y_hot, info.width, info.height);
    let plane = Plane {
        surface,
        size: info.size.into(),
        position: Position::from_wire(info.x_pos, info.y_pos),
        hot_spot: spot.filter(|_| kind == Kind::Cursor),
    };
    Shown {
        head: 0,
        kind,
        id: info.index_or_id,
        plane,
        content: 0,
    }
}

/// A region as memory. Its number may be above those that the device counts, and it is
/// mapped, never read by calls: drivers read the wrong bytes.
pub(super) fn region_memory(device: &Device, info: &PlaneInfo) -> Result<Kept, Query> {
    let region = device.region(info.index_or_id);
    let region = region.map_err(failed("VFIO_DEVICE_GET_REGION_INFO"))?;
    let (size, len) = (region.size, u64::from(info.size));
    if len > size {
        let index = region.index;
        return Err(broken(format!(
            "a picture of {len} bytes in region {index} of {size}"
        )));
    }
    if !region.maps(len) {
        let why = format!("region {} cannot be mapped", region.index);
        return Err(SourceError::Unsupported(why).into());
    }
    let view = View::map(device.fd(), region.offset, len).map_err(SourceError::from)?;
    Ok(Kept::Mapped(view.into()))
}

/// A dma-buf as memory.
pub(super) fn dma_buf_memory(device: &Device, info: &PlaneInfo) -> Result<Kept, Query> {
    // An id that is not shown any more is no failure: the next query names another.
    let fd = device.dma_buf(info.index_or_id)?;
    let len = u64::from(info.size);
    let size = DmaBuf::size(&fd).map_err(failed("the size of the dma-buf"));
    match size {
        Ok(size) if len > size => {
            let why = format!("a picture of {len} bytes in a dma-buf of {size}");
            return Ok(Kept::Not { _fd: fd, why });
        }
        Ok(_) => {}
        Err(error) => {
            let why = error.to_string();
            return Ok(Kept::Not { _fd: fd, why });
        }
    }
    Ok(match DmaBuf::map(fd, len) {
        Ok(buffer) => Kept::Mapped(Memory::DmaBuf(Arc::new(buffer))),
        Err((error, fd)) => {
            let why = format!("the driver's dma-bufs cannot be mapped: {}", chain(&error));
            Kept::Not { _fd: fd, why }
        }
    })
}

/// An error with its reasons.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

fn broken(why: String) -> Query {
    Query::Source(SourceError::Broken(why))
}

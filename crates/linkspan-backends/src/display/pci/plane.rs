//! The two private messages that mirror the kernel's calls (docs/vfio-user.md).

use std::io;

use linkspan_display::{ExportError, Kind};
use linkspan_engine::vfio_user::{PlaneFd, Refused};
use linkspan_vfio::server::PlaneState;
use linkspan_vfio::wire::{BUFFER_DMABUF, BUFFER_MEMORY, PlaneBuffer, PlaneInfo, errno};

use super::super::hub::Hub;

/// `DRM_PLANE_TYPE_*`; an overlay is the lowest sprite.
const OVERLAY: u32 = 0;
const PRIMARY: u32 = 1;
const CURSOR: u32 = 2;

/// What a plane of the first screen shows.
pub(super) fn query(hub: &Hub, kind: u32) -> Result<PlaneState, Refused> {
    let wanted = match kind {
        PRIMARY => Kind::Primary,
        CURSOR => Kind::Cursor,
        OVERLAY => Kind::Sprite(1),
        _ => return Err(Refused::invalid("a plane of no type")),
    };
    let now = hub.now();
    let first = (0, wanted);
    let mut refused = now.refused.iter();
    if let Some(plane) = refused.find(|it| (it.head, it.kind) == first) {
        return Ok(PlaneState::Refused(plane.why.as_str().into()));
    }
    let told = now
        .planes
        .into_iter()
        .find(|told| (told.head, told.kind) == first);
    let info = told.map(|told| {
        let surface = &told.plane.surface;
        let size = u64::from(surface.stride) * u64::from(surface.height);
        let hot = told.plane.hot_spot;
        PlaneInfo {
            argsz: PlaneInfo::BYTES,
            flags: 0,
            plane_type: kind,
            format: surface.format.0,
            modifier: surface.modifier.0,
            width: surface.width,
            height: surface.height,
            stride: surface.stride,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            x: told.plane.position.x.cast_unsigned(),
            y: told.plane.position.y.cast_unsigned(),
            x_hot: hot.map_or(u32::MAX, |hot| hot.x),
            y_hot: hot.map_or(u32::MAX, |hot| hot.y),
            handle: told.id,
            reserved: 0,
        }
    });
    Ok(info.map_or(PlaneState::Off, PlaneState::Shown))
}

/// The memory of an id: a dma-buf where the machine makes one, else its file.
pub(super) fn get(hub: &Hub, id: u32) -> Result<PlaneFd, Refused> {
    let made = hub.get_at(id, |backing, offset| {
        let buffer = |kind| PlaneBuffer {
            id,
            kind,
            offset,
            len: backing.len(),
        };
        // Nothing can fail after it was made but the connection itself.
        match backing.to_dma_buf() {
            Ok(fd) => Ok((buffer(BUFFER_DMABUF), fd)),
            Err(_) => Ok::<_, io::Error>((buffer(BUFFER_MEMORY), backing.to_look_at()?)),
        }
    });
    match made {
        Ok((buffer, fd)) => Ok(PlaneFd { buffer, fd }),
        Err(ExportError::Make(_)) => Err(Refused {
            errno: errno::ENOMEM,
            what: "no descriptor for a plane",
        }),
        Err(_) => Err(Refused {
            errno: errno::ENOENT,
            what: "a plane that is not shown",
        }),
    }
}

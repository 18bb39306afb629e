//! The two private messages.

use linkspan_backends::display::{Model, Screen, VfioUserSource};
use linkspan_engine::vfio_user::ConnectionError;
use linkspan_sys::{PeerMemory, View};
use linkspan_testkit::logs;
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::wire::{
    BUFFER_DMABUF, BUFFER_MEMORY, PLANE_DMABUF, PLANE_PROBE, PLANE_REGION, PlaneInfo, errno,
};

use crate::rig::{Guest, Rig, draw, pixel, until};

fn query(guest: &mut Guest, kind: u32) -> PlaneInfo {
    let flags = PLANE_DMABUF;
    match guest
        .0
        .ask(&Ask::QueryPlane { flags, kind }, &[])
        .unwrap()
        .0
    {
        Answer::Plane(info) => info,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(guest: &mut Guest, ask: &Ask<'_>, number: u32) {
    match guest.0.ask(ask, &[]) {
        Err(ConnectionError::Refused { errno }) => assert_eq!(errno, number),
        other => panic!("{other:?}"),
    }
}

#[test]
fn planes_are_asked_as_of_the_kernel() {
    let rig = Rig::new(Model::Bochs);
    let mut guest = rig.guest();
    let probe = |flags| Ask::QueryPlane { flags, kind: 1 };
    assert!(guest.0.ask(&probe(PLANE_PROBE | PLANE_DMABUF), &[]).is_ok());
    refused(
        &mut guest,
        &probe(PLANE_PROBE | PLANE_REGION),
        errno::EOPNOTSUPP,
    );
    refused(&mut guest, &probe(PLANE_PROBE), errno::EINVAL);
    refused(&mut guest, &probe(0), errno::EINVAL);
    // A screen that is off is no error: format, size, width and height are zero.
    for kind in 0..3 {
        let off = query(&mut guest, kind);
        assert_eq!((off.format, off.size, off.width, off.height), (0, 0, 0, 0));
    }
    refused(
        &mut guest,
        &Ask::QueryPlane {
            flags: PLANE_DMABUF,
            kind: 3,
        },
        errno::EINVAL,
    );
    let memory = guest.map(0);
    guest.mode(320, 200);
    let plane = query(&mut guest, 1);
    assert_eq!(
        (plane.argsz, plane.flags, plane.plane_type),
        (64, PLANE_DMABUF, 1)
    );
    assert_eq!(&plane.format.to_le_bytes(), b"XR24");
    assert_eq!(
        (plane.width, plane.height, plane.stride, plane.size),
        (320, 200, 1280, 256_000)
    );
    assert_eq!((plane.x_hot, plane.y_hot), (u32::MAX, u32::MAX));
    assert_eq!(query(&mut guest, 2).format, 0);
    // The same picture has the same id; another one has another; and it comes back.
    assert_eq!(query(&mut guest, 1).handle, plane.handle);
    guest.dispi(&[(9, 100)]);
    let flipped = query(&mut guest, 1);
    assert_ne!(flipped.handle, plane.handle);
    guest.dispi(&[(9, 0)]);
    assert_eq!(query(&mut guest, 1).handle, plane.handle);
    // Where the plane begins is said with its memory: an offset need not be a page's.
    draw(&memory, 100 * 1280, 0x0012_3456);
    for _ in 0..3 {
        let id = flipped.handle;
        let (answer, fds) = guest.0.ask(&Ask::GetPlane { id }, &[]).unwrap();
        let Answer::Buffer(buffer) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(
            (buffer.id, buffer.offset, buffer.len),
            (id, 128_000, crate::rig::MEMORY)
        );
        let fd = fds.into_iter().next().unwrap();
        let mut bytes = [0; 4];
        if buffer.kind == BUFFER_MEMORY {
            // It can be looked at, and not changed.
            assert!(rustix::io::pwrite(&fd, &[1], 0).is_err());
            let file = PeerMemory::check(fd).unwrap();
            assert!(file.map(0, 4096, None).is_err());
            let view = View::of_peer(&file, 0, buffer.len).unwrap();
            view.read(buffer.offset, &mut bytes).unwrap();
        } else {
            assert_eq!(buffer.kind, BUFFER_DMABUF);
            let buffer = linkspan_sys::dmabuf::DmaBuf::map(fd, buffer.len).unwrap();
            buffer.reading().unwrap().read(128_000, &mut bytes).unwrap();
        }
        assert_eq!(u32::from_le_bytes(bytes), 0x12_3456);
    }
    for id in [0, 999, u32::MAX] {
        refused(&mut guest, &Ask::GetPlane { id }, errno::ENOENT);
    }
    guest.0.ask(&Ask::Reset, &[]).unwrap();
    refused(
        &mut guest,
        &Ask::GetPlane { id: plane.handle },
        errno::ENOENT,
    );
}

/// A viewer can ask for them all day.
#[test]
fn what_no_plane_has_is_an_error_without_a_line_in_the_log() {
    logs::capture();
    let rig = Rig::new(Model::Bochs);
    let mut guest = rig.guest();
    for (flags, kind, number) in [
        (PLANE_DMABUF, 3, errno::EINVAL),
        (PLANE_DMABUF | 0x80, 1, errno::EINVAL),
        (0, 1, errno::EINVAL),
        (PLANE_PROBE | PLANE_REGION, 1, errno::EOPNOTSUPP),
        (PLANE_REGION, 1, errno::EOPNOTSUPP),
    ] {
        refused(&mut guest, &Ask::QueryPlane { flags, kind }, number);
    }
    refused(&mut guest, &Ask::GetPlane { id: 999 }, errno::ENOENT);
    logs::expect_line(&["DEBUG", "LINKSPAN_QUERY_GFX_PLANE", "a plane of type 3"]);
    assert_eq!(logs::lines(&["WARN", "GFX"]), Vec::<String>::new());
    // Nor do they hide what is one.
    let (index, room) = (99, 64);
    refused(&mut guest, &Ask::Region { index, room }, errno::EINVAL);
    logs::expect_line(&["WARN", "VFIO_USER_DEVICE_GET_REGION_INFO", "region 99"]);
}

/// The whole seam over the private messages: a viewer that is the device's client.
#[test]
fn a_viewer_may_be_the_client() {
    let rig = Rig::new(Model::Bochs);
    let mut guest = rig.guest();
    let memory = guest.map(0);
    guest.mode(320, 200);
    draw(&memory, 4, 0x00AB_CDEF);
    drop(guest);
    let source = VfioUserSource::connect(&rig.path("vga")).unwrap();
    let mut screen = Screen::new(Box::new(source), 0).unwrap();
    until(&mut screen, "the picture", |screen| {
        pixel(screen, 1, 0) == Some(0xAB_CDEF)
    });
    draw(&memory, 8, 0x0001_0203);
    screen.look().unwrap();
    assert_eq!(pixel(&screen, 2, 0), Some(0x01_0203));
    screen.source_mut().resize(0, 1024, 768).unwrap();
    assert!(screen.source_mut().resize(0, 5000, 768).is_err());
    assert!(screen.source_mut().resize(1, 640, 480).is_err());
    drop(screen);
    let mut guest = rig.guest();
    let edid = linkspan_display::edid::read(&guest.read(2, 0, 128)).unwrap();
    assert_eq!((edid.mode.width, edid.mode.height), (1024, 768));
}

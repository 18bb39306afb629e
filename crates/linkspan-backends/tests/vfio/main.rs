//! A VFIO device as a source, on kernels that are as wrong as kernels were found to be.

mod model;
mod opening;
mod regions;

use linkspan_backends::display::{Memory, Screen, Source as _, SourceError, Verdict, Way};
use linkspan_display::{Kind, Loss, Position};
use linkspan_sys::vfio::{PLANE_DMABUF, PLANE_REGION, PlaneInfo};
use rustix::io::Errno;

use model::{Answer, Model, Region, plane};

/// GVT-g says success for a plane that is off, and writes nothing.
#[test]
fn gvt_leaves_what_it_was_asked_with_and_no_plane_is_seen() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(5);
    assert_eq!(source.planes().unwrap().len(), 1);
    model.state().primary = Answer::Untouched;
    model.state().cursor = Answer::Untouched;
    assert!(source.planes().unwrap().is_empty());
    // Each question was cleared.
    for query in &model.state().queries {
        let clear = PlaneInfo {
            argsz: 64,
            flags: PLANE_DMABUF,
            drm_plane_type: query.drm_plane_type,
            ..PlaneInfo::default()
        };
        assert_eq!(*query, clear);
    }
}

/// mbochs crashes the kernel when it is asked for a dma-buf that is held: no viewer that
/// comes, loses its picture or asks again makes it so.
#[test]
fn mbochs_second_get_of_an_id_never_comes() {
    let model = Model::new(PLANE_DMABUF);
    let source = model.source().unwrap();
    let mut screen = Screen::new(Box::new(source), 0).unwrap();
    for round in 0..30_u32 {
        model.show(1 + round % 3);
        screen.look().unwrap();
        assert!(screen.scene().is_some(), "{:?}", screen.no_signal());
        // The guest switches its screen off and on again.
        model.state().primary = Answer::Plane(PlaneInfo::default());
        screen.look().unwrap();
        assert!(screen.scene().is_none());
    }
    assert_eq!(model.state().gets, [1, 2, 3]);
}

#[test]
fn mbochs_first_query_of_a_mode_fails_with_enomem_and_is_repeated_once() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(1);
    model.state().errors = vec![Errno::NOMEM];
    assert_eq!(source.planes().unwrap()[0].id, 1);
    // One of them is for the pointer.
    assert_eq!(model.state().queries.len(), 3);
    model.state().queries.clear();
    model.state().errors = vec![Errno::NOMEM; 2];
    source.planes().unwrap();
    assert_eq!(model.state().queries.len(), 2);
}

/// GVT-g says EFAULT for a picture that is just being changed.
#[test]
fn a_query_that_fails_means_that_there_is_nothing_new_for_a_while() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.state().primary = Answer::Fails(Errno::FAULT);
    let error = source.planes().unwrap_err();
    assert!(matches!(error, SourceError::System { .. }), "{error}");
    model.show(1);
    let planes = source.planes().unwrap();
    model.state().primary = Answer::Fails(Errno::AGAIN);
    for _ in 0..60 {
        assert_eq!(source.planes().unwrap(), planes);
        source.memory(&planes[0]).unwrap();
    }
    assert!(source.planes().is_err());
    model.show(1);
    assert_eq!(source.planes().unwrap(), planes);
    assert_eq!(model.state().gets, [1]);
}

#[test]
fn a_device_that_is_gone_is_lost_for_good() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(1);
    let shown = source.planes().unwrap()[0];
    model.state().primary = Answer::Fails(Errno::NODEV);
    for _ in 0..2 {
        let error = source.planes().unwrap_err();
        assert!(matches!(error, SourceError::Lost(Loss::Removed)), "{error}");
        assert!(source.memory(&shown).is_err());
    }
    model.show(1);
    assert!(source.planes().is_err());
    assert!(source.regions().is_err() && source.reset().is_err());
}

#[test]
fn a_reset_makes_every_id_void() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(1);
    let shown = source.planes().unwrap()[0];
    source.reset().unwrap();
    let error = source.memory(&shown).unwrap_err();
    assert!(matches!(error, SourceError::Retired { id: 1 }), "{error}");
    let error = source.planes().unwrap_err();
    assert!(matches!(error, SourceError::Lost(Loss::Reset)), "{error}");
    // The same number is another buffer now.
    assert_eq!(source.planes().unwrap(), [shown]);
    assert_eq!(model.state().gets, [1, 1]);
    model
        .state()
        .refused
        .insert("VFIO_DEVICE_RESET", Errno::INVAL);
    assert!(source.reset().is_err());
    assert_eq!(source.planes().unwrap(), [shown]);
}

/// GVT-g's key of an id has no stride.
#[test]
fn gvt_stride_that_changes_under_an_id_is_another_buffer() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(1);
    source.planes().unwrap();
    let narrow = PlaneInfo {
        width: 32,
        stride: 128,
        ..plane(1)
    };
    model.state().primary = Answer::Plane(narrow);
    assert_eq!(source.planes().unwrap()[0].plane.surface.stride, 128);
    assert_eq!(model.state().gets, [1, 1]);
}

/// mbochs exports for reading alone what can only be mapped for both.
#[test]
fn mbochs_dma_buf_that_cannot_be_mapped_is_asked_for_once_and_said_why() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.state().unmappable = true;
    model.show(1);
    for _ in 0..3 {
        let error = source.planes().unwrap_err();
        assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
        let text = error.to_string();
        for way in ["dma-buf: ", "aperture: ", "gpu: ", "registers: "] {
            assert!(text.contains(way), "{text}");
        }
    }
    assert_eq!(model.state().gets, [1]);
}

/// Then its registers say where the picture is in video memory.
#[test]
fn mbochs_registers_are_read_where_its_dma_bufs_cannot_be_mapped() {
    let model = Model::new(PLANE_DMABUF);
    let region = |size, offset| Region {
        flags: 7,
        size,
        offset,
        ..Region::default()
    };
    let regions = [
        (0, region(1 << 20, 1 << 20)),
        (2, region(4096, 4096)),
        (7, region(255, 0)),
    ];
    model.state().regions = regions.into();
    model.write(0, &[0x34, 0x12, 0x11, 0x11]);
    let registers = [0xB0C5_u16, 64, 64, 32, 0x41, 0, 64, 1000, 0, 3, 16];
    for (index, register) in (0..).zip(registers) {
        model.write(4096 + 0x500 + 2 * index, &register.to_le_bytes());
    }
    model.write((1 << 20) + 3 * 256, &[1, 2, 3, 4]);
    let mut source = model.source().unwrap();
    model.state().unmappable = true;
    model.show(1);
    let planes = source.planes().unwrap();
    let used: Vec<Way> = source
        .ways()
        .filter(|(_, verdict)| **verdict == Verdict::Used)
        .map(|(way, _)| way)
        .collect();
    assert_eq!(used, [Way::Registers]);
    assert_eq!(planes[0].plane.surface.offset, 3 * 256);
    let mut bytes = [0; 4];
    let memory = source.memory(&planes[0]).unwrap();
    memory.reading().unwrap().read(3 * 256, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    // Switched off, and nonsense.
    model.write(4096 + 0x508, &[0, 0]);
    assert!(source.planes().unwrap().is_empty());
    model.write(4096 + 0x506, &[7, 0, 1, 0]);
    assert!(source.planes().is_err());
}

#[test]
fn a_picture_larger_than_its_memory_is_refused() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.state().buffer = 4096;
    model.show(1);
    let error = source.planes().unwrap_err();
    assert!(
        error.to_string().contains("in a dma-buf of 4096"),
        "{error}"
    );
    let model = Model::new(PLANE_REGION);
    let mut source = model.source().unwrap();
    model.show(16);
    assert!(source.planes().is_err(), "there is no such region");
    let region = Region {
        flags: 7,
        size: 4096,
        ..Region::default()
    };
    model.state().regions.insert(16, region.clone());
    let error = source.planes().unwrap_err();
    assert!(matches!(error, SourceError::Broken(_)), "{error}");
    let flags = 3;
    let size = 1 << 20;
    let fixed = Region {
        flags,
        size,
        ..region
    };
    model.state().regions.insert(16, fixed);
    let error = source.planes().unwrap_err();
    assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
}

/// GVT-g and others tell the place of a pointer in numbers that have no sign.
#[test]
fn a_pointer_that_is_partly_outside_has_a_negative_place() {
    let model = Model::new(PLANE_DMABUF);
    let mut source = model.source().unwrap();
    model.show(1);
    model.state().cursor = Answer::Plane(PlaneInfo {
        x_pos: (-7_i32).cast_unsigned(),
        y_pos: 3,
        x_hot: 2,
        y_hot: 64,
        ..plane(2)
    });
    let planes = source.planes().unwrap();
    assert_eq!(planes[1].kind, Kind::Cursor);
    assert_eq!(planes[1].plane.position, Position { x: -7, y: 3 });
    // Its hot spot is outside, so nobody knows it.
    assert_eq!(planes[1].plane.hot_spot, None);
    // Its place changes while its memory stays.
    model.state().cursor = Answer::Plane(plane(2));
    let planes = source.planes().unwrap();
    assert_eq!(planes[1].plane.position, Position::default());
    assert!(matches!(source.memory(&planes[1]), Ok(Memory::DmaBuf(_))));
    assert_eq!(model.state().gets, [1, 2]);
}

/// mdpy answers a question about the pointer with its picture.
#[test]
fn mdpy_is_not_asked_about_a_pointer() {
    let model = Model::new(PLANE_REGION);
    let mut source = model.source().unwrap();
    // Above what it counts.
    let region = Region {
        flags: 7,
        size: 1 << 20,
        offset: 1 << 20,
        ..Region::default()
    };
    model.state().regions.insert(16, region);
    model.state().cursor = Answer::Plane(plane(16));
    model.show(16);
    model.write(1 << 20, &[9; 16]);
    let planes = source.planes().unwrap();
    assert_eq!(planes.len(), 1);
    let mut bytes = [0; 16];
    let memory = source.memory(&planes[0]).unwrap();
    memory.reading().unwrap().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 16]);
    assert_eq!(model.state().queries.len(), 1);
}

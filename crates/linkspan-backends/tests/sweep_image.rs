//! Each step of opening an image and of serving it is made to fail in turn.

mod qemu;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{
    Engine, Image, Io, MemoryImage, NullImage, OpenError, OpenOptions, Qcow2Image, RawImage,
};
use linkspan_engine::Device;
use linkspan_testkit::served::write_image;
use linkspan_testkit::sweep::sweep;
use linkspan_virtio::Features;

#[test]
fn each_step_of_opening_an_image_fails_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    // A file; a ring, the file in it, its restrictions, room for two lists; and the
    // mapping with what is known of it, without which it is done too.
    for (io, opening, queue) in [(Io::Uring, 6, 18), (Io::Threads, 1, 16)] {
        let options = OpenOptions {
            io,
            // Whatever failed keeps no lock either.
            lock_wait: Duration::ZERO,
            ..OpenOptions::default()
        };
        let image = match RawImage::open(&path, &options) {
            Err(OpenError::Uring(error)) => {
                println!("SKIP {io:?}: {error}");
                continue;
            }
            opened => opened.unwrap(),
        };
        assert_eq!(image.engine() == Engine::Uring, io == Io::Uring);
        drop(image);
        let report = sweep(|| RawImage::open(&path, &options).map(drop));
        println!("opening with {io:?}: {report:?}");
        assert!(
            report.points >= opening && report.absorbed() <= 2,
            "{report:?}"
        );

        let report = sweep(|| {
            let image: Arc<dyn Image> = Arc::new(RawImage::open(&path, &options)?);
            let device = BlockDevice::new(image, 1, 64)?;
            device.open_queue(0, Features::SPLIT_QUEUE).map(drop)?;
            Ok::<_, Box<dyn std::error::Error>>(())
        });
        println!("a queue with {io:?}: {report:?}");
        assert!(
            report.points >= opening + queue && report.absorbed() <= 2,
            "{report:?}"
        );
    }

    let report = sweep(|| MemoryImage::new(1 << 20, false).map(drop));
    assert!(report.points >= 1 && report.absorbed() == 0, "{report:?}");
    queue_fails_in_turn(Arc::new(MemoryImage::new(1 << 20, false).unwrap()));
    queue_fails_in_turn(Arc::new(NullImage::new(1 << 20, false, false)));

    if !qemu::missing("each_step_of_opening_an_image_fails_in_turn with qcow2") {
        let path = folder.path().join("qcow2");
        let create = ["create", "-q", "-f", "qcow2"].map(Path::new);
        qemu::img(create.into_iter().chain([&*path, Path::new("1M")]));
        let open = || Qcow2Image::open(&path, false, Duration::ZERO, &[]);
        let report = sweep(|| open().map(drop));
        assert!(report.points >= 2 && report.absorbed() == 0, "{report:?}");
        queue_fails_in_turn(Arc::new(open().unwrap()));
    }
}

fn queue_fails_in_turn(image: Arc<dyn Image>) {
    let device = BlockDevice::new(image, 1, 64).unwrap();
    let report = sweep(|| device.open_queue(0, Features::SPLIT_QUEUE).map(drop));
    assert!(report.points >= 1 && report.absorbed() == 0, "{report:?}");
}

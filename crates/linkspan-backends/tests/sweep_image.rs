//! Each step of opening an image and of serving it is made to fail in turn.

mod qemu;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{Image, MemoryImage, NullImage, Qcow2Image, RawImage};
use linkspan_engine::Device;
use linkspan_testkit::served::write_image;
use linkspan_testkit::sweep::sweep;
use linkspan_virtio::Features;

#[test]
fn each_step_of_opening_an_image_fails_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    let report = sweep(|| RawImage::open(&path, false, Duration::ZERO).map(drop));
    assert!(report.points >= 1 && report.absorbed() == 0, "{report:?}");

    let image: Arc<dyn Image> = Arc::new(RawImage::open(&path, false, Duration::ZERO).unwrap());
    queue_fails_in_turn(image);

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

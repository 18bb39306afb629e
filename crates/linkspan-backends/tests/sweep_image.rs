//! Each step of opening an image and of serving it is made to fail in turn.

use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{Image, OpenOptions, RawImage};
use linkspan_engine::Device;
use linkspan_testkit::served::write_image;
use linkspan_testkit::sweep::sweep;
use linkspan_virtio::Features;

#[test]
fn each_step_of_opening_an_image_fails_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    let report = sweep(|| RawImage::open(&path, &OpenOptions::default()).map(drop));
    assert!(report.points >= 1 && report.absorbed() == 0, "{report:?}");

    let image: Arc<dyn Image> = Arc::new(RawImage::open(&path, &OpenOptions::default()).unwrap());
    let device = BlockDevice::new(image, 1, 64).unwrap();
    let report = sweep(|| device.open_queue(0, Features::SPLIT_QUEUE).map(drop));
    assert!(report.points >= 1 && report.absorbed() == 0, "{report:?}");
}

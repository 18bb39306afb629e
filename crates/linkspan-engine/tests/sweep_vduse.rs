//! Each step by which a device comes to the kernel, is driven, and goes again fails in
//! turn. The seam is of the whole process, so this is one test.

use std::error::Error;
use std::sync::Arc;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::vduse::{self, Options};
use linkspan_engine::{Device, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::disk::{SECTOR, room};
use linkspan_testkit::served::{content, write_image};
use linkspan_testkit::sweep::sweep;
use linkspan_testkit::{DiskRing, Io, ModelKernel, SharedMemory};

const NAME: &str = "swept";
const NEEDED: u64 = 1 << 32 | 1 << 33;

#[test]
fn every_step_of_a_vduse_device_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("image");
    write_image(&path);
    let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
    let device: Arc<dyn Device> = Arc::new(BlockDevice::new(Arc::new(image), 1, 64).unwrap());
    let workers = Arc::new(Workers::new(1).unwrap());
    let kernel = ModelKernel::new();
    let state = folder.path().join("state");
    let options = Options {
        name: NAME.parse().unwrap(),
        timeout_seconds: 0,
        state: state.clone(),
        kernel: Arc::clone(&kernel) as Arc<_>,
    };
    let memory = SharedMemory::new(room(1, 64), Gpa(1 << 20), Sealing::Fixed);
    let mut ring = DiskRing::new(&memory, 0, 64, NEEDED);
    let interrupt = Arc::new(ring.call.try_clone().unwrap());
    let mut life = || -> Result<(), Box<dyn Error>> {
        let device = Arc::clone(&device);
        let server = vduse::serve(options.clone(), device, Arc::clone(&workers), |_| {})?;
        kernel.attach(NAME);
        kernel.accept(NAME, NEEDED);
        kernel.ready_with(NAME, &ring, &interrupt);
        kernel.map(NAME, &[&memory]);
        let up = kernel.bring_up(NAME);
        if up {
            ring.add(Io::Read {
                sector: 3,
                len: SECTOR,
            });
            kernel.kick(NAME, 0);
            assert_eq!(ring.wait().data, content(3));
        }
        let updated = !up || kernel.update_memory(NAME);
        assert!(kernel.set_status(NAME, 0));
        kernel.detach(NAME);
        server.stop()?;
        match (up, updated) {
            (true, true) => Ok(()),
            (false, _) => Err("the driver was refused".into()),
            (true, false) => Err("the change of memory was refused".into()),
        }
    };
    let report = sweep(|| {
        let result = life();
        assert_eq!(kernel.names(), [""; 0], "the kernel has a device still");
        let left = std::fs::read_dir(&state).map(Iterator::count);
        assert_eq!(left.unwrap_or(0), 0, "what was written down stays");
        result
    });
    println!("{report:?}");
    assert!(report.points >= 30, "{report:?}");
    // A session that cannot go on is followed by one that takes the device over.
    assert_eq!(report.absorbed(), 11, "{report:?}");
}

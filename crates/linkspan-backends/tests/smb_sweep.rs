//! Each acquisition of a client, of a gateway and between them fails in turn: the client has
//! an error or a file, and nothing is left at either end. One test, since a sweep is the process's.

mod qemu;
mod smb_files;

use std::fs;
use std::io;
use std::time::Duration;

use linkspan_backends::image::{Image as _, Operation};
use linkspan_backends::smb::{DiskOptions, Error, Settings, SmbImage};
use linkspan_mem::fault;
use linkspan_testkit::PATIENCE;
use linkspan_testkit::samba::Samba;
use qemu::Rig;
use smb_files::{Running, bytes, get, open, put};

fn all(samba: &Samba, settings: &Settings, data: &[u8]) -> Result<(), Error> {
    let mut share = open(samba, settings)?;
    put(&mut share, "file", data)?;
    assert!(get(&mut share, "file")? == data);
    share.remove("file")
}

/// A disk that is used.
fn disk(samba: &Samba, settings: &Settings, data: &[u8]) -> Result<(), Error> {
    used(samba, settings, &data[..8192]).map_err(Error::Here)
}

fn used(samba: &Samba, settings: &Settings, data: &[u8]) -> io::Result<()> {
    let options = DiskOptions {
        read_only: false,
        lock_wait: PATIENCE,
        time_limit: None,
    };
    fs::write(samba.share().join("disk"), data)?;
    let share = open(samba, settings).map_err(io::Error::other)?;
    let image = SmbImage::open(share, "disk", &options).map_err(io::Error::other)?;
    let mut rig = Rig::try_new(&image)?;
    assert!(rig.try_read(0, 8192)? == data);
    rig.try_write(512, &[7; 4096], true)?;
    rig.try_run(Operation::Flush)?;
    image.sync()?;
    drop((rig, image));
    assert!(fs::read(samba.share().join("disk"))?[512..4608] == [7; 4096]);
    Ok(())
}

type Work = fn(&Samba, &Settings, &[u8]) -> Result<(), Error>;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let data = bytes(100_000);
    let before = descriptors();
    for (over_rdma, work) in [
        (false, all as Work),
        (true, all),
        (false, disk),
        (true, disk),
    ] {
        let (mut failed, mut fired) = (0, true);
        let mut nth = 0;
        while fired {
            nth += 1;
            let gateway = Running::start(([127, 0, 0, 1], samba.port).into(), |_| {});
            let mut settings = match over_rdma {
                true => gateway.settings(),
                false => Settings::default(),
            };
            settings.patience = Duration::from_secs(20);
            let sweep = fault::arm(nth);
            let result = work(&samba, &settings, &data);
            fired = sweep.fired();
            drop(sweep);
            // The gateway checks that nothing is left in it.
            gateway.stop();
            assert_eq!(descriptors(), before, "step {nth}: {result:?}");
            failed += usize::from(result.is_err());
            assert!(fired || result.is_ok(), "step {nth}: {result:?}");
            // What is there works.
            all(&samba, &Settings::default(), &data).unwrap();
        }
        assert!(failed > 0, "no step failed: {over_rdma}");
    }
}

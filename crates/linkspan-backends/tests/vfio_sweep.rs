//! Each step by which a VFIO device, its planes and their memory come to be fails in turn.
//! The seam is of the whole process, so this is one test.

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "vfio/model.rs"]
mod model;

use std::error::Error;
use std::sync::Arc;

use linkspan_backends::display::{Screen, Source as _, Sysfs};
use linkspan_sys::vfio::{PLANE_DMABUF, PLANE_REGION};
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::sweep::sweep;

use model::{Model, Region, sysfs};

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let group = sysfs(&folder.path().join("group"), false);
    let node = sysfs(&folder.path().join("node"), true);
    for (sysfs, kind) in [(&group, PLANE_DMABUF), (&node, PLANE_REGION)] {
        let model = Model::new(kind);
        let region = Region {
            flags: 7,
            size: 1 << 20,
            ..Region::default()
        };
        model.state().regions.insert(3, region);
        model.show(3);
        let report = sweep(|| look(&model, sysfs));
        println!("vfio: {report:?}");
        assert!(report.points >= 6, "{report:?}");
    }
}

/// Opens, looks, and lets go.
fn look(model: &Arc<Model>, sysfs: &Sysfs) -> Result<(), Box<dyn Error>> {
    let mut source = model.open(sysfs)?;
    source.planes()?;
    let mut screen = Screen::new(Box::new(source), 0)?;
    screen.look()?;
    match screen.no_signal() {
        None => Ok(()),
        Some(why) => Err(why.to_string().into()),
    }
}

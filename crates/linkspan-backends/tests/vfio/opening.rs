//! Ways to a device, each step of which fails in turn.

use std::fs;

use linkspan_backends::display::{
    Source as _, SourceError, Sysfs, VfioError, VfioOptions, VfioSource, VfioSpec,
};
use linkspan_display::Loss;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::vfio::{PLANE_DMABUF, PLANE_REGION};
use rustix::io::Errno;

use super::model::{Model, UUID, sysfs};

#[test]
fn a_group_is_put_into_a_container_before_its_device_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let sysfs = sysfs(folder.path(), false);
    let model = Model::new(PLANE_DMABUF);
    let source = model.open(&sysfs).unwrap();
    assert_eq!(source.driver(), Some("model"));
    let expected = [
        "open /dev/vfio/7",
        "VFIO_GROUP_GET_STATUS",
        "open /dev/vfio/vfio",
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_SET_IOMMU",
        "VFIO_GROUP_GET_DEVICE_FD",
    ];
    assert_eq!(model.state().log[..6], expected);
}

#[test]
fn a_node_is_bound_to_an_iommufd_and_a_group_does_where_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let sysfs = sysfs(folder.path(), true);
    let model = Model::new(PLANE_DMABUF);
    model.open(&sysfs).unwrap();
    let expected = [
        "open /dev/iommu",
        "open /dev/vfio/devices/vfio3",
        "VFIO_DEVICE_BIND_IOMMUFD",
    ];
    assert_eq!(model.state().log[..3], expected);
    // Debian's kernels have no iommufd.
    model.state().closed.insert("/iommu", Errno::NOENT);
    model.open(&sysfs).unwrap();
    let spec = VfioSpec::Path("/dev/vfio/devices/vfio3".into());
    let options = VfioOptions::default();
    let error = VfioSource::open(&model.kernel(), &sysfs, &spec, options).unwrap_err();
    assert!(matches!(error, VfioError::NoNode(_)), "{error}");
    let spec = VfioSpec::Path("/dev/vfio/7".into());
    VfioSource::open(&model.kernel(), &sysfs, &spec, options).unwrap();
}

#[test]
fn each_call_that_fails_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let group = sysfs(&folder.path().join("group"), false);
    let node = sysfs(&folder.path().join("node"), true);
    let cases: [(&Sysfs, &str, Errno, &str); 9] = [
        (
            &group,
            "VFIO_GROUP_GET_STATUS",
            Errno::INVAL,
            "VFIO_GROUP_GET_STATUS",
        ),
        (
            &group,
            "VFIO_GROUP_SET_CONTAINER",
            Errno::INVAL,
            "VFIO_GROUP_SET_CONTAINER",
        ),
        (&group, "VFIO_GROUP_SET_CONTAINER", Errno::BUSY, "in use"),
        (&group, "VFIO_SET_IOMMU", Errno::PERM, "VFIO_SET_IOMMU"),
        (
            &group,
            "VFIO_GROUP_GET_DEVICE_FD",
            Errno::INVAL,
            "VFIO_GROUP_GET_DEVICE_FD",
        ),
        // GVT-g looks for the virtual machine of the group.
        (
            &group,
            "VFIO_GROUP_GET_DEVICE_FD",
            Errno::SRCH,
            "virtual machine",
        ),
        (
            &node,
            "VFIO_DEVICE_BIND_IOMMUFD",
            Errno::INVAL,
            "VFIO_DEVICE_BIND_IOMMUFD",
        ),
        (&node, "VFIO_DEVICE_BIND_IOMMUFD", Errno::BUSY, "in use"),
        (
            &node,
            "VFIO_DEVICE_QUERY_GFX_PLANE",
            Errno::INVAL,
            "no such planes",
        ),
    ];
    for (sysfs, call, error, word) in cases {
        let model = Model::new(PLANE_DMABUF);
        model.state().refused.insert(call, error);
        let refused = model.open(sysfs).unwrap_err();
        assert!(refused.to_string().contains(word), "{call}: {refused}");
        model.state().refused.clear();
        model.open(sysfs).unwrap();
    }
    let model = Model::new(PLANE_DMABUF);
    model.state().viable = false;
    let error = model.open(&group).unwrap_err();
    assert!(
        matches!(error, VfioError::NotViable { group: 7 }),
        "{error}"
    );
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let group = sysfs(folder.path(), false);
    let cases = [
        ("vfio/7", Errno::BUSY, "is in use", "pid:N", false),
        ("vfio/7", Errno::ACCESS, "no permission", "root", true),
        (
            "vfio/7",
            Errno::NOENT,
            "there is no /dev/vfio/7",
            "module",
            true,
        ),
        (
            "vfio/vfio",
            Errno::NOENT,
            "there is no /dev/vfio/vfio",
            "modprobe",
            true,
        ),
    ];
    for (path, errno, text, hint, missing) in cases {
        let model = Model::new(PLANE_DMABUF);
        model.state().closed.insert(path, errno);
        let error = model.open(&group).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{error}");
        assert_eq!(error.is_missing(), missing, "{error}");
    }
    let model = Model::new(PLANE_DMABUF);
    for name in ["", "..", "../../x", "11111111-1234-5678-9abc-def012345678"] {
        let spec = VfioSpec::Name(name.into());
        let source = VfioSource::open(&model.kernel(), &group, &spec, VfioOptions::default());
        let error = source.unwrap_err();
        assert!(matches!(error, VfioError::NoDevice(_)), "{name}: {error}");
    }
    let listed = group.devices();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].group), (UUID, Some(7)));
}

/// The numbers of the calls mean something else to other files.
#[test]
fn a_descriptor_of_something_else_is_asked_nothing() {
    let model = Model::new(PLANE_DMABUF);
    let other = memfd::create("other", 4096, Sealing::Open).unwrap();
    let options = VfioOptions::default();
    let error = VfioSource::passed(&model.kernel(), other, options).unwrap_err();
    assert!(matches!(error, VfioError::NotDevice { .. }), "{error}");
    assert!(model.state().log.is_empty());
}

/// Who passed it may still have it, and ask for the same picture: a second dma-buf of one id
/// can crash the kernel.
#[test]
fn a_descriptor_that_was_passed_may_be_somebody_elses() {
    let model = Model::new(PLANE_DMABUF);
    let error = model.passed(false).unwrap_err();
    assert!(matches!(error, VfioError::NotSafe { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--force"));
    model.passed(true).unwrap();
    // Regions are mapped as often as one wants.
    Model::new(PLANE_REGION).passed(false).unwrap();
}

/// The link goes first, of the device or of its driver, and then the kernel waits.
#[test]
fn a_device_that_leaves_its_bus_is_closed_at_once() {
    for link in [
        format!("bus/mdev/devices/{UUID}"),
        format!("devices/parent/{UUID}/driver"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = sysfs(folder.path(), false);
        let model = Model::new(PLANE_DMABUF);
        let mut source = model.open(&sysfs).unwrap();
        source.planes().unwrap();
        fs::remove_file(folder.path().join(&link)).unwrap();
        model.state().log.clear();
        let error = source.planes().unwrap_err();
        assert!(matches!(error, SourceError::Lost(Loss::Removed)), "{error}");
        assert!(model.state().log.is_empty(), "{link}");
    }
}

//! Devices in a tree of the test's own, and a kernel that takes them.

use super::*;
use linkspan_mem::Region;
use tempfile::{TempDir, tempdir};

const CLASS: &str = "34d14be3-dee4-41c8-9ae7-6b174977c192";
const INSTANCE: &str = "eb765408-105f-49b6-b4aa-c123b64d17d4";

struct Tree {
    folder: TempDir,
    roots: Roots,
}

impl Tree {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let roots = Roots {
            sysfs: folder.path().join("sys"),
            dev: folder.path().join("dev"),
            page: 4096,
        };
        fs::create_dir_all(&roots.dev).unwrap();
        Self { folder, roots }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn device(&self, name: &str, class: &str) -> String {
        let folder = format!("sys/bus/vmbus/devices/{name}");
        self.write(&format!("{folder}/class_id"), &format!("{{{class}}}\n"));
        self.write(&format!("{folder}/device_id"), &format!("{{{name}}}\n"));
        folder
    }

    fn find(&self) -> Result<Found, Error> {
        find(&self.roots, CLASS, Some(INSTANCE))
    }
}

#[test]
fn what_is_missing_is_named() {
    let tree = Tree::new();
    let missing = tree.find().unwrap_err();
    assert!(matches!(missing, Error::NoBus(_)) && !missing.may_come());
    let other = tree.device("00000000-0000-0000-0000-000000000001", INSTANCE);
    tree.write(&format!("{other}/uio/uio0/maps/map0/size"), "0x5000\n");
    let missing = tree.find().unwrap_err();
    assert!(matches!(missing, Error::NoDevice { .. }) && missing.may_come());
    let folder = tree.device(INSTANCE, CLASS);
    let missing = tree.find().unwrap_err();
    assert!(matches!(missing, Error::NotBound { driver: None, .. }) && missing.may_come());
    fs::create_dir_all(tree.folder.path().join(&folder).join("uio/uio3")).unwrap();
    let missing = tree.find().unwrap_err();
    assert!(matches!(missing, Error::System { .. }) && missing.may_come());
}

/// Known bug 4, 6 and 26 of Linux's daemon: a fixed size, a short buffer for the
/// name, and whichever folder comes first.
#[test]
fn size_and_number_are_the_devices_own() {
    let tree = Tree::new();
    let folder = tree.device(INSTANCE, CLASS);
    fs::create_dir_all(tree.folder.path().join(&folder).join("uio/power")).unwrap();
    for (size, bytes) in [
        ("0x0000000000008000\n", 0x8000),
        ("0xa000", 0xa000),
        ("0x22000", 0x22000),
        ("0x400000\n", 0x40_0000),
    ] {
        let file = format!("{folder}/uio/uio1234567/maps/map0/size");
        tree.write(&file, size);
        let found = tree.find().unwrap();
        assert_eq!(found.rings, bytes);
        assert_eq!(found.file, tree.roots.dev.join("uio1234567"));
    }
    for size in [
        "",
        "0",
        "0x0",
        "0x5000",
        "0x2000",
        "-1",
        "0x1000000000000000",
        "zz",
    ] {
        tree.write(&format!("{folder}/uio/uio1234567/maps/map0/size"), size);
        let refused = tree.find().unwrap_err();
        assert!(matches!(refused, Error::Size { .. }), "{size}");
    }
}

#[test]
fn rings_are_mapped_and_given_back() {
    let tree = Tree::new();
    let folder = tree.device(INSTANCE, CLASS);
    tree.write(&format!("{folder}/uio/uio0/maps/map0/size"), "0xa000");
    let found = tree.find().unwrap();
    let missing = Device::open(&found).unwrap_err();
    assert!(missing.may_come(), "{missing}");
    fs::write(&found.file, vec![7; 0xa000]).unwrap();
    let device = Device::open(&found).unwrap();
    let region = Region::new(device.rings());
    assert_eq!(region.len(), 0xa000);
    let mut bytes = [0; 2];
    region.slice(0x9fff, 1).unwrap().read(&mut bytes);
    assert_eq!(bytes, [7, 0]);
    device.signal().unwrap();
    assert_eq!(fs::read(&found.file).unwrap()[..5], [1, 0, 0, 0, 7]);
    // The region keeps the mapping.
    drop(device);
    region.slice(0x9fff, 1).unwrap().read(&mut bytes);
    assert_eq!(bytes[0], 7);
}

/// A kernel whose file copy is hv_utils' own until it is told otherwise.
struct Kernel {
    tree: Tree,
    told: Vec<String>,
    /// What uio_hv_generic answers when it is to take the device.
    refuses: Option<Errno>,
}

impl Kernel {
    fn new(has: Option<&str>, overrides: bool) -> Self {
        let tree = Tree::new();
        let folder = tree.device(INSTANCE, CLASS);
        tree.device("00000000-0000-0000-0000-000000000001", INSTANCE);
        if overrides {
            tree.write(&format!("{folder}/driver_override"), "(null)\n");
        }
        for driver in ["hv_utils", "hv_other", DRIVER] {
            let path = tree.roots.sysfs.join("bus/vmbus/drivers").join(driver);
            fs::create_dir_all(path).unwrap();
        }
        let kernel = Self {
            tree,
            told: Vec::new(),
            refuses: None,
        };
        if let Some(has) = has {
            kernel.give(has);
        }
        kernel
    }

    fn link(&self) -> PathBuf {
        let devices = self.tree.roots.sysfs.join("bus/vmbus/devices");
        devices.join(INSTANCE).join("driver")
    }

    fn give(&self, driver: &str) {
        let driver = Path::new("../../drivers").join(driver);
        std::os::unix::fs::symlink(driver, self.link()).unwrap();
    }

    fn take(&self) -> io::Result<()> {
        if let Some(errno) = self.refuses {
            return Err(errno.into());
        }
        self.give(DRIVER);
        let uio = self.link().with_file_name("uio/uio0/maps/map0");
        fs::create_dir_all(&uio).unwrap();
        fs::write(uio.join("size"), "0xa000\n").unwrap();
        Ok(())
    }

    fn tell(&mut self, file: &Path, word: &str) -> io::Result<()> {
        let bus = self.tree.roots.sysfs.join("bus/vmbus");
        let file = file.strip_prefix(bus).unwrap().to_str().unwrap();
        self.told.push(format!("{file} {}", word.trim()));
        match file {
            "drivers/hv_utils/unbind" => fs::remove_file(self.link()),
            "drivers/hv_utils/bind" => {
                self.give("hv_utils");
                Ok(())
            }
            "drivers/uio_hv_generic/bind" => self.take(),
            // It takes all that nobody has.
            "drivers/uio_hv_generic/new_id" if self.refuses.is_none() => self.take(),
            _ => Ok(()),
        }
    }

    fn bind(&mut self) -> Result<Found, Error> {
        let roots = self.tree.roots.clone();
        let mut tell = |file: &Path, word: &str| self.tell(file, word);
        bind::with(&mut tell, &roots, CLASS, Some(INSTANCE))
    }

    fn has(&self) -> Option<String> {
        driver(self.link().parent().unwrap())
    }
}

const TAKEN: &str = "drivers/uio_hv_generic/bind eb765408-105f-49b6-b4aa-c123b64d17d4";

#[test]
fn a_device_of_an_old_kernel_is_given_to_the_driver() {
    let unbind = "drivers/hv_utils/unbind eb765408-105f-49b6-b4aa-c123b64d17d4";
    let choice = "devices/eb765408-105f-49b6-b4aa-c123b64d17d4/driver_override uio_hv_generic";
    let class = "drivers/uio_hv_generic/new_id 34d14be3-dee4-41c8-9ae7-6b174977c192";
    for (has, overrides, told) in [
        (Some("hv_utils"), true, vec![unbind, choice, TAKEN]),
        (None, true, vec![choice, TAKEN]),
        (Some("hv_utils"), false, vec![unbind, class]),
        (None, false, vec![class]),
    ] {
        let mut kernel = Kernel::new(has, overrides);
        let found = kernel.bind().unwrap();
        assert_eq!(found.rings, 0xa000);
        assert_eq!(kernel.told, told);
        assert_eq!(kernel.has().as_deref(), Some(DRIVER));
        // Once is enough.
        kernel.bind().unwrap();
        assert_eq!(kernel.told, told);
    }
}

/// Before Linux 6.10 the driver takes only devices with monitor pages (ENOTSUPP, 524).
#[test]
fn a_device_that_the_driver_does_not_take_goes_back() {
    for overrides in [true, false] {
        for errno in [Errno::from_raw_os_error(524), Errno::NODEV] {
            let mut kernel = Kernel::new(Some("hv_utils"), overrides);
            kernel.refuses = Some(errno);
            let refused = kernel.bind().unwrap_err();
            assert!(matches!(refused, Error::NotTaken { .. }), "{refused}");
            assert!(refused.remedy().contains("Linux 6.10") && !refused.may_come());
            assert_eq!(kernel.has().as_deref(), Some("hv_utils"));
        }
    }
    let mut kernel = Kernel::new(None, true);
    kernel.refuses = Some(Errno::ACCESS);
    let refused = kernel.bind().unwrap_err();
    assert!(matches!(refused, Error::System { .. }), "{refused}");
    assert!(refused.remedy().contains("root"));
}

#[test]
fn a_device_of_another_driver_stays_with_it() {
    let mut kernel = Kernel::new(Some("hv_other"), true);
    let refused = kernel.bind().unwrap_err();
    assert!(
        refused.to_string().ends_with("hv_other has it"),
        "{refused}"
    );
    assert!(!refused.may_come());
    let mut kernel = Kernel::new(None, true);
    let ours = kernel
        .tree
        .roots
        .sysfs
        .join("bus/vmbus/drivers")
        .join(DRIVER);
    fs::remove_dir(ours).unwrap();
    let refused = kernel.bind().unwrap_err();
    assert!(matches!(refused, Error::NoDriver), "{refused}");
    assert!(kernel.told.is_empty());
    // Whoever is bound and not there yet is bound.
    let mut kernel = Kernel::new(Some(DRIVER), true);
    assert!(kernel.bind().unwrap_err().may_come());
}

#[test]
fn words_are_written_to_files() {
    let tree = Tree::new();
    let folder = tree.device(INSTANCE, CLASS);
    tree.write(&format!("{folder}/driver_override"), "(null)\n");
    tree.write(&format!("sys/bus/vmbus/drivers/{DRIVER}/bind"), "");
    let none = bind(&tree.roots, CLASS, Some(INSTANCE)).unwrap_err();
    // This kernel is none: nothing came of it.
    assert!(
        matches!(none, Error::NotBound { driver: None, .. }),
        "{none}"
    );
    let bind = tree.roots.sysfs.join("bus/vmbus/drivers").join(DRIVER);
    let told = fs::read_to_string(bind.join("bind")).unwrap();
    assert_eq!(told, INSTANCE);
}

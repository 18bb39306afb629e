//! What a qcow2 image stands on: used where it was allowed, refused elsewhere.

mod qemu;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linkspan_backends::image::qcow2::Qcow2Error;
use linkspan_backends::image::{Image, OpenError, Qcow2Image};
use tempfile::TempDir;

use qemu::{Rig, img, missing, pattern, raw_of, without_children};

const SIZE: usize = 2 << 20;

/// A folder with a subfolder `bases`, in which `raw` has known content.
struct Folder {
    root: TempDir,
}

impl Folder {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bases")).unwrap();
        fs::write(root.path().join("bases/raw"), pattern(SIZE, 1)).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Makes an image on another one; `qemu-img` looks at that only if it is there.
    fn stack(&self, name: &str, on: &str, format: &str) -> PathBuf {
        let path = self.path(name);
        let create = ["create", "-q", "-u", "-f", "qcow2", "-b", on, "-F", format];
        let size = SIZE.to_string();
        img(create
            .map(Path::new)
            .into_iter()
            .chain([&*path, Path::new(&size)]));
        path
    }

    fn open(&self, image: &Path, allowed: &[&str]) -> Result<Qcow2Image, Qcow2Error> {
        let allowed: Vec<PathBuf> = allowed.iter().map(|name| self.path(name)).collect();
        without_children(|| Qcow2Image::open(image, false, Duration::ZERO, &allowed))
    }
}

#[test]
fn image_shows_what_it_stands_on_and_keeps_its_own() {
    if missing("image_shows_what_it_stands_on_and_keeps_its_own") {
        return;
    }
    let folder = Folder::new();
    folder.stack("bases/middle", "raw", "raw");
    let top = folder.stack("top", "bases/middle", "qcow2");
    let before = ["bases/raw", "bases/middle"].map(|name| fs::read(folder.path(name)).unwrap());

    let image = folder.open(&top, &["bases"]).unwrap();
    let mut rig = Rig::new(&image);
    let mut want = pattern(SIZE, 1);
    assert!(rig.read(0, SIZE) == want);
    // A part of a cluster: the rest of it comes from below.
    let bytes = pattern(1024, 2);
    rig.write(70_144, &bytes, true);
    want[70_144..71_168].copy_from_slice(&bytes);
    // What is discarded does not show what lies below.
    let (offset, len) = (1 << 20, 1 << 19);
    rig.run(linkspan_backends::image::Operation::Discard { offset, len });
    want[1 << 20..(1 << 20) + (1 << 19)].fill(0);
    assert!(rig.read(0, SIZE) == want);
    drop((rig, image));
    img([
        Path::new("check"),
        Path::new("-f"),
        Path::new("qcow2"),
        &top,
    ]);
    assert!(raw_of(&top, folder.root.path()) == want);
    let after = ["bases/raw", "bases/middle"].map(|name| fs::read(folder.path(name)).unwrap());
    assert!(before == after, "what it stands on was written");
}

#[test]
fn data_file_is_used_where_it_is_allowed() {
    if missing("data_file_is_used_where_it_is_allowed") {
        return;
    }
    let folder = Folder::new();
    let (path, data) = (folder.path("image"), folder.path("bases/data"));
    let option = format!("data_file={}", data.display());
    let create = ["create", "-q", "-f", "qcow2", "-o", &option];
    img(create
        .map(Path::new)
        .into_iter()
        .chain([&*path, Path::new("2M")]));
    let refused = folder.open(&path, &[]).unwrap_err();
    assert!(
        matches!(refused, Qcow2Error::NotAllowed { .. }),
        "{refused}"
    );
    let image = folder.open(&path, &["bases"]).unwrap();
    let bytes = pattern(SIZE, 4);
    Rig::new(&image).write(0, &bytes, false);
    drop(image);
    assert!(raw_of(&path, folder.root.path()) == bytes);
    assert!(fs::metadata(&data).unwrap().len() >= SIZE as u64);
}

#[test]
fn nothing_is_opened_that_was_not_allowed() {
    if missing("nothing_is_opened_that_was_not_allowed") {
        return;
    }
    let folder = Folder::new();
    fs::write(folder.path("secret"), pattern(SIZE, 7)).unwrap();
    symlink(folder.path("secret"), folder.path("bases/link")).unwrap();
    symlink(folder.path("bases"), folder.path("alias")).unwrap();
    folder.stack("bases/middle", "../secret", "raw");
    let secret = folder.path("secret");
    for (on, format, allowed) in [
        ("secret", "raw", &[][..]),
        ("secret", "raw", &["bases"]),
        (secret.to_str().unwrap(), "raw", &["bases"]),
        ("bases/../secret", "raw", &["bases"]),
        ("bases/link", "raw", &["bases"]),
        // What it stands on stands on it.
        ("bases/middle", "qcow2", &["bases"]),
        ("/etc/passwd", "raw", &["bases"]),
        ("/nowhere/at/all", "raw", &[]),
    ] {
        let top = folder.stack("top", on, format);
        let error = folder.open(&top, allowed).unwrap_err();
        assert!(
            matches!(error, Qcow2Error::NotAllowed { .. }),
            "{on}: {error}"
        );
        assert!(error.to_string().contains("--allow-backing"), "{error}");
    }
    // Links that stay inside are fine, and so is a folder by another name.
    for (on, allowed) in [("alias/raw", "bases"), ("bases/raw", "alias")] {
        let top = folder.stack("top", on, "raw");
        assert!(folder.open(&top, &[allowed]).is_ok(), "{on}");
    }
    let top = folder.stack("top", "bases/none", "raw");
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(
        matches!(error, Qcow2Error::File(OpenError::System { .. })),
        "{error}"
    );
}

#[test]
fn formats_are_not_guessed() {
    if missing("formats_are_not_guessed") {
        return;
    }
    let folder = Folder::new();
    let top = folder.stack("top", "bases/raw", "vmdk");
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(matches!(error, Qcow2Error::Format { .. }), "{error}");
    // The extension that names the format becomes one that nobody knows.
    let top = folder.stack("top", "bases/raw", "raw");
    let mut bytes = fs::read(&top).unwrap();
    let name = 0xE279_2ACA_u32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == name).unwrap();
    bytes[at] ^= 1;
    fs::write(&top, &bytes).unwrap();
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(matches!(error, Qcow2Error::NoFormat { .. }), "{error}");
    assert!(error.to_string().contains("qemu-img rebase"), "{error}");
}

#[test]
fn circle_of_images_ends() {
    if missing("circle_of_images_ends") {
        return;
    }
    let folder = Folder::new();
    folder.stack("bases/a", "b", "qcow2");
    folder.stack("bases/b", "a", "qcow2");
    let top = folder.stack("top", "bases/a", "qcow2");
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(matches!(error, Qcow2Error::TooDeep { .. }), "{error}");
    // An image that stands on itself bars itself.
    let top = folder.stack("bases/self", "self", "qcow2");
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(
        matches!(error, Qcow2Error::File(OpenError::InUse { .. })),
        "{error}"
    );
}

#[test]
fn base_with_a_writer_is_not_used() {
    if missing("base_with_a_writer_is_not_used") {
        return;
    }
    let folder = Folder::new();
    let base = folder.stack("bases/base", "raw", "raw");
    let top = folder.stack("top", "bases/base", "qcow2");
    let writer = folder.open(&base, &["bases"]).unwrap();
    let error = folder.open(&top, &["bases"]).unwrap_err();
    assert!(
        matches!(error, Qcow2Error::File(OpenError::InUse { .. })),
        "{error}"
    );
    drop(writer);
    let reader = folder.open(&top, &["bases"]).unwrap();
    assert_eq!(reader.len(), SIZE as u64);
    // And now it may not be written.
    let error = folder.open(&base, &["bases"]).unwrap_err();
    assert!(
        matches!(error, Qcow2Error::File(OpenError::InUse { .. })),
        "{error}"
    );
}

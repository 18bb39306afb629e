//! What another process has to know of a disk that it takes over: the size that the driver
//! knows, which the image may have outgrown; 8 bytes, little endian.

use linkspan_devices::block::SECTOR;
use linkspan_engine::NotLent;

/// A disk of so many bytes.
pub(super) fn save(size: u64) -> Vec<u8> {
    size.to_le_bytes().to_vec()
}

/// The size of a disk that these bytes are of, on an image of `len` bytes.
pub(super) fn load(saved: &[u8], len: u64) -> Result<u64, NotLent> {
    match <[u8; 8]>::try_from(saved).map(u64::from_le_bytes) {
        Ok(size) if size <= len && size.is_multiple_of(SECTOR) => Ok(size),
        Ok(size) => Err(NotLent(format!(
            "its driver knows a disk of {size} bytes, and the image has {len}"
        ))),
        Err(_) => Err(NotLent(format!("{} bytes are no disk", saved.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_no_larger_than_its_image() {
        assert_eq!(load(&save(1024), 1024), Ok(1024));
        assert_eq!(load(&save(1024), 4096), Ok(1024));
        for (bytes, why) in [
            (save(2048), "the image has 1024"),
            (save(513), "513 bytes"),
            (vec![0; 7], "7 bytes are no disk"),
        ] {
            let error = load(&bytes, 1024).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}

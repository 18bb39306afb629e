//! Finds a busybox that needs no libraries.

use std::fs;
use std::path::{Path, PathBuf};

/// Where distributions put it.
const PLACES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// The first static busybox of the usual places, and its bytes.
///
/// # Errors
/// A busybox that was found and is not static, if there is one.
pub fn find() -> Result<(PathBuf, Vec<u8>), Option<PathBuf>> {
    let mut found_dynamic = None;
    for path in PLACES.map(Path::new) {
        let Ok(image) = fs::read(path) else { continue };
        if is_static_elf(&image) {
            return Ok((path.to_owned(), image));
        }
        found_dynamic = Some(path.to_owned());
    }
    Err(found_dynamic)
}

/// Whether this is a 64-bit little-endian ELF program that asks for no loader
/// (it has no PT_INTERP segment): there are no libraries in the guest.
fn is_static_elf(image: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let table = || -> Option<bool> {
        if image.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
        let start = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?);
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let start = usize::try_from(start).ok()?;
        for index in 0..count {
            let at = start.checked_add(index.checked_mul(size)?)?;
            let kind = u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?);
            if kind == PT_INTERP {
                return Some(false);
            }
        }
        Some(true)
    };
    table().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static_elf(&this_test));
    }

    #[test]
    fn what_is_no_elf_or_is_cut_off_is_not_static() {
        let whole = elf_with_segments(&[1, 1]);
        assert!(is_static_elf(&whole));
        assert!(!is_static_elf(&elf_with_segments(&[1, 3])));
        for end in 0..whole.len() - 53 {
            assert!(!is_static_elf(&whole[..end]), "cut at {end}");
        }
        assert!(!is_static_elf(b"#!/bin/sh\n"));
    }

    fn elf_with_segments(kinds: &[u32]) -> Vec<u8> {
        let mut image = vec![0; 64];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_le_bytes());
        for kind in kinds {
            let mut segment = [0; 56];
            segment[..4].copy_from_slice(&kind.to_le_bytes());
            image.extend_from_slice(&segment);
        }
        image
    }
}

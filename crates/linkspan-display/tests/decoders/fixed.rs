//! Pictures that never change their place.

use linkspan_display::decode::fixed::{FixedError, linear, mdpy};
use linkspan_display::{FourCc, Refusal};

fn config(width: u32, height: u32) -> [u8; 256] {
    let mut config = [0; 256];
    config[0x40..0x44].copy_from_slice(&[0x09, 0, 0x10, 0]);
    config[0x44..0x48].copy_from_slice(b"XR24");
    config[0x48..0x4C].copy_from_slice(&width.to_le_bytes());
    config[0x4C..0x50].copy_from_slice(&height.to_le_bytes());
    config
}

#[test]
fn mdpy_says_its_picture_in_configuration_space() {
    let layout = mdpy(&config(1920, 1080), 16 << 20).unwrap();
    let surface = layout.surface();
    assert_eq!(surface.format, FourCc::XRGB8888);
    assert_eq!(
        (surface.width, surface.height, surface.stride),
        (1920, 1080, 7680)
    );
}

#[test]
fn other_devices_and_hostile_ones_are_refused() {
    assert_eq!(
        mdpy(&[0xFF; 256], 1 << 20),
        Err(FixedError::Capability {
            id: 0xFF,
            len: 0xFF
        })
    );
    for (width, height) in [(u32::MAX, 1), (0, 0), (1, u32::MAX), (0x4000_0001, 1)] {
        assert_eq!(
            mdpy(&config(width, height), u64::MAX),
            Err(FixedError::Refused(Refusal::Size { width, height }))
        );
    }
    assert!(mdpy(&config(64, 64), 64 * 64 * 4 - 1).is_err());
    assert!(linear(FourCc::RGB565, 64, 64, 128, 64 * 128).is_ok());
}

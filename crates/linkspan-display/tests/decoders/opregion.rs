//! Intel's OpRegion.

use linkspan_display::decode::intel::{
    OPREGION_SUBTYPE, OPREGION_TYPE, OpRegion, OpRegionError, opregion,
};

fn region() -> Vec<u8> {
    let mut bytes = vec![0; 8 << 10];
    bytes[..16].copy_from_slice(b"IntelGraphicsMem");
    bytes[16] = 8;
    bytes[20..24].copy_from_slice(&[0, 3, 1, 2]);
    bytes[88] = 0x1D;
    bytes[0x400..0x404].copy_from_slice(b"$VBT");
    bytes
}

#[test]
fn a_region_of_intels_type_is_read() {
    let read = opregion(0x8000_8086, 1, &region()).unwrap();
    let want = OpRegion {
        size: 8192,
        version: (2, 1, 3),
        mailboxes: 0x1D,
        has_vbt: true,
    };
    assert_eq!(read, want);
    let mut bare = region();
    bare[0x400] = 0;
    assert!(
        !opregion(OPREGION_TYPE, OPREGION_SUBTYPE, &bare)
            .unwrap()
            .has_vbt
    );
}

#[test]
fn what_is_no_opregion_is_refused_by_name() {
    let refused = |bytes: &[u8]| opregion(OPREGION_TYPE, OPREGION_SUBTYPE, bytes).unwrap_err();
    for (kind, subtype) in [(0x8086, 1), (OPREGION_TYPE, 2), (1, 1)] {
        let error = opregion(kind, subtype, &region()).unwrap_err();
        assert_eq!(error, OpRegionError::Kind { kind, subtype });
    }
    assert_eq!(refused(&[]), OpRegionError::Short { got: 0, want: 256 });
    let mut other = region();
    other[3] ^= 1;
    assert_eq!(refused(&other), OpRegionError::Signature);
    for (kib, bytes) in [([0, 0], 0), ([7, 0], 7 << 10), ([1, 4], 1025 << 10)] {
        let mut sized = region();
        sized[16..18].copy_from_slice(&kib);
        assert_eq!(refused(&sized), OpRegionError::Size { size: bytes });
    }
    let mut long = region();
    long[16] = 16;
    let short = OpRegionError::Short {
        got: 8192,
        want: 16384,
    };
    assert_eq!(refused(&long), short);
    // 4 GiB less one of KiB does not overflow.
    long[16..20].fill(0xFF);
    assert!(matches!(refused(&long), OpRegionError::Size { .. }));
}

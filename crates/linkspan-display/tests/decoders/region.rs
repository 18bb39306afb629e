//! Capabilities of VFIO regions, and the head of an EDID region.

use linkspan_display::region::{
    CAPABILITIES_MAX, Capability, ChainError, EdidRegion, EdidRegionError, capabilities,
};

/// An answer: 32 bytes, then these words.
fn answer(words: &[u32]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    [0; 32].into_iter().chain(words).collect()
}

/// A capability's first word: its number, and version 1.
fn head(id: u16) -> u32 {
    let [a, b] = id.to_ne_bytes();
    let [c, d] = 1_u16.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[test]
fn a_chain_is_read_in_its_order_and_what_is_not_known_is_listed() {
    let long = |value: u64| {
        let bytes = value.to_ne_bytes();
        let (words, _) = bytes.as_chunks::<4>();
        [u32::from_ne_bytes(words[0]), u32::from_ne_bytes(words[1])]
    };
    let mut words = vec![head(2), 48, 0x8000_8086, 1];
    words.extend([head(7), 56]);
    words.extend([head(1), 0, 1, 0]);
    words.extend(long(0x1000));
    words.extend(long(0x2000));
    let bytes = answer(&words);
    let expected = [
        Capability::Type {
            kind: 0x8000_8086,
            subtype: 1,
        },
        Capability::Other { id: 7, version: 1 },
        Capability::SparseMmap(std::iter::once(0x1000..0x3000).collect()),
    ];
    assert_eq!(capabilities(&bytes, 32).unwrap(), expected);
    assert_eq!(capabilities(&bytes, 0).unwrap(), []);
    // Every byte that is missing is missed.
    for len in 32..bytes.len() {
        let error = capabilities(&bytes[..len], 32).unwrap_err();
        assert!(matches!(error, ChainError::Outside { .. }), "{len}");
    }
}

#[test]
fn a_chain_that_turns_back_or_does_not_end_is_refused() {
    let own = answer(&[head(7), 32]);
    let back = ChainError::Back { from: 40, at: 32 };
    assert_eq!(capabilities(&own, 32), Err(back));
    let into_head = ChainError::Back { from: 32, at: 8 };
    assert_eq!(capabilities(&own, 8), Err(into_head));
    let outside = capabilities(&own, u32::MAX).unwrap_err();
    assert!(matches!(outside, ChainError::Outside { .. }));
    let many: Vec<u32> = (0..40).flat_map(|at| [head(9), 40 + at * 8]).collect();
    assert_eq!(capabilities(&answer(&many), 32), Err(ChainError::TooMany));
    let fits = CAPABILITIES_MAX * 2 - 1;
    let mut fitting = many[..=fits].to_vec();
    fitting[fits] = 0;
    let list = capabilities(&answer(&fitting), 32).unwrap();
    assert_eq!(list.len(), CAPABILITIES_MAX);
}

#[test]
fn a_number_of_parts_is_no_larger_than_what_was_answered() {
    let bytes = answer(&[head(1), 0, u32::MAX, 0]);
    assert!(matches!(
        capabilities(&bytes, 32),
        Err(ChainError::Outside { .. })
    ));
    let bytes = answer(&[head(1), 0, 1, 0, u32::MAX, u32::MAX, 1, 0]);
    assert!(matches!(
        capabilities(&bytes, 32),
        Err(ChainError::Part { .. })
    ));
}

/// GVT-g says a region of 128 bytes, and an EDID at byte 2048 of it.
#[test]
fn gvt_edid_offset_outside_of_its_region_size_is_taken() {
    let region = EdidRegion::from_words([2048, 128, 0, 0, 0, 0]);
    assert_eq!(region.check(128, 4095, 4095), Ok(()));
    let error = EdidRegionError::Size {
        size: 256,
        max: 128,
    };
    assert_eq!(region.check(256, 640, 480), Err(error));
}

#[test]
fn an_edid_that_the_device_cannot_show_is_not_told() {
    let region = EdidRegion::from_words([2048, 1024, 0, 1920, 1440, 0]);
    assert_eq!(region.check(128, 1920, 1440), Ok(()));
    for (width, height) in [(1921, 1440), (1920, 1441)] {
        let error = region.check(128, width, height).unwrap_err();
        assert!(matches!(error, EdidRegionError::Mode { .. }));
    }
    for offset in [0, 20, 25, u32::MAX] {
        let region = EdidRegion { offset, ..region };
        let error = region.check(128, 64, 64);
        assert_eq!(error, Err(EdidRegionError::Offset { offset }));
    }
}

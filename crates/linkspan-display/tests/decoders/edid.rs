//! EDID.

use linkspan_display::edid::{BLOCK, EdidError, Mode, make, read};

/// Modelines of VESA's CVT with reduced blanking, as `cvt -r` prints them.
#[test]
fn timings_are_those_of_the_standard() {
    for (width, height, clock, line, lines, sync) in [
        (1920, 1080, 13850, 2080, 1111, 5),
        (1920, 1200, 15400, 2080, 1235, 6),
        (1280, 1024, 9100, 1440, 1054, 7),
        (1024, 768, 5600, 1184, 790, 4),
        (3840, 2160, 53300, 4000, 2222, 5),
    ] {
        let mode = Mode::reduced(width, height, 60).unwrap();
        assert_eq!(mode.clock_10khz / 25 * 25, mode.clock_10khz);
        assert_eq!(mode.clock_10khz / 100, clock / 100, "{width}x{height}");
        assert_eq!(mode.width + mode.horizontal_blank, line);
        assert_eq!(mode.height + mode.vertical_blank, lines);
        assert_eq!(mode.vertical_sync, sync);
        assert!(
            (59_800..60_100).contains(&mode.rate_mhz()),
            "{}",
            mode.rate_mhz()
        );
    }
}

#[test]
fn what_is_made_is_read_back() {
    for (width, height, rate) in [
        (64, 64, 60),
        (1920, 1080, 60),
        (3840, 2160, 60),
        (4095, 1200, 30),
        (800, 600, 144),
    ] {
        let mode = Mode::reduced(width, height, rate).unwrap();
        let bytes = make(&mode, "linkspan", 7);
        let edid = read(&bytes).unwrap();
        assert_eq!(edid.mode, mode);
        assert_eq!(edid.name, "linkspan");
        assert_eq!(edid.maker, ['L', 'S', 'P']);
        assert_eq!(edid.extensions, 0);
        assert_eq!(
            bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256,
            0
        );
    }
    let mode = Mode::reduced(1024, 768, 60).unwrap();
    assert_eq!(
        read(&make(&mode, "longer than 13 characters", 0))
            .unwrap()
            .name,
        "longer than 1"
    );
    assert_eq!(read(&make(&mode, "a\nb\u{e9}", 0)).unwrap().name, "ab");
    assert_eq!(read(&make(&mode, "", 0)).unwrap().name, "");
}

#[test]
fn modes_that_cannot_be_told_are_refused() {
    for (width, height) in [
        (4096, 1080),
        (1920, 4096),
        (63, 64),
        (0, 0),
        (u32::MAX, u32::MAX),
    ] {
        assert_eq!(
            Mode::reduced(width, height, 60),
            Err(EdidError::Size { width, height })
        );
    }
    for (width, height, rate) in [
        (4095, 4095, 60),
        (1920, 1080, 0),
        (1920, 1080, 241),
        (64, 64, 1),
        (64, 64, u32::MAX),
    ] {
        assert_eq!(
            Mode::reduced(width, height, rate),
            Err(EdidError::Clock {
                width,
                height,
                rate
            })
        );
    }
}

/// GVT-g gives its guests whatever it was given; a checksum that is wrong is EINVAL.
#[test]
fn what_is_broken_is_refused_by_name() {
    let mode = Mode::reduced(1024, 768, 60).unwrap();
    let good = make(&mode, "x", 0);
    assert_eq!(
        read(&good[..127]),
        Err(EdidError::Short {
            got: 127,
            want: 128
        })
    );
    let mut bad = good;
    bad[0] = 1;
    assert_eq!(read(&bad), Err(EdidError::Header));
    let mut bad = good;
    bad[60] ^= 0x10;
    assert!(matches!(
        read(&bad),
        Err(EdidError::Checksum { block: 0, .. })
    ));
    // Extensions that are said and are not there; then one that does not add up.
    let mut more = good;
    more[126] = 1;
    more[127] = more[127].wrapping_sub(1);
    assert_eq!(
        read(&more),
        Err(EdidError::Short {
            got: 128,
            want: 256
        })
    );
    let mut both = more.to_vec();
    both.resize(2 * BLOCK, 0);
    assert_eq!(read(&both).unwrap().extensions, 1);
    both[200] = 1;
    assert_eq!(read(&both), Err(EdidError::Checksum { block: 1, sum: 1 }));
    let mut none = good;
    none[54..72].fill(0);
    let sum = none[..127]
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    none[127] = sum.wrapping_neg();
    assert_eq!(read(&none), Err(EdidError::NoMode));
}

//! Regions: their capabilities, the EDID region, the OpRegion.

use linkspan_backends::display::{Source as _, SourceError};
use linkspan_display::edid;
use linkspan_display::region::{Capability, ChainError};
use linkspan_sys::vfio::PLANE_REGION;

use super::model::{Model, Region};

/// A capability that says the type of a region.
fn kind(kind: u32, subtype: u32) -> Vec<u8> {
    let head = [[2, 0], [1, 0]].map(u16::from_le_bytes);
    let head = head.iter().flat_map(|half| half.to_ne_bytes());
    let words = [0, kind, subtype];
    head.chain(words.iter().flat_map(|word| word.to_ne_bytes()))
        .collect()
}

fn words(model: &Model, at: u64, words: &[u32]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    model.write(at, &bytes);
}

fn word(model: &Model, at: u64) -> u32 {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = [0; 4];
    model.device.read_exact_at(&mut bytes, at).unwrap();
    u32::from_ne_bytes(bytes)
}

/// An older mbochs refuses any other size than it has.
#[test]
fn mbochs_region_info_is_asked_again_with_exactly_its_size() {
    let model = Model::new(PLANE_REGION);
    let region = Region {
        flags: 3,
        size: 4096,
        offset: 8192,
        chain: kind(1, 1),
        argsz: None,
    };
    model.state().regions.insert(3, region);
    let source = model.source().unwrap();
    let regions = source.regions().unwrap();
    assert_eq!(regions.len(), 1);
    let expected = Capability::Type {
        kind: 1,
        subtype: 1,
    };
    assert_eq!(regions[0].capabilities, Ok(vec![expected]));
}

#[test]
fn a_chain_that_goes_wrong_is_told_and_endless_ones_are_not_asked_for() {
    let model = Model::new(PLANE_REGION);
    let mut back = kind(1, 1);
    back[4..8].copy_from_slice(&32_u32.to_ne_bytes());
    let region = |chain: Vec<u8>, argsz| Region {
        flags: 3,
        size: 4096,
        offset: 0,
        chain,
        argsz,
    };
    let huge = region(Vec::new(), Some(u32::MAX));
    model.state().regions = [(1, region(back, None)), (2, huge)].into();
    let source = model.source().unwrap();
    let regions = source.regions().unwrap();
    assert_eq!(regions.len(), 1);
    let error = ChainError::Back { from: 48, at: 32 };
    assert_eq!(regions[0].capabilities, Err(error));
    model.state().num_regions = u32::MAX;
    assert_eq!(source.regions().unwrap().len(), 1);
}

/// GVT-g says a region of 128 bytes and has its EDID at byte 2048.
#[test]
fn gvt_edid_is_written_behind_the_region_that_it_says() {
    let model = Model::new(PLANE_REGION);
    let at = 0x10_0000;
    let region = Region {
        flags: 3,
        size: 128,
        offset: at,
        chain: kind(1, 1),
        argsz: None,
    };
    model.state().regions.insert(8, region);
    words(&model, at, &[2048, 128, 0, 1920, 1200, 0]);
    let mut source = model.source().unwrap();
    assert_eq!(source.edid().unwrap().unwrap().edid, None);
    source.resize(0, 1920, 1080).unwrap();
    assert_eq!([word(&model, at + 8), word(&model, at + 20)], [128, 1]);
    let screen = source.edid().unwrap().unwrap();
    let read = screen.edid.unwrap().unwrap();
    assert_eq!((read.mode.width, read.mode.height), (1920, 1080));
    let error = source.resize(0, 1920, 1440).unwrap_err();
    assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
    // It says that it has more than it takes.
    words(&model, at, &[2048, 128, u32::MAX]);
    assert_eq!(source.edid().unwrap().unwrap().edid, None);
    words(&model, at, &[4, 128, 0]);
    let error = source.resize(0, 640, 480).unwrap_err();
    assert!(error.to_string().contains("byte 4"), "{error}");
    assert_eq!(edid::BLOCK, 128);
    model.state().regions.clear();
    assert_eq!(source.edid().unwrap(), None);
    assert!(source.resize(0, 640, 480).is_err());
}

#[test]
fn an_opregion_is_read_and_checked() {
    let model = Model::new(PLANE_REGION);
    let source = model.source().unwrap();
    assert_eq!(source.opregion(), None);
    let at = 0x20_0000;
    let region = Region {
        flags: 1,
        size: 8192,
        offset: at,
        chain: kind(0x8000_8086, 1),
        argsz: None,
    };
    model.state().regions.insert(8, region);
    assert!(source.opregion().unwrap().is_err());
    model.write(at, b"IntelGraphicsMem");
    model.write(at + 16, &8_u32.to_le_bytes());
    model.write(at + 21, &[0, 1, 2]);
    let opregion = source.opregion().unwrap().unwrap();
    assert_eq!((opregion.size, opregion.version), (8192, (2, 1, 0)));
    model.write(at + 16, &9_u32.to_le_bytes());
    assert!(source.opregion().unwrap().unwrap_err().contains("9216"));
}

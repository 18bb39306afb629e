//! Every acquisition fails in turn, and nothing is left.

use linkspan_display::Frame;
use linkspan_display::decode::intel::{GttError, pages_of};
use linkspan_mem::fault::{self, Injected, Site};

const REFUSED: Injected = Injected { site: Site::Alloc };

#[test]
fn memory_that_is_refused_is_a_named_error() {
    let sweep = fault::arm(1);
    assert_eq!(Frame::new(640, 480).unwrap_err(), REFUSED);
    drop(sweep);
    let sweep = fault::arm(1);
    let refused = pages_of(0, 4096, 16, |_| 1);
    assert_eq!(refused, Err(GttError::Memory(REFUSED)));
    drop(sweep);
    assert!(Frame::new(640, 480).is_ok());
    assert!(pages_of(0, 4096, 16, |_| 1).is_ok());
}

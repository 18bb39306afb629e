//! Ids of buffers: who looks never asks twice, who shows never forgets too early.

use std::cell::Cell;
use std::rc::Rc;

use linkspan_display::{
    BufferId, ExportError, Exports, FourCc, Held, Loss, Modifier, Needed, Plane, Position, Surface,
};

fn plane(width: u32, stride: u32) -> Plane {
    Plane {
        surface: Surface {
            format: FourCc::XRGB8888,
            modifier: Modifier::LINEAR,
            width,
            height: 768,
            stride,
            offset: 0,
            x: 0,
            y: 0,
        },
        size: u64::from(stride) * 768,
        position: Position::default(),
        hot_spot: None,
    }
}

/// A descriptor: counts how many are open.
struct Fd(Rc<Cell<i32>>);

impl Fd {
    fn new(open: &Rc<Cell<i32>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A source shows `id`: asks for its memory if that is needed, and says whether it was.
fn look(held: &mut Held<Fd>, open: &Rc<Cell<i32>>, id: u32, plane: &Plane) -> bool {
    let needed = matches!(held.shown(id, plane), Needed::Memory);
    if needed {
        held.keep(id, plane, Fd::new(open));
    }
    needed
}

/// mbochs: a second GET_GFX_DMABUF for an id crashes the host's kernel.
#[test]
fn a_buffer_that_is_held_is_never_asked_for_again() {
    let (mut held, open) = (Held::new(), Rc::default());
    let mode = plane(1024, 4096);
    assert!(look(&mut held, &open, 1, &mode));
    assert!(look(&mut held, &open, 2, &mode));
    for _ in 0..100 {
        assert!(!look(&mut held, &open, 1, &mode));
        assert!(!look(&mut held, &open, 2, &mode));
    }
    assert_eq!((held.len(), open.get()), (2, 2));
}

#[test]
#[should_panic(expected = "buffer 7 was asked for twice")]
fn whoever_asks_twice_is_stopped() {
    let (mut held, open) = (Held::new(), Rc::default());
    let mode = plane(1024, 4096);
    held.keep(7, &mode, Fd::new(&open));
    held.keep(7, &mode, Fd::new(&open));
}

/// A guest flips between few buffers, so what it comes back to is there still.
#[test]
fn the_buffer_that_was_used_longest_ago_goes_first_and_late() {
    let (mut held, open) = (Held::new(), Rc::default());
    let mode = plane(1024, 4096);
    for id in 0..8 {
        assert!(look(&mut held, &open, id, &mode));
    }
    assert_eq!(held.len(), Held::<Fd>::MAX);
    // 0 is used again, so 1 is the oldest.
    assert!(!look(&mut held, &open, 0, &mode));
    assert!(look(&mut held, &open, 100, &mode));
    assert_eq!((held.len(), open.get()), (8, 8));
    assert!(!look(&mut held, &open, 0, &mode));
    assert!(look(&mut held, &open, 1, &mode));
}

/// GVT-g's key has no stride: another picture may have the id of the one before.
#[test]
fn an_id_whose_stride_has_changed_is_another_buffer() {
    let (mut held, open) = (Held::new(), Rc::default());
    assert!(look(&mut held, &open, 1, &plane(1024, 4096)));
    assert!(look(&mut held, &open, 2, &plane(1024, 4096)));
    assert!(look(&mut held, &open, 1, &plane(1024, 8192)));
    // All of the mode before are gone, and closed before another was asked for.
    assert_eq!((held.len(), open.get()), (1, 1));
    let moved = Plane {
        position: Position { x: 5, y: -5 },
        ..plane(1024, 8192)
    };
    assert!(!look(&mut held, &open, 1, &moved));
}

#[test]
fn a_mode_that_has_changed_lets_the_buffers_of_the_one_before_go() {
    let (mut held, open) = (Held::new(), Rc::default());
    for id in 0..5 {
        look(&mut held, &open, id, &plane(1024, 4096));
    }
    look(&mut held, &open, 9, &plane(800, 3200));
    assert_eq!((held.len(), open.get()), (1, 1));
}

#[test]
fn a_loss_drops_every_id_and_is_news_once() {
    let (mut held, open) = (Held::new(), Rc::default());
    let mode = plane(1024, 4096);
    look(&mut held, &open, 1, &mode);
    let before = held.generation();
    assert!(held.lose(Loss::Reset));
    assert!(!held.lose(Loss::Reset));
    assert_eq!((held.len(), open.get(), held.is_empty()), (0, 0, true));
    assert_eq!(held.loss(), Some(Loss::Reset));
    assert_eq!(held.generation(), before + 1);
    // The same number is another buffer in another life.
    assert!(look(&mut held, &open, 1, &mode));
    assert_eq!(held.loss(), None);
    assert!(held.lose(Loss::Removed) && held.lose(Loss::Ended));
}

/// Nothing is shown any more.
fn never(_: BufferId) -> bool {
    false
}

#[test]
fn an_id_holds_its_buffer_from_query_to_get() {
    let open = Rc::default();
    let mut exports: Exports<(u32, u32), Fd> = Exports::new();
    let first = exports
        .query((1024, 4096), never, || Fd::new(&open))
        .unwrap();
    let second = exports
        .query((1024, 8192), never, || Fd::new(&open))
        .unwrap();
    assert_ne!(first, second, "the stride is part of the key");
    assert_eq!(
        exports.query((1024, 4096), never, || unreachable!()),
        Ok(first)
    );
    // Others are shown before it is fetched.
    for number in 0..14 {
        exports
            .query((number, 0), never, || Fd::new(&open))
            .unwrap();
    }
    assert_eq!(open.get(), 16);
    let made = exports.get(first, |buffer| Ok::<_, ()>(Rc::clone(&buffer.0)));
    assert_eq!(made.unwrap().get(), 16);
    // Each get is a descriptor of its own, as often as one wants.
    assert!(exports.get(first, |_| Ok::<_, ()>(())).is_ok());
}

#[test]
fn an_id_that_is_retired_or_was_never_given_is_a_named_error() {
    let open = Rc::default();
    let mut exports: Exports<u32, Fd> = Exports::new();
    let first = exports.query(0, never, || Fd::new(&open)).unwrap();
    for key in 1..=16 {
        exports.query(key, never, || Fd::new(&open)).unwrap();
    }
    assert_eq!(open.get(), 16, "no more are held, however many are shown");
    let get = |exports: &Exports<u32, Fd>, id| exports.get(id, |_| Ok::<_, ()>(())).unwrap_err();
    assert_eq!(get(&exports, first), ExportError::Retired { id: first });
    for id in [BufferId(0), BufferId(18), BufferId(u32::MAX)] {
        assert_eq!(get(&exports, id), ExportError::Unknown { id });
    }
    let again = exports.query(0, never, || Fd::new(&open)).unwrap();
    assert_ne!(again, first, "numbers are not used twice");
    exports.retire();
    assert_eq!(open.get(), 0);
    assert_eq!(get(&exports, again), ExportError::Retired { id: again });
}

#[test]
fn an_id_that_is_still_shown_is_not_pushed_out() {
    let open = Rc::default();
    let mut exports: Exports<u32, Fd> = Exports::new();
    let first = exports.query(0, never, || Fd::new(&open)).unwrap();
    for key in 1..100 {
        let pushed = exports.query(key, |id| id == first, || Fd::new(&open));
        pushed.unwrap();
        assert!(exports.get(first, |_| Ok::<_, ()>(())).is_ok(), "{key}");
    }
    assert_eq!(open.get(), 16);
    // More are shown than are held otherwise: all of them, and no more once they are not.
    for key in 100..140 {
        exports.query(key, |_| true, || Fd::new(&open)).unwrap();
    }
    assert_eq!(open.get(), 56);
    let last = exports.query(140, never, || Fd::new(&open)).unwrap();
    assert_eq!(open.get(), 16);
    // Nor are they where all that is hidden goes at once.
    exports.retire_hidden(|id| id == last);
    assert_eq!(open.get(), 1);
    assert!(exports.get(last, |_| Ok::<_, ()>(())).is_ok());
}

/// The first patch made a descriptor and then failed to say which: it leaked.
#[test]
fn the_descriptor_is_made_last_and_a_failure_changes_nothing() {
    let open: Rc<Cell<i32>> = Rc::default();
    let mut exports: Exports<u32, Fd> = Exports::new();
    let id = exports.query(0, never, || Fd::new(&open)).unwrap();
    let failed: Result<(), _> = exports.get(id, |_| Err("no descriptors left"));
    assert_eq!(failed, Err(ExportError::Make("no descriptors left")));
    assert_eq!(open.get(), 1);
    let fd = exports
        .get(id, |buffer| Ok::<_, ()>(Fd::new(&buffer.0)))
        .unwrap();
    drop(exports);
    assert_eq!(open.get(), 1, "a descriptor outlives the id");
    drop(fd);
}

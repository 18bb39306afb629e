//! The graphics address table.

use linkspan_display::decode::intel::{GttError, PAGE, Piece, address_of, pages_of, pieces};
use linkspan_mem::Gpa;

/// Page n of the guest is 100 - n.
fn backwards(index: u64) -> u64 {
    ((100 - index) * PAGE) | 1
}

#[test]
fn pages_are_found_in_the_order_of_the_picture() {
    let pages = pages_of(2 * PAGE, 2 * PAGE + 1, 16, backwards).unwrap();
    assert_eq!(pages, [Gpa(98 * PAGE), Gpa(97 * PAGE), Gpa(96 * PAGE)]);
    assert_eq!(
        address_of(&pages, PAGE + 10),
        Some((Gpa(97 * PAGE + 10), PAGE - 10))
    );
    assert_eq!(address_of(&pages, 3 * PAGE), None);
    assert_eq!(pages_of(0, 0, 0, backwards), Ok(Vec::new()));
}

#[test]
fn absent_outside_and_unaligned_are_named() {
    let absent = |index| {
        if index == 5 {
            0xABC0_0000
        } else {
            backwards(index)
        }
    };
    assert_eq!(
        pages_of(4 * PAGE, 3 * PAGE, 16, absent),
        Err(GttError::Absent {
            address: 5 * PAGE,
            entry: 0xABC0_0000
        })
    );
    assert_eq!(
        pages_of(14 * PAGE, 3 * PAGE, 16, backwards),
        Err(GttError::Outside {
            address: 14 * PAGE,
            pages: 3,
            entries: 16
        })
    );
    assert_eq!(
        pages_of(1, PAGE, 16, backwards),
        Err(GttError::Unaligned { address: 1 })
    );
    let pages = u64::MAX.div_ceil(PAGE);
    assert_eq!(
        pages_of(0, u64::MAX, 16, backwards),
        Err(GttError::TooLarge { address: 0, pages })
    );
    let last = u64::MAX - (PAGE - 1);
    assert!(matches!(
        pages_of(last, PAGE, 16, backwards),
        Err(GttError::Outside { .. })
    ));
}

/// udmabuf takes one list of ranges of memfds.
#[test]
fn scattered_pages_are_as_few_pieces_as_they_are() {
    // Guest memory: 64 pages in file 'a' from its page 10 on, then 64 in 'b'.
    let file_of = |Gpa(page): Gpa| {
        let number = page / PAGE;
        match number {
            0..64 => Some(('a', (number + 10) * PAGE)),
            64..128 => Some(('b', (number - 64) * PAGE)),
            _ => None,
        }
    };
    let numbers = [3u64, 4, 5, 9, 62, 63, 64, 65, 4];
    let pages: Vec<Gpa> = numbers.map(|number| Gpa(number * PAGE)).to_vec();
    let piece = |file, first: u64, count: u64| Piece {
        file,
        offset: first * PAGE,
        len: count * PAGE,
    };
    assert_eq!(
        pieces(0, &pages, 1024, file_of).unwrap(),
        [
            piece('a', 13, 3),
            piece('a', 19, 1),
            piece('a', 72, 2),
            piece('b', 0, 2),
            piece('a', 14, 1)
        ]
    );
    assert_eq!(
        pieces(0, &pages, 4, file_of),
        Err(GttError::Pieces { max: 4 })
    );
    let nowhere = [Gpa(0), Gpa(200 * PAGE)];
    assert_eq!(
        pieces(7 * PAGE, &nowhere, 1024, file_of),
        Err(GttError::NoMemory {
            address: 8 * PAGE,
            page: 200 * PAGE
        })
    );
    let shifted = |Gpa(page): Gpa| Some(('a', page + 512));
    assert_eq!(
        pieces(0, &[Gpa(0)], 1024, shifted),
        Err(GttError::File {
            page: 0,
            offset: 512
        })
    );
    // At the end of all addresses nothing overflows.
    let end = |_| Some(('a', u64::MAX - (PAGE - 1)));
    assert_eq!(
        pieces(u64::MAX, &[Gpa(0), Gpa(0)], 8, end).unwrap().len(),
        2
    );
}

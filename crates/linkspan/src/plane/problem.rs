//! What is wrong with a plane, and where.

use serde::Serialize;

use crate::exit::Status;

/// Something that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Where: bytes from the beginning of the file.
    pub(super) at: Option<usize>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// How the program would end if this were all.
    pub(super) status: Status,
}

impl Problem {
    /// Something that makes no sense.
    pub(super) fn new(at: Option<usize>, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
            hint: None,
            status: Status::Usage,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }
}

/// A place in a file, as editors count: both from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// Where these bytes from the beginning are.
    pub(super) fn of(text: &str, at: usize) -> Self {
        let mut end = at.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_as_editors_do() {
        let text = "ab\nüx\n";
        for (at, line, column) in [
            (0, 1, 1),
            (2, 1, 3),
            (3, 2, 1),
            // Within a character: its beginning.
            (4, 2, 1),
            (5, 2, 2),
            (7, 3, 1),
            (99, 3, 1),
        ] {
            assert_eq!(Place::of(text, at), Place { line, column }, "{at}");
        }
    }
}

//! vhost-user-gpu: the socket on which a virtual GPU shows its screens to the front end
//! (QEMU: docs/interop/vhost-user-gpu.rst). The GPU asks and tells, the front end answers
//! what it was asked, in order. Numbers are the machine's own.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// `VHOST_USER_GPU_PROTOCOL_F_EDID`: the front end answers `GET_EDID`.
pub const F_EDID: u64 = 1 << 0;
/// Pixels of a side of a pointer.
pub const CURSOR_SIDE: usize = 64;
/// Bytes of `virtio_gpu_resp_display_info`.
pub const DISPLAY_INFO_LEN: usize = 24 + 16 * 24;
/// Bytes of `virtio_gpu_resp_edid`.
pub const EDID_LEN: usize = 24 + 8 + 1024;
/// Questions that wait for their answers at a time.
pub const QUESTIONS_MAX: usize = 16;

const REPLY: u32 = 1 << 2;

macro_rules! requests {
    ($($name:ident = $code:literal;)*) => {
        $(const $name: u32 = $code;)*

        /// All messages by their names in the specification, less what they begin with.
        const REQUESTS: &[(u32, &str)] = &[$(($code, stringify!($name)),)*];
    };
}

requests! {
    GET_PROTOCOL_FEATURES = 1;
    SET_PROTOCOL_FEATURES = 2;
    GET_DISPLAY_INFO = 3;
    CURSOR_POS = 4;
    CURSOR_POS_HIDE = 5;
    CURSOR_UPDATE = 6;
    SCANOUT = 7;
    UPDATE = 8;
    GET_EDID = 11;
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

/// What a GPU tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell<'a> {
    /// These of the offered features are used.
    ProtocolFeatures(u64),
    /// A screen has this size from now on; 0 by 0: it is off.
    Scanout {
        /// Which.
        head: u32,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Where the pointer is, or that there is none.
    CursorPosition {
        /// On which screen.
        head: u32,
        /// Pixels from the left.
        x: u32,
        /// Pixels from the top.
        y: u32,
        /// Whether it is there.
        visible: bool,
    },
    /// The pointer, which is at this place.
    Cursor {
        /// On which screen.
        head: u32,
        /// Pixels from the left.
        x: u32,
        /// Pixels from the top.
        y: u32,
        /// The pixel that points.
        hot: (u32, u32),
        /// 64 lines of as many pixels, `0xAARRGGBB`.
        pixels: &'a [u32],
    },
}

impl Tell<'_> {
    /// The whole message.
    ///
    /// # Panics
    /// If a pointer has not as many pixels as it should.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::ProtocolFeatures(bits) => message(SET_PROTOCOL_FEATURES, bits.as_bytes()),
            Self::Scanout {
                head,
                width,
                height,
            } => message(SCANOUT, [*head, *width, *height].as_bytes()),
            Self::CursorPosition {
                head,
                x,
                y,
                visible,
            } => {
                let request = if *visible {
                    CURSOR_POS
                } else {
                    CURSOR_POS_HIDE
                };
                message(request, [*head, *x, *y].as_bytes())
            }
            Self::Cursor {
                head,
                x,
                y,
                hot,
                pixels,
            } => {
                assert_eq!(pixels.len(), CURSOR_SIDE * CURSOR_SIDE);
                let mut body = [*head, *x, *y, hot.0, hot.1].as_bytes().to_vec();
                body.extend_from_slice(pixels.as_bytes());
                message(CURSOR_UPDATE, &body)
            }
        }
    }
}

/// The beginning of `VHOST_USER_GPU_UPDATE`: so many pixels, `0xxxRRGGBB`, are to follow.
/// A screen is to have a size before its first one.
#[must_use]
pub fn update(head: u32, x: u32, y: u32, width: u32, height: u32) -> Vec<u8> {
    let pixels = u64::from(width) * u64::from(height) * 4;
    let size = u32::try_from(20 + pixels).unwrap_or(u32::MAX);
    let header = Header {
        request: UPDATE,
        flags: 0,
        size,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice([head, x, y, width, height].as_bytes());
    bytes
}

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        request,
        flags: 0,
        size: u32::try_from(body.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// What a GPU asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which features the front end has.
    ProtocolFeatures,
    /// How large its screens are.
    DisplayInfo,
    /// What a screen says of itself; only with [`F_EDID`].
    Edid {
        /// Which.
        head: u32,
    },
}

impl Question {
    const fn request(self) -> u32 {
        match self {
            Self::ProtocolFeatures => GET_PROTOCOL_FEATURES,
            Self::DisplayInfo => GET_DISPLAY_INFO,
            Self::Edid { .. } => GET_EDID,
        }
    }

    /// Bytes of its answer.
    const fn answer_len(self) -> usize {
        match self {
            Self::ProtocolFeatures => 8,
            Self::DisplayInfo => DISPLAY_INFO_LEN,
            Self::Edid { .. } => EDID_LEN,
        }
    }
}

/// What a front end answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The features that it has.
    ProtocolFeatures(u64),
    /// `virtio_gpu_resp_display_info`, header included: for the guest.
    DisplayInfo(Vec<u8>),
    /// `virtio_gpu_resp_edid`, header included: for the guest.
    Edid(Vec<u8>),
}

/// A front end that answers otherwise than it was asked. The socket is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// It says something that was not asked.
    #[error("message {request} was not asked for")]
    Unasked {
        /// Its number.
        request: u32,
    },
    /// It answers something else.
    #[error("message {got} where the answer to {want} is due")]
    Other {
        /// What came.
        got: u32,
        /// What was asked.
        want: u32,
    },
    /// It does not mark its answer as one.
    #[error("message {request} with flags {flags:#x} is no answer")]
    Flags {
        /// Its number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// Its answer has another length.
    #[error("an answer to message {request} of {got} bytes; {want} are right")]
    Length {
        /// Its number.
        request: u32,
        /// Bytes that come.
        got: u32,
        /// Bytes that should.
        want: usize,
    },
    /// More bytes than were wanted.
    #[error("{got} bytes where {want} were wanted")]
    Unwanted {
        /// Bytes that came.
        got: usize,
        /// Bytes that were wanted.
        want: usize,
    },
}

/// The questions that wait, and the answer that is on its way.
#[derive(Debug, Default)]
pub struct Answers {
    questions: Vec<Question>,
    bytes: Vec<u8>,
}

impl Answers {
    /// The message that asks; `None` when too many wait.
    pub fn ask(&mut self, question: Question) -> Option<Vec<u8>> {
        if self.questions.len() >= QUESTIONS_MAX {
            return None;
        }
        self.questions.push(question);
        Some(match question {
            Question::Edid { head } => message(GET_EDID, head.as_bytes()),
            other => message(other.request(), &[]),
        })
    }

    /// How many questions wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.questions.len()
    }

    /// Bytes to read next, never 0.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match (self.bytes.len(), self.questions.first()) {
            (have @ 0..HEADER, _) => HEADER - have,
            (have, Some(question)) => (HEADER + question.answer_len()).saturating_sub(have).max(1),
            (_, None) => 1,
        }
    }

    /// Takes bytes of the front end, at most [`wanted`](Self::wanted).
    ///
    /// # Errors
    /// [`AnswerError`]: nothing more is to be read.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Answer>, AnswerError> {
        let want = self.wanted();
        if bytes.len() > want {
            let got = bytes.len();
            return Err(AnswerError::Unwanted { got, want });
        }
        self.bytes.extend_from_slice(bytes);
        let Ok((header, body)) = Header::read_from_prefix(&self.bytes) else {
            return Ok(None);
        };
        let Header {
            request,
            flags,
            size: got,
        } = header;
        let Some(&question) = self.questions.first() else {
            return Err(AnswerError::Unasked { request });
        };
        let (want, len) = (question.request(), question.answer_len());
        if request != want {
            return Err(AnswerError::Other { got: request, want });
        }
        if flags & REPLY == 0 {
            return Err(AnswerError::Flags { request, flags });
        }
        if got as usize != len {
            let want = len;
            return Err(AnswerError::Length { request, got, want });
        }
        if body.len() < len {
            return Ok(None);
        }
        let answer = match question {
            Question::ProtocolFeatures => {
                let mut bits = [0; 8];
                bits.copy_from_slice(body);
                Answer::ProtocolFeatures(u64::from_ne_bytes(bits))
            }
            Question::DisplayInfo => Answer::DisplayInfo(body.to_vec()),
            Question::Edid { .. } => Answer::Edid(body.to_vec()),
        };
        self.bytes.clear();
        self.questions.remove(0);
        Ok(Some(answer))
    }
}

/// Bytes of a body that are looked at.
const BODY_SEEN: usize = 32;

/// Messages cut out of the socket's bytes of one direction as they go by, for people who
/// watch.
#[derive(Debug, Default)]
pub struct Watcher {
    /// The header, and what is looked at of the body.
    seen: Vec<u8>,
    /// Bytes of the body that are to come.
    left: usize,
}

/// A message that went by, in words once somebody wants them.
#[derive(Clone, Copy)]
pub struct Said<'a> {
    header: Header,
    body: &'a [u8],
}

impl Watcher {
    /// Takes bytes, and says each message that is whole by now.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(Said<'_>)) {
        while !bytes.is_empty() {
            if self.seen.len() < HEADER {
                let (now, later) = bytes.split_at(bytes.len().min(HEADER - self.seen.len()));
                self.seen.extend_from_slice(now);
                bytes = later;
                let Ok(header) = Header::read_from_bytes(&self.seen) else {
                    return;
                };
                self.left = usize::try_from(header.size).unwrap_or(usize::MAX);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.left));
            let room = (HEADER + BODY_SEEN).saturating_sub(self.seen.len());
            self.seen.extend_from_slice(&now[..now.len().min(room)]);
            self.left -= now.len();
            bytes = later;
            if self.left > 0 {
                return;
            }
            if let Ok((header, body)) = Header::read_from_prefix(&self.seen) {
                each(Said { header, body });
            }
            self.seen.clear();
        }
    }
}

impl Said<'_> {
    /// Whether it is one of those that come with each change of the picture.
    #[must_use]
    pub fn is_picture(&self) -> bool {
        matches!(
            self.header.request,
            UPDATE | CURSOR_POS | CURSOR_POS_HIDE | CURSOR_UPDATE
        )
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let Header {
            request,
            flags,
            size,
        } = self.header;
        let known = REQUESTS.iter().find(|(code, _)| *code == request);
        let name = known.map_or_else(
            || format!("message {request}"),
            |(_, name)| format!("VHOST_USER_GPU_{name}"),
        );
        let reply = if flags & REPLY != 0 { " reply" } else { "" };
        let words: Vec<u32> = self.body.as_chunks::<4>().0.iter().map(word).collect();
        let said = match (request, words.as_slice()) {
            (GET_PROTOCOL_FEATURES | SET_PROTOCOL_FEATURES, [low, high]) => {
                format!(": {:#x}", u64::from(*high) << 32 | u64::from(*low))
            }
            (SCANOUT, [head, width, height]) => format!(": screen {head}, {width} by {height}"),
            (UPDATE, [head, x, y, width, height, ..]) => {
                format!(": screen {head}, {width} by {height} at {x}, {y}")
            }
            (CURSOR_POS | CURSOR_POS_HIDE | CURSOR_UPDATE, [head, x, y, ..]) => {
                format!(": screen {head}, at {x}, {y}")
            }
            (GET_EDID, [head]) => format!(": screen {head}"),
            _ if size == 0 => String::new(),
            _ => format!(": {size} bytes"),
        };
        name + reply + &said
    }
}

fn word(bytes: &[u8; 4]) -> u32 {
    // The first word of a number of 64 bits is its low one where this runs.
    u32::from_ne_bytes(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn reply(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = message(request, body);
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    /// Byte by byte.
    fn hear(answers: &mut Answers, bytes: &[u8]) -> Result<Option<Answer>, AnswerError> {
        for byte in bytes {
            assert!(answers.wanted() > 0);
            if let Some(answer) = answers.receive(&[*byte])? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    #[test]
    fn answers_come_in_the_order_of_the_questions() {
        let mut answers = Answers::default();
        answers.ask(Question::ProtocolFeatures).unwrap();
        answers.ask(Question::DisplayInfo).unwrap();
        let edid = answers.ask(Question::Edid { head: 3 }).unwrap();
        assert_eq!(edid[HEADER..], 3u32.to_ne_bytes());
        let bits = hear(&mut answers, &reply(1, REPLY, &3u64.to_ne_bytes())).unwrap();
        assert_eq!(bits, Some(Answer::ProtocolFeatures(3)));
        let info = vec![7; DISPLAY_INFO_LEN];
        let got = hear(&mut answers, &reply(3, REPLY, &info)).unwrap();
        assert_eq!(got, Some(Answer::DisplayInfo(info)));
        let edid = vec![9; EDID_LEN];
        let got = hear(&mut answers, &reply(11, REPLY, &edid)).unwrap();
        assert_eq!((got, answers.waiting()), (Some(Answer::Edid(edid)), 0));
    }

    #[test]
    fn what_is_no_answer_is_named() {
        let unasked = hear(&mut Answers::default(), &reply(1, REPLY, &[0; 8]));
        assert_eq!(unasked, Err(AnswerError::Unasked { request: 1 }));
        let heard = |bytes: &[u8]| {
            let mut answers = Answers::default();
            answers.ask(Question::ProtocolFeatures).unwrap();
            hear(&mut answers, bytes).unwrap_err()
        };
        let other = AnswerError::Other { got: 3, want: 1 };
        assert_eq!(heard(&reply(3, REPLY, &[0; 8])), other);
        let (request, flags) = (1, 0);
        assert_eq!(
            heard(&reply(1, 0, &[0; 8])),
            AnswerError::Flags { request, flags }
        );
        let length = AnswerError::Length {
            request: 1,
            got: 9,
            want: 8,
        };
        assert_eq!(heard(&reply(1, REPLY, &[0; 9])), length);
        let mut full = Answers::default();
        for _ in 0..QUESTIONS_MAX {
            assert!(full.ask(Question::DisplayInfo).is_some());
        }
        assert!(full.ask(Question::DisplayInfo).is_none());
    }

    #[test]
    fn messages_have_the_layout_of_the_specification() {
        let scanout = Tell::Scanout {
            head: 1,
            width: 640,
            height: 480,
        };
        let words = |bytes: &[u8]| -> Vec<u32> {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| u32::from_ne_bytes(*word)).collect()
        };
        assert_eq!(words(&scanout.to_bytes()), [7, 0, 12, 1, 640, 480]);
        assert_eq!(words(&update(0, 1, 2, 3, 4)), [8, 0, 68, 0, 1, 2, 3, 4]);
        let pixels = [5; CURSOR_SIDE * CURSOR_SIDE];
        let cursor = Tell::Cursor {
            head: 0,
            x: 1,
            y: 2,
            hot: (3, 4),
            pixels: &pixels,
        };
        let cursor = words(&cursor.to_bytes());
        assert_eq!(cursor[..9], [6, 0, 16404, 0, 1, 2, 3, 4, 5]);
        let hide = Tell::CursorPosition {
            head: 0,
            x: 1,
            y: 2,
            visible: false,
        };
        assert_eq!(words(&hide.to_bytes()), [5, 0, 12, 0, 1, 2]);
    }

    #[test]
    fn messages_say_what_they_hold_wherever_they_come_apart() {
        let scanout = Tell::Scanout {
            head: 1,
            width: 640,
            height: 480,
        };
        let pixels = vec![7; 4 * 100];
        let bytes = [
            message(GET_PROTOCOL_FEATURES, &[]),
            reply(1, REPLY, &3u64.to_ne_bytes()),
            scanout.to_bytes(),
            update(0, 1, 2, 10, 10),
            pixels,
            message(99, &[0; 5]),
            reply(3, REPLY, &[0; DISPLAY_INFO_LEN]),
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let (mut watcher, mut said) = (Watcher::default(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                watcher.take(part, |it| said.push((it.is_picture(), it.text())));
            }
            let texts: Vec<_> = said.iter().map(|(_, text)| text.as_str()).collect();
            assert_eq!(
                texts,
                [
                    "VHOST_USER_GPU_GET_PROTOCOL_FEATURES",
                    "VHOST_USER_GPU_GET_PROTOCOL_FEATURES reply: 0x3",
                    "VHOST_USER_GPU_SCANOUT: screen 1, 640 by 480",
                    "VHOST_USER_GPU_UPDATE: screen 0, 10 by 10 at 1, 2",
                    "message 99: 5 bytes",
                    "VHOST_USER_GPU_GET_DISPLAY_INFO reply: 408 bytes",
                ],
                "{cut}"
            );
            assert!(said[3].0 && !said[2].0);
        }
    }
}

//! The D-Bus display of QEMU (`-display dbus,p2p=yes`), of which one call is made: how large
//! a screen is to be. It is the only way to say that to a guest whose virtual GPU is another
//! process, and its socket comes from the monitor.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use linkspan_sys::Stream;
use linkspan_sys::poll::{Direction, Wake, wait_for};

use super::qmp::{ANSWER_LIMIT, QmpError};

/// The longest message that is heard; an answer without a value has 32 bytes.
const MESSAGE_MAX: usize = 64 << 10;
/// What every message begins with: endianness, type, flags, version, length of its body,
/// serial, length of its fields.
const HEADER: usize = 16;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

fn late() -> QmpError {
    broken("it does not answer")
}

/// A connection with the display.
#[derive(Debug)]
pub(super) struct Display {
    stream: Stream,
    serial: u32,
}

fn broken(what: &str) -> QmpError {
    QmpError::Display(what.to_owned())
}

impl Display {
    /// Introduces us on a socket that QEMU has taken: by our user, which it looks up itself.
    pub(super) fn new(stream: Stream) -> Result<Self, QmpError> {
        let display = Self { stream, serial: 0 };
        let user = rustix::process::getuid().as_raw().to_string();
        let user: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        let deadline = Instant::now() + ANSWER_LIMIT;
        display.send(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            if answer.len() >= 1024 {
                return Err(broken("a long line"));
            }
            let mut byte = [0];
            display.receive(&mut byte, deadline)?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"OK ") {
            return Err(broken("it does not let us in"));
        }
        display.send(b"BEGIN\r\n")?;
        Ok(display)
    }

    /// Says how large a screen is to be.
    pub(super) fn resize(&mut self, head: u8, size: (u32, u32)) -> Result<(), QmpError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.send(&set_ui_info(self.serial, head, size))?;
        self.await_return(Instant::now() + ANSWER_LIMIT)
    }

    fn await_return(&self, deadline: Instant) -> Result<(), QmpError> {
        while Instant::now() < deadline {
            let mut header = [0; HEADER];
            self.receive(&mut header, deadline)?;
            let mut rest = vec![0; rest_len(&header)?];
            self.receive(&mut rest, deadline)?;
            match header[1] {
                METHOD_RETURN => return Ok(()),
                ERROR => return Err(broken("it refused the size")),
                // Signals are for others.
                _ => {}
            }
        }
        Err(late())
    }

    fn send(&self, bytes: &[u8]) -> Result<(), QmpError> {
        let sent = self.stream.send(bytes, &[], Instant::now() + ANSWER_LIMIT);
        sent.map_err(|error| broken(&error.to_string()))
    }

    /// Exactly so many bytes.
    fn receive(&self, mut target: &mut [u8], deadline: Instant) -> Result<(), QmpError> {
        while !target.is_empty() {
            match self.stream.receive(target, &mut Vec::new(), 0) {
                Ok(received) if received.bytes == 0 => return Err(broken("it closed its socket")),
                Ok(received) => target = &mut target[received.bytes..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let stream = self.stream.as_fd();
                    let waited = wait_for(stream, Direction::Read, None, Some(deadline));
                    if waited.map_err(QmpError::System)? == Wake::Deadline {
                        return Err(late());
                    }
                }
                Err(error) => return Err(broken(&error.to_string())),
            }
        }
        Ok(())
    }
}

/// How many bytes follow a header.
fn rest_len(header: &[u8; HEADER]) -> Result<usize, QmpError> {
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        match header[0] {
            b'l' => Ok(u32::from_le_bytes(bytes)),
            b'B' => Ok(u32::from_be_bytes(bytes)),
            _ => Err(broken("no message of D-Bus")),
        }
    };
    let (body, fields) = (number(4)? as usize, number(12)? as usize);
    if header[3] != 1 || body > MESSAGE_MAX || fields > MESSAGE_MAX {
        return Err(broken("a message that cannot be"));
    }
    Ok(fields.next_multiple_of(8) + body)
}

/// The call `SetUIInfo` of a console: millimetres, offset, pixels.
fn set_ui_info(serial: u32, head: u8, (width, height): (u32, u32)) -> Vec<u8> {
    fn pad(bytes: &mut Vec<u8>, unit: usize) {
        bytes.resize(bytes.len().next_multiple_of(unit), 0);
    }
    let path = format!("/org/qemu/Display1/Console_{head}");
    let mut fields = Vec::new();
    for (code, kind, text) in [
        (1, b'o', path.as_str()),
        (2, b's', "org.qemu.Display1.Console"),
        (3, b's', "SetUIInfo"),
    ] {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        fields.extend(length(text.len()));
        fields.extend(text.bytes().chain([0]));
    }
    pad(&mut fields, 8);
    fields.extend(b"\x08\x01g\0\x06qqiiuu\0");
    let mut body = vec![0; 12];
    body.extend(width.to_le_bytes());
    body.extend(height.to_le_bytes());
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    message.extend(length(body.len()));
    message.extend(serial.to_le_bytes());
    message.extend(length(fields.len()));
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_what_the_specification_has() {
        let call = set_ui_info(7, 1, (1600, 900));
        let header: [u8; HEADER] = *call.first_chunk().unwrap();
        assert_eq!(header[..12], *b"l\x01\x00\x01\x14\0\0\0\x07\0\0\0");
        assert_eq!(call.len(), HEADER + rest_len(&header).unwrap());
        let text = String::from_utf8_lossy(&call);
        for word in ["/org/qemu/Display1/Console_1\0", "SetUIInfo\0", "qqiiuu\0"] {
            assert!(text.contains(word), "{word}");
        }
        assert_eq!(call[call.len() - 8..], [64, 6, 0, 0, 132, 3, 0, 0]);
    }

    /// It has signals without end, and no answer.
    #[test]
    fn a_display_that_only_has_signals_does_not_answer() {
        const SIGNAL: u8 = 4;
        let (ours, its) = Stream::pair().unwrap();
        let mut signal = [0; HEADER];
        (signal[0], signal[1], signal[3]) = (b'l', SIGNAL, 1);
        let flood = super::super::qmp::flood(its, &signal);
        let display = Display {
            stream: ours,
            serial: 0,
        };
        let soon = Instant::now() + std::time::Duration::from_millis(100);
        let error = display.await_return(soon).unwrap_err().to_string();
        assert!(error.contains("it does not answer"), "{error}");
        drop(display);
        flood.join().unwrap();
    }

    #[test]
    fn answers_of_any_length_are_checked() {
        let header = |endian, version, body: u32, fields: u32| {
            let mut header = [
                endian,
                METHOD_RETURN,
                0,
                version,
                0,
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            header[4..8].copy_from_slice(&body.to_le_bytes());
            header[12..].copy_from_slice(&fields.to_le_bytes());
            rest_len(&header).ok()
        };
        assert_eq!(header(b'l', 1, 3, 9), Some(19));
        assert_eq!(header(b'B', 1, 0, 0x0100_0000), Some(8));
        for (endian, version, body, fields) in [
            (b'x', 1, 0, 0),
            (b'l', 2, 0, 0),
            (b'l', 1, u32::MAX, 0),
            (b'l', 1, 0, u32::MAX),
            (b'B', 1, 1, 0),
        ] {
            assert_eq!(header(endian, version, body, fields), None);
        }
    }
}

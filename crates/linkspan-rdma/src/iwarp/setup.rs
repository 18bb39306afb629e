//! Request and reply: how two ends agree before the first frame (RFC 5044, 7.1; RFC 6581).

use alloc::vec::Vec;

use super::WireError;
use super::connection::{Connection, Phase};
use super::mpa::{Enhanced, Frame, Kind, PRIVATE_DATA_MAX, Ready};
use crate::verbs::{Depth, Event, Failure, Greeting, PostError};

impl Connection {
    /// Sends the request.
    pub(super) fn ask(&mut self, private_data: &[u8]) {
        let options = &self.options;
        let enhanced = Enhanced {
            inbound: Some(options.depth.inbound),
            outbound: Some(options.depth.outbound),
            ready: options.ready,
        };
        let request = Frame {
            revision: options.revision,
            markers: false,
            crc: options.crc,
            reject: false,
            enhanced: (options.revision > 1).then_some(enhanced),
            private_data: private_data.to_vec(),
        };
        self.tx.raw = request.write(Kind::Request);
    }

    /// Takes bytes of the frame that is awaited.
    pub(super) fn receive_setup(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let kind = match self.phase {
            Phase::Asking { .. } => Kind::Reply,
            Phase::Listening { .. } => Kind::Request,
            // Nothing was due (RFC 5044, 7.1.2).
            _ => return Err(WireError::Early { got: bytes.len() }.into()),
        };
        let setup = &mut self.rx.setup;
        let mut used = 0;
        loop {
            let len = Frame::len(kind, setup)?;
            let missing = len - setup.len();
            if missing == 0 {
                break;
            }
            if used == bytes.len() {
                return Ok(used);
            }
            let part = missing.min(bytes.len() - used);
            setup.extend_from_slice(&bytes[used..used + part]);
            used += part;
        }
        let frame = Frame::read(&core::mem::take(setup));
        match kind {
            Kind::Request => self.request_came(frame)?,
            Kind::Reply => self.reply_came(frame)?,
        }
        if used < bytes.len() && !matches!(self.phase, Phase::Closing { .. }) {
            return Err(WireError::Early {
                got: bytes.len() - used,
            }
            .into());
        }
        Ok(used)
    }

    /// Bytes of the frame that are missing.
    pub(super) fn setup_missing(&self) -> usize {
        let kind = match self.phase {
            Phase::Asking { .. } => Kind::Reply,
            Phase::Listening { .. } => Kind::Request,
            _ => return 1,
        };
        let len = Frame::len(kind, &self.rx.setup).unwrap_or(0);
        len.saturating_sub(self.rx.setup.len()).max(1)
    }

    fn request_came(&mut self, frame: Frame) -> Result<(), Failure> {
        if frame.markers {
            // Rejected by the frame that its sender understands.
            self.tx.raw = reply(&frame, None, true, frame.crc, &[]);
            self.fail(WireError::Markers.into());
            return Ok(());
        }
        let own = self.options.depth;
        let enhanced = frame.enhanced;
        self.events.push_back(Event::Requested(Greeting {
            private_data: frame.private_data.clone(),
            depth: Depth {
                inbound: enhanced.and_then(|it| it.outbound).unwrap_or(own.inbound),
                outbound: enhanced.and_then(|it| it.inbound).unwrap_or(own.outbound),
            },
        }));
        self.phase = Phase::Requested(frame);
        Ok(())
    }

    /// Takes the peer; see [`Verbs`](crate::verbs::Verbs).
    ///
    /// # Errors
    /// There is none, or too much private data.
    pub fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        let Phase::Requested(request) = &self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        self.crc = self.options.crc || request.crc;
        let mut answer = None;
        self.depth = Depth {
            inbound: depth.inbound.min(self.options.inbound_max),
            ..depth
        };
        if let Some(asked) = request.enhanced {
            self.depth = self.agree(asked, depth);
            let all = Ready {
                write: true,
                read: true,
                send: true,
            };
            self.rx.first = asked.ready.and_then(|ready| ready.common(all).best());
            answer = Some(Enhanced {
                inbound: Some(self.depth.inbound),
                outbound: Some(self.depth.outbound),
                ready: self.rx.first,
            });
        }
        self.tx.raw = reply(request, answer, false, self.crc, private_data);
        self.run(Vec::new());
        Ok(())
    }

    /// Does not take the peer.
    ///
    /// # Errors
    /// There is none, or too much private data.
    pub fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        let Phase::Requested(request) = &self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        let own = self.options.depth;
        let answer = request.enhanced.map(|_| Enhanced {
            inbound: Some(own.inbound),
            outbound: Some(own.outbound),
            ready: None,
        });
        self.tx.raw = reply(request, answer, true, request.crc, private_data);
        self.fail(Failure::Disconnected);
        Ok(())
    }

    fn reply_came(&mut self, frame: Frame) -> Result<(), Failure> {
        if frame.revision > self.options.revision {
            return Err(WireError::Revision {
                got: frame.revision,
                max: self.options.revision,
            }
            .into());
        }
        if frame.reject {
            self.events.push_back(Event::Rejected {
                private_data: frame.private_data,
            });
            self.fail(Failure::Rejected);
            return Ok(());
        }
        self.crc |= frame.crc;
        if frame.markers {
            return Err(WireError::Markers.into());
        }
        if let Some(enhanced) = frame.enhanced {
            let max = self.options.inbound_max;
            if let Some(wanted) = enhanced.outbound.filter(|wanted| *wanted > max) {
                return Err(WireError::Depth { wanted, max }.into());
            }
            self.depth = self.agree(enhanced, self.options.depth);
            if let Some(chosen) = enhanced.ready {
                let offered = self.options.ready.unwrap_or_default();
                let begin = chosen.common(offered).best().ok_or(WireError::Ready)?;
                self.tx.begin = Some(begin);
            }
        }
        self.tx.allowed = true;
        self.tx
            .nudge
            .arm(self.options.nudges, self.options.nudge_after);
        self.run(frame.private_data);
        Ok(())
    }

    /// What holds, of what a peer says and what is wanted here: no more reads than it
    /// answers, and as many answered as it wants, up to what is possible.
    fn agree(&self, peer: Enhanced, own: Depth) -> Depth {
        let max = self.options.inbound_max;
        let inbound = own.inbound.max(peer.outbound.unwrap_or(0));
        Depth {
            inbound: inbound.min(max),
            outbound: own.outbound.min(peer.inbound.unwrap_or(own.outbound)),
        }
    }

    fn run(&mut self, private_data: Vec<u8>) {
        self.phase = Phase::Running;
        self.events.push_back(Event::Established(Greeting {
            private_data,
            depth: self.depth,
        }));
    }
}

fn reply(
    request: &Frame,
    enhanced: Option<Enhanced>,
    reject: bool,
    crc: bool,
    private_data: &[u8],
) -> Vec<u8> {
    let frame = Frame {
        revision: request.revision,
        markers: false,
        crc,
        reject,
        enhanced,
        private_data: private_data.to_vec(),
    };
    frame.write(Kind::Reply)
}

/// Whether there is room for it in any frame.
pub(crate) fn check_private(private_data: &[u8]) -> Result<(), PostError> {
    let got = private_data.len();
    if got <= PRIVATE_DATA_MAX {
        return Ok(());
    }
    // 252.
    let max = u32::try_from(PRIVATE_DATA_MAX).unwrap_or(0);
    Err(PostError::Bytes {
        got: got as u64,
        max,
    })
}

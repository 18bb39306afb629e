//! What arrives at a client.

use alloc::vec::Vec;

use crate::error::Error;
use crate::header::{Command, Compound, Header, TRANSFORM_ID, UNSOLICITED, flags};
use crate::io::{ReadResponse, WriteResponse};
use crate::negotiate::{
    Cipher, Contexts, NegotiateResponse, SHA_512, Signing, capabilities, dialect, security_mode,
};
use crate::notify::Break;
use crate::security::{Keys, Sealer, Signer, TRANSFORM_LEN};
use crate::session::{SetupResponse, TreeConnectResponse, session_flags, share_flags};
use crate::status;
use crate::wire::Body;

use super::{Agreed, Client, Event, Pending, Phase, Protection, RequestId, Response};

/// The least that a server has to take at once (MS-SMB2 3.2.5.2).
const SIZE_MIN: u32 = 65_536;

impl Client {
    /// Takes a message that arrived, whole.
    ///
    /// # Errors
    /// The server broke the protocol; the connection has to end.
    pub fn receive(&mut self, message: Vec<u8>) -> Result<(), Error> {
        if matches!(self.phase, Phase::Fresh | Phase::Ended) {
            return Err(Error::State { what: "a message" });
        }
        let result = self.take(message);
        if result.is_err() {
            self.phase = Phase::Ended;
        }
        result
    }

    fn take(&mut self, mut message: Vec<u8>) -> Result<(), Error> {
        let sealed = message.starts_with(&TRANSFORM_ID.to_le_bytes());
        let mut start = 0;
        if sealed {
            let sealer = self.sealer.as_ref();
            sealer
                .ok_or(Error::Sealed { session: 0 })?
                .open(&mut message)?;
            start = TRANSFORM_LEN;
        }
        // The lengths first, so that each message can be changed by its check.
        let mut parts = Vec::new();
        for part in Compound::new(&message[start..]) {
            let (header, bytes) = part?;
            parts.push((header, bytes.len()));
        }
        if let [(header, _)] = parts[..] {
            self.message(header, message, start, sealed)?;
        } else {
            for (header, len) in parts {
                let bytes = message[start..start + len].to_vec();
                start += len;
                self.message(header, bytes, 0, sealed)?;
            }
        }
        if self.credits.held() == 0 && self.pending.is_empty() {
            return Err(Error::NoCredits);
        }
        Ok(())
    }

    fn message(
        &mut self,
        header: Header,
        mut bytes: Vec<u8>,
        start: usize,
        sealed: bool,
    ) -> Result<(), Error> {
        if !header.is(flags::RESPONSE) {
            return Err(Error::Field {
                field: "Flags of a response",
                value: header.flags.get().into(),
            });
        }
        let (id, command) = (header.message_id.get(), header.command()?);
        if id == UNSOLICITED {
            return self.unasked(command, &bytes[start..]);
        }
        let pending = self
            .pending
            .get_mut(&id)
            .ok_or(Error::NotAwaited { message: id })?;
        if pending.command != command {
            return Err(Error::OtherCommand {
                message: id,
                want: pending.command,
                got: command,
            });
        }
        let takes_time = header.status.get() == status::PENDING && header.is(flags::ASYNC);
        check(
            &self.signer,
            pending,
            &header,
            &mut bytes[start..],
            sealed,
            takes_time,
        )?;
        if takes_time {
            // One is enough: the next would be an endless row.
            if pending.async_id.is_some() {
                return Err(Error::Field {
                    field: "AsyncId for the second time",
                    value: header.async_id().unwrap_or_default(),
                });
            }
            pending.async_id = header.async_id();
            self.credits.grant(header.credits.get());
            return Ok(());
        }
        let pending = pending.clone();
        self.pending.remove(&id);
        self.credits.grant(header.credits.get());
        match command {
            Command::Negotiate if header.status.get() == status::SUCCESS => {
                self.negotiated(&bytes[start..])
            }
            Command::SessionSetup => self.logging_on(header, bytes, start),
            _ => {
                let response = Response {
                    id: RequestId(id),
                    header,
                    bytes,
                    start,
                };
                self.answered(&pending, &response)?;
                self.events.push_back(Event::Response(response));
                Ok(())
            }
        }
    }

    /// What a server says unasked: it has no number and no signature (MS-SMB2 3.2.5.19).
    fn unasked(&mut self, command: Command, message: &[u8]) -> Result<(), Error> {
        if command != Command::OplockBreak || self.phase != Phase::Ready {
            return Err(Error::NotAwaited {
                message: UNSOLICITED,
            });
        }
        self.events.push_back(Event::Break(Break::parse(message)?));
        Ok(())
    }

    /// What follows from an answer, and what may not be in it.
    fn answered(&mut self, pending: &Pending, response: &Response) -> Result<(), Error> {
        let more = |what, got: u32| Error::Long {
            what,
            got: got.into(),
            max: pending.payload.into(),
        };
        let message = response.message();
        if response.status() != status::SUCCESS {
            return Ok(());
        }
        match pending.command {
            Command::Read => {
                let read = ReadResponse::read(message)?;
                let length = match pending.remote {
                    true if read.data_length.get() != 0 => {
                        return Err(Error::Field {
                            field: "DataLength of a READ whose data goes by RDMA",
                            value: read.data_length.get().into(),
                        });
                    }
                    true => read.data_remaining.get(),
                    false => read.data_length.get(),
                };
                if length > pending.payload {
                    return Err(more("data of a READ", length));
                }
                read.data(message)?;
            }
            Command::Write => {
                let count = WriteResponse::read(message)?.count.get();
                if count > pending.payload {
                    return Err(more("what was written", count));
                }
            }
            Command::TreeConnect => {
                let tree = TreeConnectResponse::read(message)?;
                if tree.share_flags.get() & share_flags::ENCRYPT_DATA != 0 {
                    self.encrypt()?;
                }
                self.tree = response.header.tree_id.get();
            }
            Command::Logoff => self.phase = Phase::Ended,
            _ => {}
        }
        Ok(())
    }

    fn encrypt(&mut self) -> Result<(), Error> {
        if self.sealer.is_none() {
            return Err(Error::Lacks {
                what: "encryption that both know",
            });
        }
        self.protection.encrypted = true;
        Ok(())
    }

    fn negotiated(&mut self, message: &[u8]) -> Result<(), Error> {
        let response = NegotiateResponse::parse(message)?;
        let fixed = response.fixed;
        let chosen = fixed.dialect.get();
        if !self.options.dialects.contains(&chosen) {
            return Err(Error::NotOffered {
                what: "dialect",
                value: chosen.into(),
            });
        }
        let size = |field, value: u32| match value {
            // A server of less is none that this protocol allows.
            value if value < SIZE_MIN => Err(Error::Field {
                field,
                value: value.into(),
            }),
            value => Ok(value.min(self.options.max_io)),
        };
        let agreed = Agreed {
            dialect: chosen,
            capabilities: fixed.capabilities.get(),
            server_guid: fixed.server_guid,
            security_mode: fixed.security_mode.get(),
            max_transact: size("MaxTransactSize", fixed.max_transact_size.get())?,
            max_read: size("MaxReadSize", fixed.max_read_size.get())?,
            max_write: size("MaxWriteSize", fixed.max_write_size.get())?,
            system_time: fixed.system_time.get(),
            signing: self.signing(chosen, &response.contexts)?,
            cipher: self.cipher(chosen, fixed.capabilities.get(), &response.contexts)?,
        };
        self.limit_sizes(agreed)?;
        self.preauth.update(message);
        self.phase = Phase::LoggingOn;
        self.events
            .push_back(Event::Negotiated(response.token.to_vec()));
        Ok(())
    }

    /// Without large MTU a request costs one credit and carries 64 KiB at most.
    fn limit_sizes(&mut self, mut agreed: Agreed) -> Result<(), Error> {
        if agreed.capabilities & capabilities::LARGE_MTU == 0 {
            for size in [
                &mut agreed.max_transact,
                &mut agreed.max_read,
                &mut agreed.max_write,
            ] {
                *size = (*size).min(SIZE_MIN);
            }
        }
        if self.options.require_encryption && agreed.cipher.is_none() {
            return Err(Error::Lacks {
                what: "encryption that both know",
            });
        }
        self.agreed = Some(agreed);
        Ok(())
    }

    fn signing(&self, chosen: u16, contexts: &Contexts) -> Result<Signing, Error> {
        if chosen < dialect::SMB_3_0 {
            return Ok(Signing::HmacSha256);
        }
        let [id, ..] = contexts.signings[..] else {
            return Ok(Signing::AesCmac);
        };
        let known = Signing::of(id).filter(|signing| self.options.signings.contains(signing));
        known.ok_or(Error::NotOffered {
            what: "signing algorithm",
            value: id.into(),
        })
    }

    fn cipher(&self, chosen: u16, caps: u32, contexts: &Contexts) -> Result<Option<Cipher>, Error> {
        let not_offered = |what, value: u16| Error::NotOffered {
            what,
            value: value.into(),
        };
        if chosen == dialect::SMB_3_1_1 {
            let [SHA_512] = contexts.hashes[..] else {
                let hash = contexts.hashes.first().copied().unwrap_or_default();
                return Err(not_offered("preauthentication hash", hash));
            };
            // 0: none in common.
            let id = contexts.ciphers.first().copied().unwrap_or_default();
            if id == 0 {
                return Ok(None);
            }
            let known = Cipher::of(id).filter(|cipher| self.options.ciphers.contains(cipher));
            return known.map(Some).ok_or(not_offered("cipher", id));
        }
        let both = chosen >= dialect::SMB_3_0
            && caps & capabilities::ENCRYPTION != 0
            && self.options.ciphers.contains(&Cipher::Aes128Ccm);
        Ok(both.then_some(Cipher::Aes128Ccm))
    }

    fn logging_on(
        &mut self,
        header: Header,
        mut bytes: Vec<u8>,
        start: usize,
    ) -> Result<(), Error> {
        let message = &mut bytes[start..];
        match header.status.get() {
            status::MORE_PROCESSING_REQUIRED => {
                let token = SetupResponse::read(message)?.token(message)?.to_vec();
                self.same_session(&header)?;
                self.preauth.update(message);
                self.events.push_back(Event::Token(token));
                Ok(())
            }
            status::SUCCESS => {
                self.same_session(&header)?;
                let flags = SetupResponse::read(message)?.session_flags.get();
                self.logged_on(&header, flags, message)
            }
            _ => {
                let response = Response {
                    id: RequestId(header.message_id.get()),
                    header,
                    bytes,
                    start,
                };
                self.phase = Phase::Ended;
                self.events.push_back(Event::Response(response));
                Ok(())
            }
        }
    }

    /// The first answer names the session, and it stays that one.
    fn same_session(&mut self, header: &Header) -> Result<(), Error> {
        let session = header.session_id.get();
        if session == 0 || (self.session != 0 && self.session != session) {
            return Err(Error::Field {
                field: "SessionId",
                value: session,
            });
        }
        self.session = session;
        Ok(())
    }

    fn logged_on(&mut self, header: &Header, flags: u16, message: &mut [u8]) -> Result<(), Error> {
        let agreed = self.agreed.ok_or(Error::State { what: "a session" })?;
        let guest = flags & (session_flags::IS_GUEST | session_flags::IS_NULL) != 0;
        let named = self.key.is_some();
        let key = self.key.take().filter(|_| !guest);
        if let Some(key) = key {
            let keys = Keys::derive(agreed.dialect, key, &self.preauth, agreed.cipher);
            let signer = Signer::new(agreed.signing, keys.signing);
            if header.is(flags::SIGNED) {
                signer.verify(message)?;
            } else if agreed.dialect == dialect::SMB_3_1_1 {
                return Err(Error::NotSigned {
                    message: header.message_id.get(),
                });
            }
            self.signer = Some(signer);
            let sealer =
                |cipher| Sealer::new(self.session, cipher, &keys.encryption, &keys.decryption);
            self.sealer = agreed.cipher.map(sealer);
        } else if self.options.require_signing || self.options.require_encryption {
            return Err(Error::Lacks {
                what: "a session with a key (it took the user for a guest)",
            });
        } else if named && !self.options.guest_allowed {
            return Err(Error::Guest);
        }
        let required = agreed.security_mode & security_mode::SIGNING_REQUIRED != 0;
        self.protection = Protection {
            signed: self.signer.is_some() && (required || self.options.require_signing),
            encrypted: false,
            guest,
        };
        if self.options.require_encryption || flags & session_flags::ENCRYPT_DATA != 0 {
            self.encrypt()?;
        }
        self.phase = Phase::Ready;
        self.events.push_back(Event::LoggedOn(self.protection));
        Ok(())
    }
}

/// Whether a response is protected as its request was. What says that it takes time has
/// no signature (MS-SMB2 3.2.5.1.3), but it is sealed where all is.
fn check(
    signer: &Option<Signer>,
    pending: &Pending,
    header: &Header,
    bytes: &mut [u8],
    sealed: bool,
    takes_time: bool,
) -> Result<(), Error> {
    let message = header.message_id.get();
    if sealed {
        return Ok(());
    }
    if pending.sealed {
        return Err(Error::NotEncrypted { message });
    }
    let signed = header.is(flags::SIGNED);
    match signer {
        Some(signer) if signed => signer.verify(bytes),
        Some(_) if pending.signed && !takes_time => Err(Error::NotSigned { message }),
        _ => Ok(()),
    }
}

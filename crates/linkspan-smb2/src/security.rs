//! What protects messages: the hash over what was said before there was a key, keys,
//! signatures, encryption (MS-SMB2 3.1.4, 3.1.5).

use alloc::boxed::Box;

use aes::{Aes128, Aes256};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use ccm::Ccm;
use ccm::consts::{U11, U16 as Tag16};
use cmac::Cmac;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::Error;
use crate::header::{Command, Header, TRANSFORM_ID, flags};
use crate::negotiate::{Cipher, Signing, dialect};
use crate::wire::{part, view};

/// Preauthentication integrity (MS-SMB2 3.1.4.4.1): a hash over each message and the hash before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preauth([u8; 64]);

impl Default for Preauth {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Preauth {
    /// A whole message was sent or received.
    pub fn update(&mut self, message: &[u8]) {
        let hash = Sha512::new().chain_update(self.0).chain_update(message);
        self.0 = hash.finalize().into();
    }

    /// The value so far.
    #[must_use]
    pub fn value(&self) -> &[u8; 64] {
        &self.0
    }
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key may have any length; more than a block is hashed, and a session's has 16 bytes.
    let mut block = [0; 64];
    let len = key.len().min(64);
    block[..len].copy_from_slice(&key[..len]);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The key derivation function of MS-SMB2 3.1.4.2: SP800-108 in counter mode, of one
/// round. Label and context come with the zero that ends them; it gives `bits`, at most 256.
#[must_use]
pub fn kdf(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    let (counter, length) = (1_u32.to_be_bytes(), bits.to_be_bytes());
    hmac_sha256(key, &[&counter, label, &[0], context, &length])
}

/// The keys of a session, as its client uses them.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Signs.
    pub signing: [u8; 16],
    /// Encrypts what the client sends; the first half alone with 128 bits.
    pub encryption: [u8; 32],
    /// Decrypts what it gets.
    pub decryption: [u8; 32],
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// From the key of the authentication (MS-SMB2 3.2.5.3.1).
    #[must_use]
    pub fn derive(
        version: u16,
        session: [u8; 16],
        preauth: &Preauth,
        cipher: Option<Cipher>,
    ) -> Self {
        let bits = match cipher {
            Some(Cipher::Aes256Ccm | Cipher::Aes256Gcm) => 256,
            _ => 128,
        };
        let hash: &[u8] = preauth.value();
        let rows: [(&[u8], &[u8]); 3] = match version {
            dialect::SMB_3_1_1 => [
                (b"SMBSigningKey\0", hash),
                (b"SMBC2SCipherKey\0", hash),
                (b"SMBS2CCipherKey\0", hash),
            ],
            _ => [
                (b"SMB2AESCMAC\0", b"SmbSign\0"),
                (b"SMB2AESCCM\0", b"ServerIn \0"),
                (b"SMB2AESCCM\0", b"ServerOut\0"),
            ],
        };
        let signing = if version < dialect::SMB_3_0 {
            session
        } else {
            let key = kdf(&session, rows[0].0, rows[0].1, 128);
            let (key, _) = key.split_at(16);
            core::array::from_fn(|at| key[at])
        };
        Self {
            signing,
            encryption: kdf(&session, rows[1].0, rows[1].1, bits),
            decryption: kdf(&session, rows[2].0, rows[2].1, bits),
        }
    }
}

/// Whether two are the same, in a time that does not say where they differ.
fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    let differ = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    core::hint::black_box(differ) == 0
}

/// Signs messages and checks signatures (MS-SMB2 3.1.4.1, 3.1.5.1).
pub struct Signer {
    way: Way,
}

enum Way {
    Hmac([u8; 16]),
    Cmac(Box<Cmac<Aes128>>),
    Gmac(Box<Aes128Gcm>),
}

impl core::fmt::Debug for Signer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// With this algorithm and key.
    #[must_use]
    pub fn new(signing: Signing, key: [u8; 16]) -> Self {
        let way = match signing {
            Signing::HmacSha256 => Way::Hmac(key),
            Signing::AesCmac => Way::Cmac(Box::new(Cmac::new(&key.into()))),
            Signing::AesGmac => Way::Gmac(Box::new(Aes128Gcm::new(&key.into()))),
        };
        Self { way }
    }

    /// The signature of a message in which it is zero.
    fn compute(&self, message: &[u8]) -> Result<[u8; 16], Error> {
        let mut signature = [0; 16];
        match &self.way {
            Way::Hmac(key) => {
                let mac = hmac_sha256(key, &[message]);
                signature.copy_from_slice(&mac[..16]);
            }
            Way::Cmac(cmac) => {
                let mut mac = (**cmac).clone();
                mac.update(message);
                signature = mac.finalize().into_bytes().into();
            }
            Way::Gmac(gcm) => {
                let nonce = gmac_nonce(&Header::parse(message)?);
                let tag = gcm.encrypt_inout_detached(&nonce.into(), message, (&mut [][..]).into());
                // It fails for 2^36 bytes and more.
                signature = tag.map_err(|_| too_long(message.len()))?.into();
            }
        }
        Ok(signature)
    }

    /// Signs a message: sets the flag and the signature.
    ///
    /// # Errors
    /// It has no header.
    pub fn sign(&self, message: &mut [u8]) -> Result<(), Error> {
        let mut header = Header::parse(message)?;
        header.flags |= U32::new(flags::SIGNED);
        header.signature = [0; 16];
        message[..Header::LEN].copy_from_slice(header.as_bytes());
        let signature = self.compute(message)?;
        message[Header::SIGNATURE].copy_from_slice(&signature);
        Ok(())
    }

    /// Checks the signature of a message. The message is the same afterwards.
    ///
    /// # Errors
    /// [`Error::Signature`], or it has no header.
    pub fn verify(&self, message: &mut [u8]) -> Result<(), Error> {
        let header = Header::parse(message)?;
        message[Header::SIGNATURE].fill(0);
        let signature = self.compute(message);
        message[Header::SIGNATURE].copy_from_slice(&header.signature);
        if same(&signature?, &header.signature) {
            return Ok(());
        }
        Err(Error::Signature {
            message: header.message_id.get(),
        })
    }
}

/// What makes each signature by GMAC another one (MS-SMB2 3.1.4.1).
fn gmac_nonce(header: &Header) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(header.message_id.as_bytes());
    nonce[8] = u8::from(header.is(flags::RESPONSE));
    nonce[8] |= u8::from(header.command.get() == Command::Cancel as u16) << 1;
    nonce
}

fn too_long(len: usize) -> Error {
    Error::Long {
        what: "a message",
        got: len as u64,
        max: u32::MAX.into(),
    }
}

part! {
    /// What stands before an encrypted message (MS-SMB2 2.2.41).
    Transform {
        protocol_id: U32,
        signature: [u8; 16],
        nonce: [u8; 16],
        size: U32,
        reserved: U16,
        flags: U16,
        session_id: U64,
    }
}

/// Bytes of a [`Transform`].
pub const TRANSFORM_LEN: usize = size_of::<Transform>();

/// From where on the transform header is authenticated.
const AUTHENTICATED: usize = 20;

/// `Flags`: encrypted. In 3.0 the same number is the algorithm.
const ENCRYPTED: u16 = 1;

enum Aead {
    Ccm128(Ccm<Aes128, Tag16, U11>),
    Gcm128(Aes128Gcm),
    Ccm256(Ccm<Aes256, Tag16, U11>),
    Gcm256(Aes256Gcm),
}

impl Aead {
    fn new(cipher: Cipher, key: &[u8; 32]) -> Self {
        let (short, _) = key.split_at(16);
        let half: [u8; 16] = core::array::from_fn(|at| short[at]);
        match cipher {
            Cipher::Aes128Ccm => Self::Ccm128(Ccm::new(&half.into())),
            Cipher::Aes128Gcm => Self::Gcm128(Aes128Gcm::new(&half.into())),
            Cipher::Aes256Ccm => Self::Ccm256(Ccm::new(&(*key).into())),
            Cipher::Aes256Gcm => Self::Gcm256(Aes256Gcm::new(&(*key).into())),
        }
    }
}

/// Runs one of the methods of the four; nonces have 11 bytes with CCM and 12 with GCM.
macro_rules! each {
    ($aead:expr, $nonce:expr, |$cipher:ident, $short:ident| $call:expr) => {{
        let (mut ccm, mut gcm) = ([0; 11], [0; 12]);
        ccm.copy_from_slice(&$nonce[..11]);
        gcm.copy_from_slice(&$nonce[..12]);
        match $aead {
            Aead::Ccm128($cipher) => {
                let $short = ccm.into();
                $call
            }
            Aead::Ccm256($cipher) => {
                let $short = ccm.into();
                $call
            }
            Aead::Gcm128($cipher) => {
                let $short = gcm.into();
                $call
            }
            Aead::Gcm256($cipher) => {
                let $short = gcm.into();
                $call
            }
        }
    }};
}

/// Encrypts what one end sends and decrypts what it gets (MS-SMB2 3.1.4.3, 3.1.5.1).
pub struct Sealer {
    session: u64,
    seals: Box<Aead>,
    opens: Box<Aead>,
    /// Of the next message: no nonce may come twice with one key.
    nonce: u64,
}

impl core::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Sealer({:#x}, {})", self.session, self.nonce)
    }
}

impl Sealer {
    /// With what encrypts, and what decrypts.
    #[must_use]
    pub fn new(session: u64, cipher: Cipher, seals: &[u8; 32], opens: &[u8; 32]) -> Self {
        Self {
            session,
            seals: Box::new(Aead::new(cipher, seals)),
            opens: Box::new(Aead::new(cipher, opens)),
            nonce: 1,
        }
    }

    /// Encrypts what stands behind [`TRANSFORM_LEN`] bytes, and fills those in.
    ///
    /// # Errors
    /// It is longer than can be said, or shorter than that.
    pub fn seal(&mut self, message: &mut [u8]) -> Result<(), Error> {
        let len = message.len();
        let Some((head, data)) = message.split_at_mut_checked(TRANSFORM_LEN) else {
            return Err(short(len));
        };
        let mut transform = Transform {
            protocol_id: TRANSFORM_ID.into(),
            size: u32::try_from(data.len()).map_err(|_| too_long(len))?.into(),
            flags: ENCRYPTED.into(),
            session_id: self.session.into(),
            ..Transform::default()
        };
        transform.nonce[..8].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        let nonce = transform.nonce;
        let aad = &transform.as_bytes()[AUTHENTICATED..];
        let tag = each!(&*self.seals, nonce, |cipher, nonce| {
            cipher.encrypt_inout_detached(&nonce, aad, data.into())
        });
        transform.signature = tag.map_err(|_| too_long(len))?.into();
        head.copy_from_slice(transform.as_bytes());
        Ok(())
    }

    /// Decrypts a message in its place: what it says is behind [`TRANSFORM_LEN`] bytes.
    ///
    /// # Errors
    /// It is of another session, not whole, or was changed.
    pub fn open(&self, message: &mut [u8]) -> Result<(), Error> {
        let transform = Transform::parse(message)?;
        let session = transform.session_id.get();
        let sealed = Error::Sealed { session };
        if session != self.session {
            return Err(sealed);
        }
        let aad: [u8; TRANSFORM_LEN - AUTHENTICATED] =
            core::array::from_fn(|at| message[AUTHENTICATED + at]);
        let data = &mut message[TRANSFORM_LEN..];
        let opened = each!(&*self.opens, transform.nonce, |cipher, nonce| {
            cipher.decrypt_inout_detached(&nonce, &aad, data.into(), &transform.signature.into())
        });
        opened.map_err(|_| sealed)
    }
}

impl Transform {
    /// Reads what stands before an encrypted message.
    ///
    /// # Errors
    /// It is not there, or another size is said than the message has.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let transform: Self = view("a transform header", message)?;
        let got = transform.protocol_id.get();
        if got != TRANSFORM_ID {
            return Err(Error::Protocol { got });
        }
        let size = transform.size.get();
        if size as usize != message.len() - TRANSFORM_LEN {
            return Err(Error::Field {
                field: "OriginalMessageSize",
                value: size.into(),
            });
        }
        let flags = transform.flags.get();
        if flags != ENCRYPTED {
            return Err(Error::Field {
                field: "Flags of a transform header",
                value: flags.into(),
            });
        }
        Ok(transform)
    }
}

fn short(got: usize) -> Error {
    Error::Short {
        what: "a transform header",
        got,
        want: TRANSFORM_LEN,
    }
}

//! Credits of a client: how many messages may be sent, and their numbers.
//!
//! A credit is one number in a row (MS-SMB2 3.2.4.1.2). A request takes as many as its
//! charge, beginning with its MessageId; a response brings some. A server grants what it
//! likes, so what is held is bounded here.

use crate::error::Error;

/// Bytes that one credit pays for (MS-SMB2 3.2.4.1.5).
pub(crate) const CREDIT_BYTES: u32 = 65_536;

/// Credits that are held at most; Windows servers grant 8192.
const HELD_MAX: u32 = 8192;

/// Credits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    next: u64,
    held: u32,
    wanted: u16,
}

impl Credits {
    /// One credit and number 0, as a connection begins; as many as `wanted` are asked for.
    #[must_use]
    pub fn new(wanted: u16) -> Self {
        Self {
            next: 0,
            held: 1,
            wanted,
        }
    }

    /// Credits that are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// What a request with this payload, or room for this much, costs.
    ///
    /// # Errors
    /// More than any charge can say.
    pub fn charge(bytes: u32) -> Result<u16, Error> {
        let charge = bytes.saturating_sub(1) / CREDIT_BYTES + 1;
        u16::try_from(charge).map_err(|_| Error::Long {
            what: "a payload",
            got: bytes.into(),
            max: u64::from(u16::MAX) * u64::from(CREDIT_BYTES),
        })
    }

    /// Takes what a request costs, and its number.
    ///
    /// # Errors
    /// There are not as many.
    pub fn take(&mut self, charge: u16) -> Result<u64, Error> {
        let need = u32::from(charge.max(1));
        self.held = self.held.checked_sub(need).ok_or(Error::Credits {
            need,
            have: self.held,
        })?;
        let message = self.next;
        self.next += u64::from(need);
        Ok(message)
    }

    /// What a request of this charge asks for: its own again, and what is missing.
    #[must_use]
    pub fn request(&self, charge: u16) -> u16 {
        let missing = u32::from(self.wanted).saturating_sub(self.held);
        let missing = u16::try_from(missing).unwrap_or(self.wanted);
        missing.max(charge).max(1)
    }

    /// A response brought some.
    pub fn grant(&mut self, credits: u16) {
        self.held = (self.held + u32::from(credits)).min(HELD_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_is_one_for_each_64_kib_begun() {
        for (bytes, charge) in [(0, 1), (1, 1), (65_536, 1), (65_537, 2), (8 << 20, 128)] {
            assert_eq!(Credits::charge(bytes), Ok(charge), "{bytes}");
        }
        assert!(Credits::charge(u32::MAX).is_err());
    }

    #[test]
    fn numbers_go_on_by_the_charge_and_end_with_the_credits() {
        let mut credits = Credits::new(64);
        assert_eq!(credits.take(1), Ok(0));
        assert_eq!(credits.take(1), Err(Error::Credits { need: 1, have: 0 }));
        credits.grant(10);
        assert_eq!(credits.take(4), Ok(1));
        assert_eq!(credits.take(0), Ok(5));
        assert_eq!(credits.take(6), Err(Error::Credits { need: 6, have: 5 }));
        assert_eq!(credits.held(), 5);
        assert_eq!(credits.request(1), 59);
    }

    #[test]
    fn a_server_that_grants_without_end_is_not_counted_without_end() {
        let mut credits = Credits::new(64);
        for _ in 0..100_000 {
            credits.grant(u16::MAX);
        }
        assert_eq!(credits.held(), HELD_MAX);
    }
}

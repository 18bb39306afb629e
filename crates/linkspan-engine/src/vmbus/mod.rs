//! VMBus channels: rings with what signals their ends, and the socket at which a
//! guest and a host of ours meet.

mod channel;
mod framed;

pub use channel::{Channel, ChannelError, End, FlushError, Offer};
pub use framed::{Framed, FramedError};

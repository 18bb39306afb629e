//! What comes to a supervisor from outside (`supervisor`): planes, questions at its control
//! socket, what its links answer, and what it answers itself.

use linkspan::outside;

/// The target `supervisor`.
pub fn target(bytes: &[u8]) {
    outside::take(bytes);
}

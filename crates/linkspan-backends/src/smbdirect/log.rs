//! What has changed on a connection since it was looked at last, as lines of the classes
//! that are wanted. What is not wanted costs one look at a number.

use linkspan_smbdirect::Status;

use super::Classes;

/// Says what is different; `number` is the connection's.
pub(super) fn changes(classes: Classes, number: u64, before: &Status, after: &Status) {
    let (old, new) = (&before.traffic, &after.traffic);
    if classes.contains(Classes::EVENT) && before.state != after.state {
        tracing::info!(
            connection = number,
            "event: {} after {}",
            after.state,
            before.state
        );
    }
    if classes.contains(Classes::SEND) && old.sends != new.sends {
        tracing::info!(
            connection = number,
            "send: {} messages of {} bytes, {} of them empty, {} wait",
            new.sends - old.sends,
            new.bytes_sent - old.bytes_sent,
            new.empty_sends - old.empty_sends,
            after.waiting,
        );
    }
    if classes.contains(Classes::RECEIVE) && old.receives != new.receives {
        tracing::info!(
            connection = number,
            "receive: {} messages of {} bytes, {} of them empty, {} bytes are missing",
            new.receives - old.receives,
            new.bytes_received - old.bytes_received,
            new.empty_receives - old.empty_receives,
            after.missing_bytes,
        );
    }
    let credits = |status: &Status| {
        let Status {
            send_credits,
            receives_available,
            receives_granted,
            receive_credit_target,
            ..
        } = *status;
        [
            send_credits,
            receives_available,
            receives_granted,
            receive_credit_target,
        ]
    };
    if classes.contains(Classes::CREDIT) && credits(before) != credits(after) {
        tracing::info!(
            connection = number,
            "credit: {} held of {}; {} granted of {}, {} more posted",
            after.send_credits,
            after.send_credit_target,
            after.receives_granted,
            after.receive_credit_target,
            after.receives_available,
        );
    }
    if classes.contains(Classes::KEEP_ALIVE) {
        if old.keepalives != new.keepalives {
            tracing::info!(connection = number, "keep-alive: the peer was asked");
        }
        if before.awaits_sign_of_life && !after.awaits_sign_of_life {
            tracing::info!(
                connection = number,
                "keep-alive: the peer gave a sign of life"
            );
        }
    }
    memory(classes, number, before, after);
}

fn memory(classes: Classes, number: u64, before: &Status, after: &Status) {
    let (old, new) = (&before.traffic, &after.traffic);
    let moved = (new.writes - old.writes, new.reads - old.reads);
    if !classes.contains(Classes::MEMORY)
        || (before.registrations == after.registrations && moved == (0, 0))
    {
        return;
    }
    let [ready, registered, invalidated, error, disabled] = after.registrations;
    tracing::info!(
        connection = number,
        "memory: {} RDMA writes and {} reads; registrations: {ready} ready, {registered} registered, \
         {invalidated} invalidated, {error} in error, {disabled} disabled",
        moved.0,
        moved.1,
    );
}

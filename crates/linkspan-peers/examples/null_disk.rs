//! A disk that takes no time on rust-vmm's `vhost-user-backend`, for `cargo xtask
//! bench blk` to hold ours against.
//!
//! ```text
//! cargo run --release -p linkspan-peers --example null_disk -- /tmp/disk.sock 1073741824 1
//! ```

use std::error::Error;
use std::path::Path;

use linkspan_peers::rust_vmm_back_end::{Manner, RustVmmBackEnd};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, bytes, queues] = &arguments[..] else {
        return Err("usage: null_disk SOCKET BYTES QUEUES".into());
    };
    let manner = Manner {
        queues: queues.parse()?,
        ..Manner::USUAL
    };
    let _back_end = RustVmmBackEnd::null(Path::new(socket), bytes.parse()?, manner);
    loop {
        std::thread::park();
    }
}

//! Connections of SMB Direct that say nothing, for `cargo xtask bench smbdirect`: what a
//! listener takes for them is looked at from outside.
//!
//! ```text
//! idle_smbdirect ADDRESS COUNT
//! ```
//!
//! It prints `ready` when all have negotiated, and stays until its standard input ends.

use std::error::Error;
use std::io::Read as _;
use std::net::SocketAddr;

use linkspan_backends::smbdirect::{Config, Endpoint, Happening};
use linkspan_smbdirect::{Options, Role};

/// Connections that are being made at a time: a listener has a limit for each address.
const CONNECTING: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, count] = &arguments[..] else {
        return Err("usage: idle_smbdirect ADDRESS COUNT".into());
    };
    let (address, count): (SocketAddr, usize) = (address.parse()?, count.parse()?);
    let options = Options::initiator();
    let mut config = Config::new(Role::Initiator, options);
    config.iwarp.connections = count;
    let mut endpoint = Endpoint::new(config)?;
    let (mut begun, mut connected) = (0, 0);
    while connected < count {
        while begun < count && begun - connected < CONNECTING {
            endpoint.connect(address)?;
            begun += 1;
        }
        endpoint.wait(None)?;
        while let Some((_, happening)) = endpoint.poll() {
            match happening {
                Happening::Connected => connected += 1,
                Happening::Ended(gone) => return Err(gone.to_string().into()),
                _ => {}
            }
        }
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

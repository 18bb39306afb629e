//! What `cargo xtask bench smb` measures with: one file of a share, read or written again and
//! again with several requests in flight, the same client over SMB Direct and TCP.
//!
//! ```text
//! smb_stream samba FOLDER                              Samba's server, with a folder below this one
//! smb_stream read|write rdma|tcp ADDRESS:PORT SHARE FILE SECONDS [USER]
//! ```
//!
//! The server prints `{"port", "user", "process", "share"}` and stays until its standard input ends. The
//! client has the password from `SMB_PASSWORD`. It prints bytes, bytes a second, its processor
//! seconds, and what carried the messages. Nothing is kept of what is read.

use std::error::Error;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_backends::smb::{Login, Room, Settings, Share, There, Wanted};
use linkspan_testkit::samba::{PASSWORD, Samba};
use rustix::time::{ClockId, clock_gettime};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["samba", folder] => samba(Path::new(folder)),
        [
            way @ ("read" | "write"),
            transport,
            address,
            share,
            file,
            seconds,
        ] => {
            let mut share = open(transport, address, share, "")?;
            stream(&mut share, way, file, seconds.parse()?)
        }
        [
            way @ ("read" | "write"),
            transport,
            address,
            share,
            file,
            seconds,
            user,
        ] => {
            let mut share = open(transport, address, share, user)?;
            stream(&mut share, way, file, seconds.parse()?)
        }
        _ => Err("usage: smb_stream samba|read|write, see the source".into()),
    }
}

fn samba(folder: &Path) -> Result<(), Failure> {
    let samba = Samba::start_below(folder, &[]).ok_or("there is no Samba")?;
    println!(
        "{{\"port\":{},\"user\":{:?},\"process\":{},\"share\":{:?},\"password\":{PASSWORD:?}}}",
        samba.port,
        samba.user,
        samba.process(),
        samba.share(),
    );
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn open(transport: &str, address: &str, share: &str, user: &str) -> Result<Share, Failure> {
    let address: SocketAddr = address.parse()?;
    let settings = Settings {
        transport: match transport {
            "rdma" => Wanted::Rdma,
            _ => Wanted::Tcp,
        },
        rdma_port: address.port(),
        ..Settings::default()
    };
    let login = Login {
        user: user.into(),
        domain: String::new(),
        password: std::env::var("SMB_PASSWORD").unwrap_or_default(),
    };
    let host = address.ip().to_string();
    Ok(Share::open(
        &host,
        address.port(),
        share,
        &login,
        &settings,
    )?)
}

/// Processor seconds of this process.
fn cpu() -> f64 {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))
        .map_or(0.0, |time| time.as_secs_f64())
}

fn stream(share: &mut Share, way: &str, path: &str, seconds: f64) -> Result<(), Failure> {
    let open = match way {
        "read" => share.open_read(path)?,
        _ => share.open_write(path, There::Keep)?,
    };
    let size = open.meta.size;
    if size == 0 {
        return Err(format!("{path} is empty").into());
    }
    let content = vec![7; 8 << 20];
    let mut bytes = 0;
    let (begin, before) = (Instant::now(), cpu());
    while begin.elapsed().as_secs_f64() < seconds {
        match way {
            "read" => share.read(&open, 0, size, |_, data| {
                bytes += data.len() as u64;
                Ok(())
            })?,
            _ => {
                let source = |_, piece: Room<'_>| {
                    let len = piece.len();
                    piece.copy_from(&content[..len]);
                    Ok(())
                };
                share.write(&open, 0, size, source, |count| bytes += count)?;
            }
        }
    }
    let (took, cpu) = (begin.elapsed().as_secs_f64(), cpu() - before);
    let carried = share.connection().transport().to_string();
    let described = share.describe();
    share.close(open)?;
    println!(
        "{{\"bytes\":{bytes},\"bytes_per_second\":{},\"cpu_seconds\":{cpu},\"over\":{:?}}}",
        bytes as f64 / took,
        format!("{carried}, {described}"),
    );
    Ok(())
}

//! QEMU with a screen in a file, and no guest that runs: its ramfb device shows memory of
//! which the guest's firmware would say where it is. We say it in its place, by the protocol
//! of QEMU's own tests (qtest) and its fw_cfg device (docs/specs/fw_cfg.rst).

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Ports of fw_cfg: which file, its bytes, and the address of a transfer in two halves.
const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const TRANSFER: [u16; 2] = [0x514, 0x518];
/// The list of files.
const DIRECTORY: u16 = 0x19;
/// Bits of a transfer: choose the file, write it.
const SELECT_AND_WRITE: u32 = 0x18;
/// Places of a transfer and of what is written, in the guest's memory.
const PLACE: u32 = 0x1000;
const BYTES: u64 = 0x2000;
/// DRM's XRGB8888.
const XR24: u32 = 0x3432_5258;

/// QEMU's options.
pub(super) fn arguments(memory: &Path, len: u64, control: &Path, port: u16) -> Vec<String> {
    let (memory, control) = (memory.display(), control.display());
    let display = u32::from(port).saturating_sub(5900);
    let words = format!(
        "-nodefaults -no-user-config -machine pc,memory-backend=m -accel tcg -S -m {} \
         -object memory-backend-file,id=m,size={len},mem-path={memory},share=on -vga none \
         -device ramfb -display none -vnc 127.0.0.1:{display} -qtest-log none \
         -qtest unix:{control},server=on,wait=off",
        len >> 20
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// Has QEMU show the picture at `offset` of its memory.
pub(super) fn show(control: &Path, memory: &File, offset: u64, size: (u32, u32)) -> Result<()> {
    let mut qtest = Qtest::connect(control)?;
    let file = qtest.find(b"etc/ramfb")?;
    let (width, height) = size;
    let mut said = offset.to_be_bytes().to_vec();
    for number in [XR24, 0, width, height, width * 4] {
        said.extend(number.to_be_bytes());
    }
    memory.write_all_at(&said, BYTES)?;
    let mut transfer = (u32::from(file) << 16 | SELECT_AND_WRITE)
        .to_be_bytes()
        .to_vec();
    transfer.extend(u32::try_from(said.len())?.to_be_bytes());
    transfer.extend(BYTES.to_be_bytes());
    memory.write_all_at(&transfer, PLACE.into())?;
    // In the order of bytes of the device, which is not this machine's.
    let low = PLACE.swap_bytes();
    qtest.say(&format!("outl {:#x} 0", TRANSFER[0]))?;
    qtest.say(&format!("outl {:#x} {low:#x}", TRANSFER[1]))?;
    let mut control = [0; 4];
    memory.read_exact_at(&mut control, PLACE.into())?;
    ensure!(control == [0; 4], "fw_cfg refuses: {control:?}");
    Ok(())
}

struct Qtest {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Qtest {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    /// Says a line: what is answered behind OK.
    fn say(&mut self, line: &str) -> Result<String> {
        writeln!(self.stream, "{line}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let rest = answer.trim().strip_prefix("OK");
        let rest = rest.with_context(|| format!("{line}: {answer}"))?;
        Ok(rest.trim().to_owned())
    }

    fn byte(&mut self) -> Result<u8> {
        let said = self.say(&format!("inb {DATA:#x}"))?;
        let digits = said.strip_prefix("0x").context("no number")?;
        Ok(u8::try_from(u32::from_str_radix(digits, 16)?)?)
    }

    /// The number of a file.
    fn find(&mut self, name: &[u8]) -> Result<u16> {
        self.say(&format!("outw {SELECTOR:#x} {DIRECTORY:#x}"))?;
        let mut count = [0; 4];
        for byte in &mut count {
            *byte = self.byte()?;
        }
        for _ in 0..u32::from_be_bytes(count) {
            // Its length, its number, nothing, its name.
            let mut entry = [0; 64];
            for byte in &mut entry {
                *byte = self.byte()?;
            }
            if entry[8..].starts_with(name) {
                return Ok(u16::from_be_bytes([entry[4], entry[5]]));
            }
        }
        anyhow::bail!("QEMU has no ramfb")
    }
}

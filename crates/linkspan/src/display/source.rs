//! SOURCE: what a screen is looked at through.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{OsStringValueParser, TypedValueParser};
use linkspan_backends::display::{
    GpuSource, Screen, Source, SourceError, Sysfs, VfioError, VfioOptions, VfioSource, VfioSpec,
    VfioUserSource, Way,
};
use linkspan_display::Loss;
use linkspan_sys::vfio::{Kernel, Linux, Process};

use crate::exit::{Failure, Status};
use crate::sandbox::Group;

/// What a screen is looked at through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceSpec {
    /// The socket of a GPU of ours.
    Socket(PathBuf),
    /// A device of VFIO.
    Vfio(VfioSpec),
    /// The socket of a device over vfio-user.
    VfioUser(PathBuf),
}

/// SOURCE and which of its screens.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceArgs {
    /// Whose screen: the socket of `linkspan gpu --display` or `linkspan display serve
    /// --display`, vfio-user:PATH for a device over vfio-user without another client, the UUID of a mediated device, a
    /// PCI address, /dev/vfio/devices/vfioN, /dev/vfio/N, a device in /sys, or pid:N for a
    /// process that has one (pid:N/FD for one of several)
    #[arg(value_name = "SOURCE", value_parser = parser(), required_unless_present = "fd")]
    source: Option<SourceSpec>,

    /// Look at the VFIO device of this descriptor, which was passed to this program
    #[arg(long, value_name = "N", conflicts_with = "source", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<i32>,

    /// Which screen of it, from 0
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..16))]
    head: u8,

    /// Look at what another process has although its driver may not be safe for that, and
    /// let it be told of another screen
    #[arg(long)]
    force: bool,

    /// Read a VFIO device this way and no other
    #[arg(long, value_name = "WAY", value_enum)]
    way: Option<WayChoice>,
}

/// A way to the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum WayChoice {
    /// A region of the device, mapped.
    Region,
    /// A dma-buf, mapped.
    DmaBuf,
    /// The registers of a device that is known.
    Registers,
}

fn parser() -> impl TypedValueParser<Value = SourceSpec> {
    OsStringValueParser::new().map(|text| SourceSpec::parse(&text))
}

impl SourceSpec {
    /// Whatever is nothing else is the path of a socket.
    fn parse(text: &std::ffi::OsStr) -> Self {
        let path = Path::new(text);
        let word = text.to_str().unwrap_or_default();
        if let Some(path) = word.strip_prefix("vfio-user:") {
            return Self::VfioUser(path.into());
        }
        if let Some((pid, fd)) = word.strip_prefix("pid:").and_then(process) {
            return Self::Vfio(VfioSpec::Process { pid, fd });
        }
        if path.starts_with("/dev/vfio") || path.starts_with("/sys") {
            return Self::Vfio(VfioSpec::Path(path.into()));
        }
        if is_uuid(word) || is_pci_address(word) {
            return Self::Vfio(VfioSpec::Name(word.to_ascii_lowercase()));
        }
        Self::Socket(path.into())
    }
}

fn process(text: &str) -> Option<(u32, Option<i32>)> {
    match text.split_once('/') {
        Some((pid, fd)) => Some((pid.parse().ok()?, Some(fd.parse().ok()?))),
        None => Some((text.parse().ok()?, None)),
    }
}

/// Whether digits of base 16 lie between these separators, so many each.
fn has_form(text: &str, parts: &[usize], separators: &[char]) -> bool {
    let mut lengths = parts.iter();
    let right = |part: &str| {
        let len = lengths.next().copied();
        Some(part.len()) == len && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let all = text.split(separators).all(right);
    all && lengths.next().is_none()
}

fn is_uuid(text: &str) -> bool {
    has_form(text, &[8, 4, 4, 4, 12], &['-'])
}

fn is_pci_address(text: &str) -> bool {
    has_form(text, &[4, 2, 2, 1], &[':', '.'])
}

impl SourceArgs {
    /// The source.
    pub(crate) fn source(&self) -> Result<Opened, Failure> {
        if let Some(fd) = self.fd {
            // Another descriptor of the same open file, so that nobody's is taken away.
            let passed = Process::open(std::process::id()).and_then(|ours| ours.take(fd));
            let passed = passed.map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("no descriptor {fd}"));
                Failure::new(Status::Usage, error)
            })?;
            let source = VfioSource::passed(&kernel(), passed, self.options());
            return source.map(Opened::vfio).map_err(refused);
        }
        match &self.source {
            Some(SourceSpec::Vfio(spec)) => {
                let source = VfioSource::open(&kernel(), &Sysfs::default(), spec, self.options());
                source.map(Opened::vfio).map_err(refused)
            }
            Some(SourceSpec::Socket(path)) => {
                let source = GpuSource::connect(path);
                let source = source.map_err(|error| no_screen(path, error))?;
                Ok(Opened::Gpu(Box::new(source)))
            }
            Some(SourceSpec::VfioUser(path)) => {
                let source = VfioUserSource::connect(path);
                let source = source.map_err(|error| no_screen(path, error))?;
                Ok(Opened::VfioUser(Box::new(source)))
            }
            None => Err(anyhow::anyhow!("no source").into()),
        }
    }

    fn options(&self) -> VfioOptions {
        VfioOptions {
            force: self.force,
            way: self.way.map(|way| match way {
                WayChoice::Region => Way::Region,
                WayChoice::DmaBuf => Way::DmaBuf,
                WayChoice::Registers => Way::Registers,
            }),
        }
    }
}

/// SOURCE, which of its screens, and what of that is seen.
#[derive(Debug, clap::Args)]
pub(crate) struct ScreenArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Draw the sprites of the screen over its picture, each at its place. Without this they
    /// are left out
    #[arg(long)]
    pub(crate) compose: bool,
}

impl ScreenArgs {
    /// What a process does of system calls that looks at it.
    pub(crate) fn groups(&self) -> &'static [Group] {
        match &self.source.source {
            Some(SourceSpec::Socket(_) | SourceSpec::VfioUser(_)) => &[],
            Some(SourceSpec::Vfio(_)) | None => &[Group::Vfio],
        }
    }

    /// The screen, which nobody has looked at.
    pub(crate) fn open(&self) -> Result<Screen, Failure> {
        let source: Box<dyn Source> = match self.source.source()? {
            Opened::Gpu(source) => source,
            Opened::Vfio(source) => source,
            Opened::VfioUser(source) => source,
        };
        let mut screen = Screen::new(source, self.source.head)?;
        if self.compose {
            screen.compose();
        }
        Ok(screen)
    }
}

/// A source that is open.
#[derive(Debug)]
pub(crate) enum Opened {
    Gpu(Box<GpuSource>),
    Vfio(Box<VfioSource>),
    VfioUser(Box<VfioUserSource>),
}

/// A socket that cannot be looked at.
fn no_screen(path: &Path, error: SourceError) -> Failure {
    let status = status(&error);
    let error = anyhow::Error::new(error).context(format!("no screen at {}", path.display()));
    Failure::new(status, error)
}

impl Opened {
    fn vfio(source: VfioSource) -> Self {
        Self::Vfio(Box::new(source))
    }
}

fn kernel() -> Arc<dyn Kernel> {
    Arc::new(Linux)
}

/// A device that cannot be looked at: what is missing, and what to do.
pub(crate) fn refused(error: VfioError) -> Failure {
    let status = match &error {
        error if error.is_missing() => Status::Missing,
        error if error.is_unreachable() => Status::PeerUnreachable,
        VfioError::NotDevice { .. } => Status::Usage,
        _ => Status::Failed,
    };
    let hint = error.hint();
    let failure = Failure::new(status, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What a program ends with when a source fails.
pub(crate) fn status(error: &SourceError) -> Status {
    match error {
        SourceError::Broken(_) => Status::PeerBroke,
        SourceError::System { source, .. } => match source.kind() {
            std::io::ErrorKind::PermissionDenied => Status::Missing,
            _ => Status::PeerUnreachable,
        },
        SourceError::Lost(Loss::Ended | Loss::Removed) => Status::PeerUnreachable,
        SourceError::Unsupported(_) => Status::Missing,
        _ => Status::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_by_its_form() {
        let parse = |text: &str| SourceSpec::parse(text.as_ref());
        let vfio = |spec| SourceSpec::Vfio(spec);
        let uuid = "c0ffee00-1234-5678-9ABC-def012345678";
        let name = VfioSpec::Name(uuid.to_ascii_lowercase());
        assert_eq!(parse(uuid), vfio(name));
        let name = VfioSpec::Name("0000:00:02.0".into());
        assert_eq!(parse("0000:00:02.0"), vfio(name));
        let process = |pid, fd| vfio(VfioSpec::Process { pid, fd });
        assert_eq!(parse("pid:12"), process(12, None));
        assert_eq!(parse("pid:12/7"), process(12, Some(7)));
        assert_eq!(parse("vfio-user:/a b"), SourceSpec::VfioUser("/a b".into()));
        for path in ["/dev/vfio/3", "/dev/vfio/devices/vfio0", "/sys/devices/x"] {
            assert_eq!(parse(path), vfio(VfioSpec::Path(path.into())));
        }
        for path in [
            "/tmp/s",
            "pid:x",
            "pid:1/",
            "12",
            "c0ffee00-1234",
            "0000:00:02.00",
        ] {
            assert_eq!(parse(path), SourceSpec::Socket(path.into()), "{path}");
        }
    }
}

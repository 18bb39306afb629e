//! `linkspan display show`: the planes of a source, and how they are read.

use std::fmt::Write as _;

use linkspan_backends::display::{Region, Shown, Source, Verdict, VfioSource};
use linkspan_display::region::Capability;
use linkspan_display::{Layout, Loss, RefusedPlane};
use serde::Serialize;

use super::source::{Opened, SourceArgs, refused, status};
use crate::exit::Failure;

/// Options of `linkspan display show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan display show c0ffee00-1234-5678-9abc-def012345678\n  \
    linkspan display show /dev/vfio/devices/vfio0 --regions\n  \
    linkspan display show pid:1234 --json")]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// The regions of a VFIO device too, with their capabilities
    #[arg(long)]
    regions: bool,

    /// As a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Told {
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ways: Vec<ToldWay>,
    planes: Vec<Plane>,
    /// Planes that are on and not shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<NotShown>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    edid: Option<ToldEdid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regions: Option<Vec<ToldRegion>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opregion: Option<String>,
}

#[derive(Serialize)]
struct ToldWay {
    way: &'static str,
    verdict: String,
}

#[derive(Serialize)]
struct Plane {
    head: u8,
    kind: String,
    id: u32,
    format: String,
    modifier: String,
    width: u32,
    height: u32,
    stride: u32,
    bytes: u64,
    x: i32,
    y: i32,
    hot_spot: Option<(u32, u32)>,
    /// Why it is not shown.
    refused: Option<String>,
}

#[derive(Serialize)]
struct NotShown {
    head: u8,
    kind: String,
    why: String,
}

impl From<&RefusedPlane> for NotShown {
    fn from(plane: &RefusedPlane) -> Self {
        Self {
            head: plane.head,
            kind: plane.kind.to_string(),
            why: plane.why.to_string(),
        }
    }
}

#[derive(Serialize)]
struct ToldEdid {
    link: &'static str,
    bytes_max: u32,
    width_max: u32,
    height_max: u32,
    mode: Option<String>,
}

#[derive(Serialize)]
struct ToldRegion {
    index: u32,
    size: u64,
    offset: String,
    flags: String,
    capabilities: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let told = match args.source.source()? {
        Opened::Gpu(mut source) => planes(&mut *source)?,
        Opened::Vfio(mut source) => vfio(&mut source, args.regions)?,
        Opened::VfioUser(mut source) => planes(&mut *source)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print!("{}", told.table());
    }
    Ok(())
}

fn planes(source: &mut dyn Source) -> Result<Told, Failure> {
    use linkspan_backends::display::SourceError;

    let (planes, no_signal) = match source.planes() {
        Ok(planes) if planes.is_empty() && source.refused().is_empty() => (
            planes,
            Some("the guest shows nothing on this screen".to_owned()),
        ),
        Ok(planes) => (planes, None),
        Err(error @ SourceError::Lost(Loss::Off | Loss::Reset | Loss::Unused)) => {
            (Vec::new(), Some(error.to_string()))
        }
        Err(error) => return Err(Failure::new(status(&error), error)),
    };
    Ok(Told {
        source: source.name(),
        driver: None,
        ways: Vec::new(),
        planes: planes.iter().map(Plane::from).collect(),
        refused: source.refused().iter().map(NotShown::from).collect(),
        no_signal,
        edid: None,
        regions: None,
        opregion: None,
    })
}

fn vfio(source: &mut VfioSource, regions: bool) -> Result<Told, Failure> {
    let mut told = planes(source)?;
    told.driver = source.driver().map(ToOwned::to_owned);
    told.ways = source.ways().map(ToldWay::from).collect();
    told.edid = source.edid().map_err(refused)?.map(|screen| ToldEdid {
        link: match screen.region.link {
            1 => "up",
            2 => "down",
            _ => "not set",
        },
        bytes_max: screen.region.size_max,
        width_max: screen.region.width_max,
        height_max: screen.region.height_max,
        mode: screen.edid.map(|edid| match edid {
            Ok(edid) => format!("{}x{}", edid.mode.width, edid.mode.height),
            Err(error) => error.to_string(),
        }),
    });
    if regions {
        let regions = source.regions().map_err(refused)?;
        told.regions = Some(regions.iter().map(ToldRegion::from).collect());
        told.opregion = source.opregion().map(|opregion| match opregion {
            Ok(it) => {
                let (major, minor, revision) = it.version;
                format!("version {major}.{minor}.{revision}, {} bytes", it.size)
            }
            Err(why) => why,
        });
    }
    Ok(told)
}

impl From<(linkspan_backends::display::Way, &Verdict)> for ToldWay {
    fn from((way, verdict): (linkspan_backends::display::Way, &Verdict)) -> Self {
        let way = way.name();
        let verdict = match verdict {
            Verdict::Used => "used".to_owned(),
            Verdict::NotTried => "not needed".to_owned(),
            Verdict::No(why) => format!("no: {why}"),
        };
        Self { way, verdict }
    }
}

impl From<&Shown> for Plane {
    fn from(shown: &Shown) -> Self {
        let plane = &shown.plane;
        let surface = &plane.surface;
        Self {
            head: shown.head,
            kind: shown.kind.to_string(),
            id: shown.id,
            format: surface.format.to_string(),
            modifier: surface.modifier.to_string(),
            width: surface.width,
            height: surface.height,
            stride: surface.stride,
            bytes: plane.size,
            x: plane.position.x,
            y: plane.position.y,
            hot_spot: plane.hot_spot.map(|spot| (spot.x, spot.y)),
            refused: Layout::new(surface, plane.size)
                .err()
                .map(|refusal| refusal.to_string()),
        }
    }
}

impl From<&Region> for ToldRegion {
    fn from(region: &Region) -> Self {
        let names = ["read", "write", "map", "capabilities"].iter().enumerate();
        let flags = names.filter(|(bit, _)| region.flags >> bit & 1 != 0);
        let flags: Vec<&str> = flags.map(|(_, name)| *name).collect();
        let capabilities = match &region.capabilities {
            Ok(capabilities) => capabilities.iter().map(capability).collect(),
            Err(error) => vec![error.to_string()],
        };
        Self {
            index: region.index,
            size: region.size,
            offset: format!("{:#x}", region.offset),
            flags: flags.join(" "),
            capabilities,
        }
    }
}

fn capability(capability: &Capability) -> String {
    match capability {
        Capability::Type { kind, subtype } => format!("type {kind:#x} subtype {subtype}"),
        Capability::SparseMmap(parts) => {
            let parts = parts
                .iter()
                .map(|part| format!(" {:#x}-{:#x}", part.start, part.end));
            format!("can be mapped:{}", parts.collect::<String>())
        }
        Capability::Other { id, version } => format!("capability {id} version {version}"),
    }
}

impl Told {
    fn table(&self) -> String {
        let mut text = format!("source  {}\n", self.source);
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{name}  {value}");
        };
        if let Some(driver) = &self.driver {
            line("driver", driver);
        }
        if let Some(why) = &self.no_signal {
            line("no signal", why);
        }
        for plane in &self.planes {
            line("plane", &plane.words());
        }
        for NotShown { head, kind, why } in &self.refused {
            line("plane", &format!("{head}  {kind}  refused: {why}"));
        }
        for way in &self.ways {
            line("way", &format!("{}  {}", way.way, way.verdict));
        }
        if let Some(edid) = &self.edid {
            let mode = edid.mode.as_deref().unwrap_or("none");
            let most = format!("{}x{}", edid.width_max, edid.height_max);
            line(
                "edid",
                &format!("link {}  mode {mode}  at most {most}", edid.link),
            );
        }
        for region in self.regions.iter().flatten() {
            let ToldRegion {
                index,
                size,
                offset,
                flags,
                capabilities,
            } = region;
            let more = capabilities.iter().map(|it| format!("  {it}"));
            let more: String = more.collect();
            line(
                "region",
                &format!("{index}  {size} bytes at {offset}  {flags}{more}"),
            );
        }
        if let Some(opregion) = &self.opregion {
            line("opregion", opregion);
        }
        text
    }
}

impl Plane {
    fn words(&self) -> String {
        let mut words = format!(
            "{}  {}  id {}  {}  {}  {}x{}  stride {}  {} bytes  at {},{}",
            self.head,
            self.kind,
            self.id,
            self.format,
            self.modifier,
            self.width,
            self.height,
            self.stride,
            self.bytes,
            self.x,
            self.y
        );
        if let Some((x, y)) = self.hot_spot {
            let _ = write!(words, "  hot spot {x},{y}");
        }
        if let Some(refused) = &self.refused {
            let _ = write!(words, "  refused: {refused}");
        }
        words
    }
}

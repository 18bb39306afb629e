//! SOURCE: what a screen is looked at through.

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use linkspan_backends::display::{GpuSource, Screen, Source, SourceError};
use linkspan_display::Loss;

use crate::exit::{Failure, Status};

/// What a screen is looked at through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceSpec {
    /// The socket of a GPU of ours.
    Socket(PathBuf),
}

/// SOURCE and which of its screens.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceArgs {
    /// Whose screen: the socket of `linkspan gpu --display`
    #[arg(value_name = "SOURCE", value_parser = parser())]
    source: SourceSpec,

    /// Which screen of it, from 0
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..16))]
    head: u8,
}

fn parser() -> impl TypedValueParser<Value = SourceSpec> {
    OsStringValueParser::new().map(|text| SourceSpec::Socket(text.into()))
}

impl SourceSpec {
    pub(crate) fn open(&self) -> Result<Box<dyn Source>, Failure> {
        match self {
            Self::Socket(path) => match GpuSource::connect(path) {
                Ok(source) => Ok(Box::new(source)),
                Err(error) => {
                    let status = status(&error);
                    let error = Err::<(), _>(error)
                        .with_context(|| format!("no screen at {}", path.display()));
                    Err(Failure::new(status, error.unwrap_err()))
                }
            },
        }
    }
}

impl SourceArgs {
    /// The screen, which nobody has looked at.
    pub(crate) fn open(&self) -> Result<Screen, Failure> {
        Ok(Screen::new(self.source.open()?, self.head)?)
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
        SourceError::Lost(Loss::Ended) => Status::PeerUnreachable,
        SourceError::Unsupported(_) => Status::Missing,
        _ => Status::Failed,
    }
}

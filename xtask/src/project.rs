//! Where things are: the source tree, cargo, the target folder, the cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What `cargo metadata` says about the workspace.
pub(crate) struct Project {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// A crate of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Clone, Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// A dev-dependency is only there for tests.
    pub(crate) dev: bool,
}

impl Project {
    pub(crate) fn load() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata failed");
        let value = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
        Self::from_metadata(&value).context("cargo metadata lacks an expected field")
    }

    fn from_metadata(value: &Value) -> Option<Self> {
        let packages = value["packages"]
            .as_array()?
            .iter()
            .map(package)
            .collect::<Option<_>>()?;
        Some(Self {
            root: value["workspace_root"].as_str()?.into(),
            target: value["target_directory"].as_str()?.into(),
            packages,
        })
    }
}

fn package(value: &Value) -> Option<Package> {
    let dependency = |value: &Value| {
        Some(Dependency {
            name: value["name"].as_str()?.to_owned(),
            dev: value["kind"].as_str() == Some("dev"),
        })
    };
    let manifest = PathBuf::from(value["manifest_path"].as_str()?);
    Some(Package {
        name: value["name"].as_str()?.to_owned(),
        dir: manifest.parent()?.to_owned(),
        dependencies: value["dependencies"]
            .as_array()?
            .iter()
            .map(dependency)
            .collect::<Option<_>>()?,
    })
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The folder for what is slow to get; the program looks for kernels there too.
pub(crate) fn cache_dir() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("linkspan")
}

//! The devices that a kubelet hears of, and what a container gets that asks for some: links of
//! a plane in, messages out.
//!
//! A device is a link, and what a container gets is the folder of its socket: a link that is
//! started anew makes its socket anew, which a mount of the socket itself would not show.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::api::{self, HEALTHY, ID_MAX, UNHEALTHY};
use super::grpc::{Code, Status};

/// Devices that a container may ask for at a time, and containers of one request.
const TOGETHER_MAX: usize = 256;

/// A resource of a node, and the links that it is made of: `DOMAIN/NAME=LINKS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    domain: String,
    name: String,
    links: String,
}

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(resource, links)| {
            let (domain, name) = resource.split_once('/')?;
            Some((domain, name, links))
        });
        let Some((domain, name, links)) = parts else {
            return Err("DOMAIN/NAME=LINKS, such as linkspan.dev/disk=disk-*".to_owned());
        };
        let is_word = |text: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let ends = text.bytes().next().zip(text.bytes().next_back());
            ends.is_some_and(|(first, last)| inner(first) && inner(last))
                && text
                    .bytes()
                    .all(|byte| inner(byte) || b"-.".contains(&byte))
        };
        // What the name of an extended resource is made of, and few bytes of it: the whole name
        // is that of a socket, too.
        if !is_word(domain) || !domain.contains('.') || domain.len() > ID_MAX {
            return Err(format!("{domain:?} is no domain such as linkspan.dev"));
        }
        if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
            return Err(format!("{domain} is for resources of Kubernetes itself"));
        }
        if !is_word(name) || name.len() > ID_MAX - "requests.".len() {
            return Err(format!("{name:?}: small letters, digits, `-` and `.`"));
        }
        if links.is_empty() || links.contains(|c: char| c.is_control() || c == '/') {
            return Err("the names of links, in which `*` stands for anything".to_owned());
        }
        Ok(Self {
            domain: domain.to_owned(),
            name: name.to_owned(),
            links: links.to_owned(),
        })
    }
}

impl Resource {
    /// As a pod asks for it.
    pub(crate) fn whole_name(&self) -> String {
        format!("{}/{}", self.domain, self.name)
    }

    /// The name of the plugin's socket for it.
    pub(crate) fn endpoint(&self) -> String {
        // With what neither has in between: no two resources are to have one socket.
        format!("linkspan-{}_{}.sock", self.domain, self.name)
    }

    /// The variable that says where sockets are.
    pub(crate) fn variable(&self) -> String {
        let letter = |c: char| match c {
            '-' | '.' => '_',
            c => c.to_ascii_uppercase(),
        };
        let name: String = self.name.chars().map(letter).collect();
        format!("LINKSPAN_{name}")
    }

    /// Whether containers could not tell its devices from those of another one.
    pub(crate) fn is_taken_for(&self, other: &Self) -> bool {
        self.variable() == other.variable()
    }

    fn has(&self, link: &str) -> bool {
        matches(&self.links, link)
    }
}

/// Whether a name is like a pattern, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(head) else {
        return false;
    };
    // Each part but the last one is found where it comes first.
    let mut rest = rest;
    while let Some((part, more)) = rest.split_once('*') {
        let Some(at) = name.find(part) else {
            return false;
        };
        (name, rest) = (&name[at + part.len()..], more);
    }
    name.ends_with(rest)
}

/// A link, as its supervisor lists it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Link {
    link: String,
    state: String,
    #[serde(default)]
    sockets: Vec<PathBuf>,
}

impl Link {
    /// The links of a supervisor's answer.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn list(answer: &str) -> Result<Vec<Self>, serde_json::Error> {
        answer.lines().map(serde_json::from_str).collect()
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    /// The folder of its socket, on this machine.
    folder: String,
    /// Its name there.
    socket: String,
    is_healthy: bool,
}

/// The devices of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    all: BTreeMap<String, Device>,
}

impl Devices {
    /// Those among all links of a plane, whose control socket is at `control`; and why others
    /// that the resource names are none: one that an `earlier` resource has would be given twice.
    /// `is_there` says whether a socket is.
    pub(crate) fn of(
        resource: &Resource,
        earlier: &[Resource],
        links: &[Link],
        control: &Path,
        is_there: impl Fn(&Path) -> bool,
    ) -> (Self, Vec<String>) {
        let (mut all, mut refused) = (BTreeMap::new(), Vec::new());
        let sockets = links.iter().flat_map(|it| &it.sockets);
        let sockets = sockets.map(PathBuf::as_path).chain([control]);
        let folders: Vec<_> = sockets.filter_map(Path::parent).collect();
        for link in links.iter().filter(|it| resource.has(&it.link)) {
            if let Some(other) = earlier.iter().find(|it| it.has(&link.link)) {
                let other = other.whole_name();
                refused.push(format!("link {}: it is of {other} already", link.link));
                continue;
            }
            match Device::of(link, &folders) {
                Ok((socket, mut device)) => {
                    device.is_healthy = link.state == "running" && is_there(socket);
                    all.insert(link.link.clone(), device);
                }
                Err(why) => refused.push(format!("link {}: {why}", link.link)),
            }
        }
        (Self { all }, refused)
    }

    /// The same with none that may be given: nobody knows how they are.
    pub(crate) fn unknown(mut self) -> Self {
        self.all.values_mut().for_each(|it| it.is_healthy = false);
        self
    }

    /// How many there are, and how many of them are healthy.
    pub(crate) fn count(&self) -> (usize, usize) {
        let healthy = self.all.values().filter(|it| it.is_healthy).count();
        (self.all.len(), healthy)
    }

    pub(super) fn list(&self) -> api::ListAndWatchResponse {
        let device = |(id, device): (&String, &Device)| api::Device {
            id: id.clone(),
            health: match device.is_healthy {
                true => HEALTHY.to_owned(),
                false => UNHEALTHY.to_owned(),
            },
        };
        api::ListAndWatchResponse {
            devices: self.all.iter().map(device).collect(),
        }
    }

    /// What containers get that are to have these devices, below this folder of theirs.
    ///
    /// # Errors
    /// One is not there, or not healthy, or asked for twice.
    pub(super) fn allocate(
        &self,
        resource: &Resource,
        below: &str,
        request: &api::AllocateRequest,
    ) -> Result<api::AllocateResponse, Status> {
        let containers = &request.container_requests;
        if containers.len() > TOGETHER_MAX {
            return Err(too_many("containers"));
        }
        let mut taken = Vec::new();
        let mut answers = Vec::new();
        for container in containers {
            answers.push(self.container(resource, below, &container.devices, &mut taken)?);
        }
        Ok(api::AllocateResponse {
            container_responses: answers,
        })
    }

    fn container<'a>(
        &self,
        resource: &Resource,
        below: &str,
        ids: &'a [String],
        taken: &mut Vec<&'a str>,
    ) -> Result<api::ContainerAllocateResponse, Status> {
        if ids.len() > TOGETHER_MAX {
            return Err(too_many("devices"));
        }
        let (mut mounts, mut sockets) = (Vec::new(), Vec::new());
        for (number, id) in ids.iter().enumerate() {
            let device = self.device(id)?;
            if taken.contains(&id.as_str()) {
                return Err(Status::new(
                    Code::InvalidArgument,
                    format!("device {id:?} is asked for twice"),
                ));
            }
            if !device.is_healthy {
                let why = format!("device {id:?}: its link does not serve now");
                return Err(Status::new(Code::FailedPrecondition, why));
            }
            taken.push(id);
            let folder = format!("{below}/{}/{number}", resource.name);
            sockets.push(format!("{folder}/{}", device.socket));
            mounts.push(api::Mount {
                container_path: folder,
                host_path: device.folder.clone(),
                // A socket can be connected to all the same.
                read_only: true,
            });
        }
        let sockets = sockets.join(",");
        let annotation = (resource.whole_name(), ids.join(","));
        Ok(api::ContainerAllocateResponse {
            envs: BTreeMap::from([(resource.variable(), sockets)]),
            mounts,
            annotations: BTreeMap::from([annotation]),
        })
    }

    /// Which of those that are free a container had best be given: those that it has to have,
    /// and then in the order of their names.
    ///
    /// # Errors
    /// There are not so many, or one is not there.
    pub(super) fn prefer(
        &self,
        request: &api::PreferredAllocationRequest,
    ) -> Result<api::PreferredAllocationResponse, Status> {
        if request.container_requests.len() > TOGETHER_MAX {
            return Err(too_many("containers"));
        }
        let answers = request.container_requests.iter().map(|it| self.best(it));
        Ok(api::PreferredAllocationResponse {
            container_responses: answers.collect::<Result<_, _>>()?,
        })
    }

    fn best(
        &self,
        request: &api::ContainerPreferredAllocationRequest,
    ) -> Result<api::ContainerPreferredAllocationResponse, Status> {
        let wrong = |why: String| Status::new(Code::InvalidArgument, why);
        let size = usize::try_from(request.allocation_size)
            .map_err(|_| wrong(format!("{} devices are wanted", request.allocation_size)))?;
        if size > TOGETHER_MAX {
            return Err(too_many("devices"));
        }
        let mut chosen = Vec::new();
        let mut free = request.available.clone();
        free.sort_unstable();
        for id in request.must_include.iter().chain(&free) {
            let wanted = chosen.len() < size && !chosen.contains(id);
            if wanted && self.device(id).is_ok() {
                chosen.push(id.clone());
            }
        }
        if chosen.len() < size {
            return Err(wrong(format!(
                "{size} devices are wanted of {}",
                chosen.len()
            )));
        }
        Ok(api::ContainerPreferredAllocationResponse { devices: chosen })
    }

    /// Whether each of these may be given.
    ///
    /// # Errors
    /// One is not there.
    pub(super) fn pre_start(&self, request: &api::PreStartContainerRequest) -> Result<(), Status> {
        if request.devices.len() > TOGETHER_MAX {
            return Err(too_many("devices"));
        }
        request
            .devices
            .iter()
            .try_for_each(|id| self.device(id).map(drop))
    }

    fn device(&self, id: &str) -> Result<&Device, Status> {
        let unknown = || {
            let shown: String = id.chars().take(ID_MAX).collect();
            Status::new(Code::NotFound, format!("there is no device {shown:?}"))
        };
        self.all.get(id).ok_or_else(unknown)
    }
}

impl Device {
    /// The device that a link is, and where it listens; or why it is none. `folders` are those
    /// of all sockets of the plane.
    fn of<'a>(link: &'a Link, folders: &[&Path]) -> Result<(&'a Path, Self), String> {
        if link.link.len() > ID_MAX {
            return Err(format!("a device's name has at most {ID_MAX} bytes"));
        }
        let [socket] = &link.sockets[..] else {
            let count = link.sockets.len();
            return Err(format!("it has {count} sockets, and a device has one"));
        };
        let parts = socket.parent().zip(socket.file_name());
        let parts =
            parts.and_then(|(folder, name)| Some((folder, folder.to_str()?, name.to_str()?)));
        let Some((folder, folder_text, name)) = parts.filter(|_| is_plain(socket)) else {
            return Err(format!("{} cannot be told to a kubelet", socket.display()));
        };
        // Who is given a folder has all that is in it.
        if folders.iter().filter(|it| it.starts_with(folder)).count() > 1 {
            return Err(format!("{folder_text} has other sockets, too"));
        }
        let device = Self {
            folder: folder_text.to_owned(),
            socket: name.to_owned(),
            is_healthy: false,
        };
        Ok((socket, device))
    }
}

/// Whether a path is whole, without detours, and has no comma, which separates paths.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.all(|it| matches!(it, Component::Normal(_)))
        && !path
            .to_string_lossy()
            .contains(|c: char| c == ',' || c.is_control())
}

fn too_many(what: &str) -> Status {
    let why = format!("more than {TOGETHER_MAX} {what} at a time");
    Status::new(Code::ResourceExhausted, why)
}

#[cfg(test)]
mod tests;

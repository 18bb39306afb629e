//! The messages of the kubelet's device-plugin API, `v1beta1`, as
//! k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto numbers their fields.

use std::collections::BTreeMap;

use prost::Message;

/// What a plugin says that it was made for.
pub(super) const VERSION: &str = "v1beta1";

/// Where a plugin says that it is there.
pub(super) const REGISTER: &str = "/v1beta1.Registration/Register";

pub(super) const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
pub(super) const LIST_AND_WATCH: &str = "/v1beta1.DevicePlugin/ListAndWatch";
pub(super) const PREFER: &str = "/v1beta1.DevicePlugin/GetPreferredAllocation";
pub(super) const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
pub(super) const PRE_START: &str = "/v1beta1.DevicePlugin/PreStartContainer";

/// Bytes of a device's name at most.
pub(super) const ID_MAX: usize = 63;

/// A device that may be given to a container.
pub(super) const HEALTHY: &str = "Healthy";
/// One that may not.
pub(super) const UNHEALTHY: &str = "Unhealthy";

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct DevicePluginOptions {
    #[prost(bool, tag = "1")]
    pub(super) pre_start_required: bool,
    #[prost(bool, tag = "2")]
    pub(super) get_preferred_allocation_available: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterRequest {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    /// The plugin's socket, by its name in the kubelet's folder.
    #[prost(string, tag = "2")]
    pub(super) endpoint: String,
    #[prost(string, tag = "3")]
    pub(super) resource_name: String,
    #[prost(message, optional, tag = "4")]
    pub(super) options: Option<DevicePluginOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) devices: Vec<Device>,
}

/// Without the nodes of memory that it is near to: a socket is near to all.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Device {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) health: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PreferredAllocationRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_requests: Vec<ContainerPreferredAllocationRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerPreferredAllocationRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) available: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) must_include: Vec<String>,
    #[prost(int32, tag = "3")]
    pub(super) allocation_size: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PreferredAllocationResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_responses: Vec<ContainerPreferredAllocationResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerPreferredAllocationResponse {
    #[prost(string, repeated, tag = "1")]
    pub(super) devices: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) devices: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_responses: Vec<ContainerAllocateResponse>,
}

/// Without devices of the kernel: a container gets sockets.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ContainerAllocateResponse {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) envs: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    pub(super) mounts: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    #[prost(bool, tag = "3")]
    pub(super) read_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PreStartContainerRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) devices: Vec<String>,
}

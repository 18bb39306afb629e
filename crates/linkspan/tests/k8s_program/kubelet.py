"""A kubelet as far as device plugins see one, by gRPC's own library.

It is told what to do by lines of JSON on standard input, and says what happens by lines of
JSON on standard output.
"""

import json
import os
import stat
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STRING, BOOL, INT32, MESSAGE = 9, 8, 5, 11

# Messages of v1beta1: number, name, type, or another message; `+` for many.
MESSAGES = {
    "Empty": [],
    "DevicePluginOptions": [
        (1, "pre_start_required", BOOL),
        (2, "get_preferred_allocation_available", BOOL),
    ],
    "RegisterRequest": [
        (1, "version", STRING),
        (2, "endpoint", STRING),
        (3, "resource_name", STRING),
        (4, "options", "DevicePluginOptions"),
    ],
    "Device": [(1, "ID", STRING), (2, "health", STRING)],
    "ListAndWatchResponse": [(1, "+devices", "Device")],
    "PreStartContainerRequest": [(1, "+devices_ids", STRING)],
    "ContainerPreferredAllocationRequest": [
        (1, "+available_deviceIDs", STRING),
        (2, "+must_include_deviceIDs", STRING),
        (3, "allocation_size", INT32),
    ],
    "PreferredAllocationRequest": [
        (1, "+container_requests", "ContainerPreferredAllocationRequest")
    ],
    "ContainerPreferredAllocationResponse": [(1, "+deviceIDs", STRING)],
    "PreferredAllocationResponse": [
        (1, "+container_responses", "ContainerPreferredAllocationResponse")
    ],
    "ContainerAllocateRequest": [(1, "+devices_ids", STRING)],
    "AllocateRequest": [(1, "+container_requests", "ContainerAllocateRequest")],
    "Mount": [(1, "container_path", STRING), (2, "host_path", STRING), (3, "read_only", BOOL)],
    # Maps are messages of keys and values on the wire.
    "Pair": [(1, "key", STRING), (2, "value", STRING)],
    "ContainerAllocateResponse": [
        (1, "+envs", "Pair"),
        (2, "+mounts", "Mount"),
        (4, "+annotations", "Pair"),
    ],
    "AllocateResponse": [(1, "+container_responses", "ContainerAllocateResponse")],
}


def messages():
    file = descriptor_pb2.FileDescriptorProto(
        name="kubelet.proto", package="v1beta1", syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            added = message.field.add(name=field.lstrip("+"), number=number)
            added.label = 3 if field.startswith("+") else 1
            added.type = MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = ".v1beta1." + kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = {}
    for name in MESSAGES:
        descriptor = pool.FindMessageTypeByName("v1beta1." + name)
        if hasattr(message_factory, "GetMessageClass"):
            made[name] = message_factory.GetMessageClass(descriptor)
        else:
            made[name] = message_factory.MessageFactory(pool).GetPrototype(descriptor)
    return made


M = messages()
OUT = threading.Lock()
METHODS = {
    "GetDevicePluginOptions": ("Empty", "DevicePluginOptions"),
    "ListAndWatch": ("Empty", "ListAndWatchResponse"),
    "GetPreferredAllocation": ("PreferredAllocationRequest", "PreferredAllocationResponse"),
    "Allocate": ("AllocateRequest", "AllocateResponse"),
    "PreStartContainer": ("PreStartContainerRequest", "Empty"),
}


def say(**what):
    with OUT:
        print(json.dumps(what), flush=True)


def pairs(all):
    return {pair.key: pair.value for pair in all}


class Kubelet:
    def __init__(self, folder):
        self.folder = folder
        self.refuse = 0
        self.channels = {}
        self.server = None

    def start(self):
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        register = grpc.unary_unary_rpc_method_handler(
            self.register,
            request_deserializer=M["RegisterRequest"].FromString,
            response_serializer=M["Empty"].SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(
            "v1beta1.Registration", {"Register": register}
        )
        self.server.add_generic_rpc_handlers((handler,))
        self.server.add_insecure_port("unix:" + os.path.join(self.folder, "kubelet.sock"))
        self.server.start()
        say(event="started")

    def stop(self):
        for channel in self.channels.values():
            channel.close()
        self.channels = {}
        self.server.stop(None).wait()
        say(event="stopped")

    def let_go(self, resource):
        """Ends its stream, as a kubelet does that has had an error."""
        self.channels.pop(resource).close()

    def register(self, request, context):
        if self.refuse > 0:
            self.refuse -= 1
            say(event="refused registration")
            context.abort(grpc.StatusCode.INTERNAL, "not now: ä%\n")
        if request.version != "v1beta1" or "/" in request.endpoint:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such plugin")
        say(
            event="registered",
            resource=request.resource_name,
            endpoint=request.endpoint,
            preferred=request.options.get_preferred_allocation_available,
        )
        threading.Thread(target=self.use, args=(request,), daemon=True).start()
        return M["Empty"]()

    def use(self, request):
        """Dials a plugin that has registered, and watches its devices."""
        resource = request.resource_name
        path = "unix:" + os.path.join(self.folder, request.endpoint)
        self.channels[resource] = grpc.insecure_channel(path)
        try:
            options = self.method(resource, "GetDevicePluginOptions")(M["Empty"](), timeout=60)
            say(
                event="options",
                resource=resource,
                preferred=options.get_preferred_allocation_available,
                pre_start=options.pre_start_required,
            )
            for list in self.method(resource, "ListAndWatch")(M["Empty"]()):
                devices = {device.ID: device.health for device in list.devices}
                say(event="devices", resource=resource, devices=devices)
            say(event="list ended", resource=resource)
        except (grpc.RpcError, ValueError) as error:
            code = error.code().name if hasattr(error, "code") else "CLOSED"
            say(event="lost", resource=resource, code=code)

    def method(self, resource, name, raw=False):
        asked, answered = METHODS.get(name, ("Empty", "Empty"))
        channel = self.channels[resource]
        kind = channel.unary_stream if name == "ListAndWatch" else channel.unary_unary
        return kind(
            "/v1beta1.DevicePlugin/" + name,
            request_serializer=bytes if raw else M[asked].SerializeToString,
            response_deserializer=M[answered].FromString,
        )

    def call(self, name, request, resource, **more):
        try:
            raw = isinstance(request, bytes)
            return self.method(resource, name, raw)(request, timeout=60, **more)
        except grpc.RpcError as error:
            say(event="refused", code=error.code().name, why=error.details())
            return None

    def allocate(self, resource, containers):
        request = M["AllocateRequest"]()
        for ids in containers:
            request.container_requests.add().devices_ids.extend(ids)
        answer = self.call("Allocate", request, resource)
        if answer is not None:
            containers = [
                {
                    "envs": pairs(it.envs),
                    "mounts": [[m.container_path, m.host_path, m.read_only] for m in it.mounts],
                    "annotations": pairs(it.annotations),
                }
                for it in answer.container_responses
            ]
            say(event="allocated", containers=containers)

    def prefer(self, resource, available, size):
        request = M["PreferredAllocationRequest"]()
        container = request.container_requests.add(allocation_size=size)
        container.available_deviceIDs.extend(available)
        answer = self.call("GetPreferredAllocation", request, resource)
        if answer is not None:
            say(event="preferred", devices=[*answer.container_responses[0].deviceIDs])

    def pre_start(self, resource, ids):
        request = M["PreStartContainerRequest"](devices_ids=ids)
        if self.call("PreStartContainer", request, resource) is not None:
            say(event="pre-started")

    def raw(self, resource, name, text, repeat=1, compressed=False):
        """Calls with bytes that may be no message."""
        more = {"compression": grpc.Compression.Gzip} if compressed else {}
        if self.call(name, text.encode("latin-1") * repeat, resource, **more) is not None:
            say(event="answered")


def main():
    kubelet = Kubelet(sys.argv[1])
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        if verb == "refuse":
            kubelet.refuse = arguments[0]
            say(event="will refuse")
        else:
            getattr(kubelet, verb)(*arguments)
    os._exit(0)


main()

//! What rdma-core promises to programs: numbers and structures of `libibverbs` (symbols of
//! version `IBVERBS_1.1`) and `librdmacm` (`RDMACM_1.0`), as its headers have them.
//!
//! What the libraries allocate is declared as far as it is read. Calls that the headers
//! make inline go through the table in [`Context`].

use std::ffi::{c_int, c_void};

/// A pointer that nobody here follows.
pub(super) type Opaque = *mut c_void;

/// `ibv_device`.
#[repr(C)]
pub(super) struct Device {
    ops: [Opaque; 2],
    node_type: c_int,
    pub(super) transport_type: c_int,
}

/// `IBV_TRANSPORT_IWARP`.
pub(super) const TRANSPORT_IWARP: c_int = 1;

/// `ibv_context`, with its `ibv_context_ops`.
#[repr(C)]
pub(super) struct Context {
    pub(super) device: *mut Device,
    before_poll_cq: [Opaque; 11],
    pub(super) poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub(super) req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    before_post_send: [Opaque; 12],
    pub(super) post_send:
        Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub(super) post_recv:
        Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    after_post_recv: [Opaque; 5],
    cmd_fd: c_int,
}

/// `ibv_pd`.
#[repr(C)]
pub(super) struct Pd {
    context: *mut Context,
}

/// `ibv_comp_channel`.
#[repr(C)]
pub(super) struct CompChannel {
    context: *mut Context,
    pub(super) fd: c_int,
}

/// `ibv_cq`.
#[repr(C)]
pub(super) struct Cq {
    pub(super) context: *mut Context,
}

/// `ibv_qp`.
#[repr(C)]
pub(super) struct Qp {
    pub(super) context: *mut Context,
}

/// `ibv_mr`.
#[repr(C)]
pub(super) struct Mr {
    context: *mut Context,
    pd: *mut Pd,
    pub(super) addr: *mut c_void,
    length: usize,
    handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

/// `ibv_sge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// `ibv_send_wr`. Of its unions the members that are used here, and room for the others.
#[repr(C)]
pub(super) struct SendWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *const Sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: c_int,
    pub(super) send_flags: u32,
    pub(super) invalidate_rkey: u32,
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
    pub(super) after_rdma: [u32; 5],
    pub(super) qp_type: u32,
    pub(super) last: [u64; 6],
}

/// `ibv_recv_wr`.
#[repr(C)]
pub(super) struct RecvWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *const Sge,
    pub(super) num_sge: c_int,
}

/// `ibv_wc`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Wc {
    pub(super) wr_id: u64,
    pub(super) status: c_int,
    pub(super) opcode: c_int,
    vendor_err: u32,
    pub(super) byte_len: u32,
    pub(super) invalidated_rkey: u32,
    qp_num: u32,
    src_qp: u32,
    pub(super) wc_flags: u32,
    pkey_index: u16,
    slid: u16,
    sl: u8,
    dlid_path_bits: u8,
}

/// `ibv_qp_init_attr`, with its `ibv_qp_cap`.
#[repr(C)]
pub(super) struct QpInitAttr {
    pub(super) qp_context: Opaque,
    pub(super) send_cq: *mut Cq,
    pub(super) recv_cq: *mut Cq,
    pub(super) srq: Opaque,
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
    pub(super) qp_type: c_int,
    pub(super) sq_sig_all: c_int,
}

/// `ibv_device_attr`.
#[repr(C)]
pub(super) struct DeviceAttr {
    names: [u64; 10],
    pub(super) max_mr_size: u64,
    page_size_cap: u64,
    vendor: [u32; 3],
    max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    pub(super) device_cap_flags: u32,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    max_cq: c_int,
    pub(super) max_cqe: c_int,
    max_mr: c_int,
    max_pd: c_int,
    pub(super) max_qp_rd_atom: c_int,
    max_ee_rd_atom: c_int,
    max_res_rd_atom: c_int,
    pub(super) max_qp_init_rd_atom: c_int,
    rest: [u32; 17],
}

/// `rdma_event_channel`.
#[repr(C)]
pub(super) struct EventChannel {
    pub(super) fd: c_int,
}

/// `rdma_cm_id`, with its `rdma_route`.
#[repr(C)]
pub(super) struct CmId {
    pub(super) verbs: *mut Context,
    channel: *mut EventChannel,
    context: Opaque,
    pub(super) qp: *mut Qp,
    pub(super) src_addr: libc::sockaddr_storage,
    pub(super) dst_addr: libc::sockaddr_storage,
    ib_addr: [u64; 5],
    path_rec: Opaque,
    num_paths: c_int,
    route_end: c_int,
    ps: c_int,
    port_num: u8,
}

/// `rdma_conn_param`.
#[repr(C)]
pub(super) struct ConnParam {
    pub(super) private_data: *const c_void,
    pub(super) private_data_len: u8,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) flow_control: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry_count: u8,
    pub(super) srq: u8,
    pub(super) qp_num: u32,
}

/// `rdma_cm_event`, of connections.
#[repr(C)]
pub(super) struct CmEvent {
    pub(super) id: *mut CmId,
    pub(super) listen_id: *mut CmId,
    pub(super) event: c_int,
    pub(super) status: c_int,
    pub(super) conn: ConnParam,
}

/// `RDMA_PS_TCP`.
pub(super) const PORT_SPACE_TCP: c_int = 0x0106;
/// `IBV_QPT_RC`.
pub(super) const QP_RELIABLE: c_int = 2;

/// `IBV_ACCESS_LOCAL_WRITE`, `IBV_ACCESS_REMOTE_WRITE`, `IBV_ACCESS_REMOTE_READ`.
pub(super) const LOCAL_WRITE: c_int = 1;
pub(super) const REMOTE_WRITE: c_int = 2;
pub(super) const REMOTE_READ: c_int = 4;

/// `IBV_WR_RDMA_WRITE`, `IBV_WR_SEND`, `IBV_WR_RDMA_READ`, `IBV_WR_SEND_WITH_INV`.
pub(super) const WR_WRITE: c_int = 0;
pub(super) const WR_SEND: c_int = 2;
pub(super) const WR_READ: c_int = 4;
pub(super) const WR_SEND_INVALIDATE: c_int = 9;

/// `IBV_SEND_SIGNALED`, `IBV_SEND_SOLICITED`.
pub(super) const SIGNALLED: u32 = 2;
pub(super) const SOLICITED: u32 = 4;

/// `IBV_WC_SUCCESS`, `IBV_WC_WR_FLUSH_ERR`.
pub(super) const STATUS_SUCCESS: c_int = 0;
pub(super) const STATUS_FLUSHED: c_int = 5;
/// `IBV_WC_WITH_INV`.
pub(super) const WC_INVALIDATED: u32 = 8;

/// `RDMA_CM_EVENT_ADDR_RESOLVED` and those after it.
pub(super) const EVENT_ADDRESS_RESOLVED: c_int = 0;
pub(super) const EVENT_ROUTE_RESOLVED: c_int = 2;
pub(super) const EVENT_CONNECT_REQUEST: c_int = 4;
pub(super) const EVENT_REJECTED: c_int = 8;
pub(super) const EVENT_ESTABLISHED: c_int = 9;
pub(super) const EVENT_DISCONNECTED: c_int = 10;

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::mem::{offset_of, size_of};
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// A place in one of the structures: ours, and what C calls it. `None` is its size.
    type Row = (&'static str, Option<&'static str>, usize);

    macro_rules! fields {
        ($rows:ident, $ours:ty as $theirs:literal: $($field:ident as $name:literal),* $(,)?) => {
            $( $rows.push(($theirs, Some($name), offset_of!($ours, $field))); )*
        };
    }

    fn rows() -> Vec<Row> {
        let mut rows: Vec<Row> = vec![
            ("struct ibv_sge", None, size_of::<Sge>()),
            ("struct ibv_send_wr", None, size_of::<SendWr>()),
            ("struct ibv_recv_wr", None, size_of::<RecvWr>()),
            ("struct ibv_wc", None, size_of::<Wc>()),
            ("struct ibv_qp_init_attr", None, size_of::<QpInitAttr>()),
            ("struct ibv_device_attr", None, size_of::<DeviceAttr>()),
            ("struct rdma_conn_param", None, size_of::<ConnParam>()),
        ];
        fields!(rows, Device as "struct ibv_device": transport_type as "transport_type");
        fields!(rows, Context as "struct ibv_context":
            device as "device", poll_cq as "ops.poll_cq", req_notify_cq as "ops.req_notify_cq",
            post_send as "ops.post_send", post_recv as "ops.post_recv", cmd_fd as "cmd_fd");
        fields!(rows, Pd as "struct ibv_pd": context as "context");
        fields!(rows, CompChannel as "struct ibv_comp_channel": fd as "fd");
        fields!(rows, Cq as "struct ibv_cq": context as "context");
        fields!(rows, Qp as "struct ibv_qp": context as "context");
        fields!(rows, Mr as "struct ibv_mr": addr as "addr", lkey as "lkey", rkey as "rkey");
        fields!(rows, Sge as "struct ibv_sge": addr as "addr", length as "length", lkey as "lkey");
        fields!(rows, SendWr as "struct ibv_send_wr":
            wr_id as "wr_id", next as "next", sg_list as "sg_list", num_sge as "num_sge",
            opcode as "opcode", send_flags as "send_flags", invalidate_rkey as "invalidate_rkey",
            remote_addr as "wr.rdma.remote_addr", rkey as "wr.rdma.rkey", qp_type as "qp_type",
            last as "bind_mw");
        fields!(rows, RecvWr as "struct ibv_recv_wr":
            wr_id as "wr_id", next as "next", sg_list as "sg_list", num_sge as "num_sge");
        fields!(rows, Wc as "struct ibv_wc":
            wr_id as "wr_id", status as "status", opcode as "opcode", byte_len as "byte_len",
            invalidated_rkey as "invalidated_rkey", wc_flags as "wc_flags");
        fields!(rows, QpInitAttr as "struct ibv_qp_init_attr":
            qp_context as "qp_context", send_cq as "send_cq", recv_cq as "recv_cq", srq as "srq",
            max_send_wr as "cap.max_send_wr", max_recv_wr as "cap.max_recv_wr",
            max_send_sge as "cap.max_send_sge", max_recv_sge as "cap.max_recv_sge",
            max_inline_data as "cap.max_inline_data", qp_type as "qp_type",
            sq_sig_all as "sq_sig_all");
        fields!(rows, DeviceAttr as "struct ibv_device_attr":
            max_mr_size as "max_mr_size", max_qp_wr as "max_qp_wr",
            device_cap_flags as "device_cap_flags", max_sge as "max_sge",
            max_sge_rd as "max_sge_rd", max_cqe as "max_cqe", max_qp_rd_atom as "max_qp_rd_atom",
            max_qp_init_rd_atom as "max_qp_init_rd_atom");
        fields!(rows, EventChannel as "struct rdma_event_channel": fd as "fd");
        fields!(rows, CmId as "struct rdma_cm_id":
            verbs as "verbs", qp as "qp", src_addr as "route.addr.src_addr",
            dst_addr as "route.addr.dst_addr", num_paths as "route.num_paths", ps as "ps",
            port_num as "port_num");
        fields!(rows, ConnParam as "struct rdma_conn_param":
            private_data as "private_data", private_data_len as "private_data_len",
            responder_resources as "responder_resources", initiator_depth as "initiator_depth",
            flow_control as "flow_control", retry_count as "retry_count",
            rnr_retry_count as "rnr_retry_count", srq as "srq", qp_num as "qp_num");
        fields!(rows, CmEvent as "struct rdma_cm_event":
            id as "id", listen_id as "listen_id", event as "event", status as "status",
            conn as "param.conn");
        rows
    }

    /// Numbers, ours and what C calls them.
    fn numbers() -> Vec<(&'static str, i64)> {
        let mut numbers: Vec<(&str, i64)> = [
            ("IBV_TRANSPORT_IWARP", TRANSPORT_IWARP),
            ("RDMA_PS_TCP", PORT_SPACE_TCP),
            ("IBV_QPT_RC", QP_RELIABLE),
            ("IBV_ACCESS_LOCAL_WRITE", LOCAL_WRITE),
            ("IBV_ACCESS_REMOTE_WRITE", REMOTE_WRITE),
            ("IBV_ACCESS_REMOTE_READ", REMOTE_READ),
            ("IBV_WR_RDMA_WRITE", WR_WRITE),
            ("IBV_WR_SEND", WR_SEND),
            ("IBV_WR_RDMA_READ", WR_READ),
            ("IBV_WR_SEND_WITH_INV", WR_SEND_INVALIDATE),
            ("IBV_WC_SUCCESS", STATUS_SUCCESS),
            ("IBV_WC_WR_FLUSH_ERR", STATUS_FLUSHED),
            ("RDMA_CM_EVENT_ADDR_RESOLVED", EVENT_ADDRESS_RESOLVED),
            ("RDMA_CM_EVENT_ROUTE_RESOLVED", EVENT_ROUTE_RESOLVED),
            ("RDMA_CM_EVENT_CONNECT_REQUEST", EVENT_CONNECT_REQUEST),
            ("RDMA_CM_EVENT_REJECTED", EVENT_REJECTED),
            ("RDMA_CM_EVENT_ESTABLISHED", EVENT_ESTABLISHED),
            ("RDMA_CM_EVENT_DISCONNECTED", EVENT_DISCONNECTED),
        ]
        .map(|(name, value)| (name, value.into()))
        .to_vec();
        numbers.extend([
            ("IBV_SEND_SIGNALED", i64::from(SIGNALLED)),
            ("IBV_SEND_SOLICITED", i64::from(SOLICITED)),
            ("IBV_WC_WITH_INV", i64::from(WC_INVALIDATED)),
        ]);
        numbers
    }

    /// A C program that returns 1 and says what is different, compiled against the real headers.
    #[test]
    fn structures_are_those_of_the_real_headers() {
        if !Path::new("/usr/include/infiniband/verbs.h").exists()
            || !Path::new("/usr/include/rdma/rdma_cma.h").exists()
        {
            eprintln!("SKIP: there are no headers (Debian packages libibverbs-dev, librdmacm-dev)");
            return;
        }
        let mut code = String::from(
            "#include <stddef.h>\n#include <stdio.h>\n#include <rdma/rdma_cma.h>\n\
             static int bad;\n\
             static void same(const char *what, long long ours, long long theirs) {\n\
             if (ours != theirs) { printf(\"%s: %lld here, %lld there\\n\", what, ours, theirs); bad = 1; }\n\
             }\nint main(void) {\n",
        );
        for (kind, field, ours) in rows() {
            let theirs = match field {
                Some(field) => format!("offsetof({kind}, {field})"),
                None => format!("sizeof({kind})"),
            };
            let field = field.unwrap_or("size");
            writeln!(code, "same(\"{kind} {field}\", {ours}, {theirs});").unwrap();
        }
        for (name, ours) in numbers() {
            writeln!(code, "same(\"{name}\", {ours}, {name});").unwrap();
        }
        code.push_str("return bad;\n}\n");
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("abi.c"), folder.path().join("abi"));
        std::fs::write(&source, code).unwrap();
        let mut compiler = Command::new("cc");
        let Ok(output) = compiler.arg("-o").arg(&program).arg(&source).output() else {
            eprintln!("SKIP: there is no C compiler (Debian package gcc)");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let output = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(rows().len() > 70);
    }
}

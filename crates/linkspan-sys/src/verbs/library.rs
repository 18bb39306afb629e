//! The two libraries of rdma-core, loaded when they are first wanted.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::sync::Mutex;

use linkspan_mem::fault::Site;

use super::abi::{
    CmEvent, CmId, CompChannel, ConnParam, Context, Cq, DeviceAttr, EventChannel, Mr, Opaque, Pd,
    QpInitAttr,
};
use crate::acquire;

/// Why there is no rdma-core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A library is not there, or cannot be loaded.
    #[error("{name} cannot be loaded: {why} (Debian package {package})")]
    Library {
        /// Its file name.
        name: &'static str,
        /// The package that has it.
        package: &'static str,
        /// What the loader says.
        why: String,
    },
    /// A library is too old.
    #[error("{library} has no {symbol}")]
    Symbol {
        /// Which library.
        library: &'static str,
        /// What is missing.
        symbol: &'static str,
    },
    /// This program was linked statically, and so there is no loader in it.
    #[error("a static program cannot load verbs")]
    Static,
    /// The machine has no room for it.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A library, with the version of its symbols that [`super::abi`] was written for.
struct Source {
    name: &'static CStr,
    version: &'static CStr,
    package: &'static str,
}

const VERBS: Source = Source {
    name: c"libibverbs.so.1",
    version: c"IBVERBS_1.1",
    package: "libibverbs1",
};

/// What has not changed since the first version.
const VERBS_FIRST: &CStr = c"IBVERBS_1.0";

const CM: Source = Source {
    name: c"librdmacm.so.1",
    version: c"RDMACM_1.0",
    package: "librdmacm1",
};

/// Declares the table of functions, and how each is looked up.
macro_rules! functions {
    ($($field:ident: $type:ty = $source:ident $version:expr, $symbol:literal;)*) => {
        /// The functions that are used. They stay for as long as the process.
        pub(super) struct Functions { $(pub(super) $field: $type,)* }

        impl Functions {
            fn find(verbs: Opaque, cm: Opaque) -> Result<Self, LoadError> {
                let handle = |source: &Source| if source.name == CM.name { cm } else { verbs };
                Ok(Self { $($field: {
                    let place = symbol(handle(&$source), $version, $symbol);
                    let Some(place) = place else {
                        return Err(LoadError::Symbol {
                            library: text(&$source),
                            symbol: $symbol.to_str().unwrap_or_default(),
                        });
                    };
                    // SAFETY: what the library promises under this name and version.
                    unsafe { std::mem::transmute::<std::ptr::NonNull<c_void>, $type>(place) }
                },)* })
            }
        }
    };
}

functions! {
    query_device: unsafe extern "C" fn(*mut Context, *mut DeviceAttr) -> c_int
        = VERBS VERBS.version, c"ibv_query_device";
    alloc_pd: unsafe extern "C" fn(*mut Context) -> *mut Pd
        = VERBS VERBS.version, c"ibv_alloc_pd";
    dealloc_pd: unsafe extern "C" fn(*mut Pd) -> c_int
        = VERBS VERBS.version, c"ibv_dealloc_pd";
    create_comp_channel: unsafe extern "C" fn(*mut Context) -> *mut CompChannel
        = VERBS VERBS_FIRST, c"ibv_create_comp_channel";
    destroy_comp_channel: unsafe extern "C" fn(*mut CompChannel) -> c_int
        = VERBS VERBS_FIRST, c"ibv_destroy_comp_channel";
    create_cq: unsafe extern "C" fn(*mut Context, c_int, Opaque, *mut CompChannel, c_int) -> *mut Cq
        = VERBS VERBS.version, c"ibv_create_cq";
    destroy_cq: unsafe extern "C" fn(*mut Cq) -> c_int
        = VERBS VERBS.version, c"ibv_destroy_cq";
    get_cq_event: unsafe extern "C" fn(*mut CompChannel, *mut *mut Cq, *mut Opaque) -> c_int
        = VERBS VERBS.version, c"ibv_get_cq_event";
    ack_cq_events: unsafe extern "C" fn(*mut Cq, u32)
        = VERBS VERBS.version, c"ibv_ack_cq_events";
    reg_mr: unsafe extern "C" fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr
        = VERBS VERBS.version, c"ibv_reg_mr";
    dereg_mr: unsafe extern "C" fn(*mut Mr) -> c_int
        = VERBS VERBS.version, c"ibv_dereg_mr";
    create_event_channel: unsafe extern "C" fn() -> *mut EventChannel
        = CM CM.version, c"rdma_create_event_channel";
    destroy_event_channel: unsafe extern "C" fn(*mut EventChannel)
        = CM CM.version, c"rdma_destroy_event_channel";
    create_id: unsafe extern "C" fn(*mut EventChannel, *mut *mut CmId, Opaque, c_int) -> c_int
        = CM CM.version, c"rdma_create_id";
    destroy_id: unsafe extern "C" fn(*mut CmId) -> c_int
        = CM CM.version, c"rdma_destroy_id";
    bind_addr: unsafe extern "C" fn(*mut CmId, *const c_void) -> c_int
        = CM CM.version, c"rdma_bind_addr";
    listen: unsafe extern "C" fn(*mut CmId, c_int) -> c_int
        = CM CM.version, c"rdma_listen";
    resolve_addr: unsafe extern "C" fn(*mut CmId, *const c_void, *const c_void, c_int) -> c_int
        = CM CM.version, c"rdma_resolve_addr";
    resolve_route: unsafe extern "C" fn(*mut CmId, c_int) -> c_int
        = CM CM.version, c"rdma_resolve_route";
    create_qp: unsafe extern "C" fn(*mut CmId, *mut Pd, *mut QpInitAttr) -> c_int
        = CM CM.version, c"rdma_create_qp";
    destroy_qp: unsafe extern "C" fn(*mut CmId)
        = CM CM.version, c"rdma_destroy_qp";
    connect: unsafe extern "C" fn(*mut CmId, *mut ConnParam) -> c_int
        = CM CM.version, c"rdma_connect";
    accept: unsafe extern "C" fn(*mut CmId, *mut ConnParam) -> c_int
        = CM CM.version, c"rdma_accept";
    reject: unsafe extern "C" fn(*mut CmId, *const c_void, u8) -> c_int
        = CM CM.version, c"rdma_reject";
    disconnect: unsafe extern "C" fn(*mut CmId) -> c_int
        = CM CM.version, c"rdma_disconnect";
    get_cm_event: unsafe extern "C" fn(*mut EventChannel, *mut *mut CmEvent) -> c_int
        = CM CM.version, c"rdma_get_cm_event";
    ack_cm_event: unsafe extern "C" fn(*mut CmEvent) -> c_int
        = CM CM.version, c"rdma_ack_cm_event";
}

/// rdma-core, of this process.
#[derive(Clone, Copy)]
pub struct Library {
    pub(super) functions: &'static Functions,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rdma-core")
    }
}

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    /// Loads the libraries, if nobody did before. They are never unloaded: drivers of
    /// devices have threads and forks in mind that nobody here knows.
    ///
    /// # Errors
    /// They are not there, or too old.
    pub fn load() -> Result<Self, LoadError> {
        acquire(Site::Map)?;
        let mut loaded = match LOADED.lock() {
            Ok(loaded) => loaded,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some(library) = *loaded {
            return Ok(library);
        }
        // librdmacm takes the same libibverbs, whose symbols it finds by version.
        let functions = Functions::find(open(&VERBS)?, open(&CM)?)?;
        let library = Self {
            functions: Box::leak(Box::new(functions)),
        };
        *loaded = Some(library);
        Ok(library)
    }
}

fn text(source: &Source) -> &'static str {
    source.name.to_str().unwrap_or_default()
}

fn open(source: &Source) -> Result<Opaque, LoadError> {
    if cfg!(target_feature = "crt-static") {
        return Err(LoadError::Static);
    }
    // SAFETY: the name ends with a zero; initialisers of a system library run.
    let handle = unsafe { libc::dlopen(source.name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: null, or text that stays until the next call of this thread.
    let why = unsafe {
        let why = libc::dlerror();
        if why.is_null() {
            String::new()
        } else {
            CStr::from_ptr(why).to_string_lossy().into_owned()
        }
    };
    Err(LoadError::Library {
        name: text(source),
        package: source.package,
        why,
    })
}

#[cfg(target_env = "gnu")]
fn symbol(handle: Opaque, version: &CStr, name: &CStr) -> Option<std::ptr::NonNull<c_void>> {
    // SAFETY: a handle that `dlopen` gave, and texts that end with a zero.
    let place = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
    std::ptr::NonNull::new(place)
}

/// Versions of symbols are glibc's: without them one may be another's.
#[cfg(not(target_env = "gnu"))]
fn symbol(_: Opaque, _: &CStr, _: &CStr) -> Option<std::ptr::NonNull<c_void>> {
    None
}

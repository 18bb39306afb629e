//! A stream of zlib that lasts as long as the connection.

use alloc::boxed::Box;
use alloc::vec::Vec;

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
};

/// The effort that is made unless a client wants another one: the least.
pub(super) const LEVEL: u8 = 1;
/// The most effort that a client can ask for; more of it brings nearly nothing.
pub(super) const LEVEL_MAX: u8 = 6;

/// One stream. What was flushed can be read up to its last byte.
#[derive(Default)]
pub(super) struct Deflate {
    core: Option<(Box<CompressorOxide>, u8)>,
    begun: bool,
}

impl core::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Deflate")
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

impl Deflate {
    /// A stream that goes on where one of another life has stopped. Its blocks refer to
    /// none of that one's, and a stream that is never finished has no checksum: so nothing
    /// but its header is not to be repeated.
    pub(super) fn resumed(begun: bool) -> Self {
        Self { core: None, begun }
    }

    /// Whether its header was written.
    pub(super) const fn begun(&self) -> bool {
        self.begun
    }

    /// Compresses `bytes` with this effort and adds what comes of it to `out`.
    pub(super) fn write(&mut self, bytes: &[u8], level: u8, out: &mut Vec<u8>) {
        self.run(bytes, level, TDEFLFlush::None, out);
    }

    /// Adds what is left, so that all that was written can be read.
    pub(super) fn flush(&mut self, level: u8, out: &mut Vec<u8>) {
        self.run(&[], level, TDEFLFlush::Sync, out);
    }

    fn run(&mut self, mut bytes: &[u8], level: u8, flush: TDEFLFlush, out: &mut Vec<u8>) {
        let header = i32::from(!self.begun);
        let (core, current) = self.core.get_or_insert_with(|| {
            let flags = create_comp_flags_from_zip_params(level.into(), header, 0);
            (Box::new(CompressorOxide::new(flags)), level)
        });
        self.begun = true;
        if *current != level {
            core.set_compression_level_raw(level);
            *current = level;
        }
        loop {
            let (_, taken) = compress_to_output(core, bytes, flush, |more| {
                out.extend_from_slice(more);
                true
            });
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return;
            }
        }
    }
}

//! Both ends over the pair in memory, by the driver that every provider has.
#![allow(non_snake_case, reason = "the names of the suite's cases")]

mod buffers;
mod ends;
mod pair;
mod simulation;

//! Both ends over the pair in memory and over iWARP, by the driver that every provider has.
#![allow(non_snake_case, reason = "the names of the suite's cases")]

mod buffers;
mod copies;
mod every;
mod pair;

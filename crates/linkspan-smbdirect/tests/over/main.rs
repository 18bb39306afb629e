//! Both ends over the pair in memory, by the driver that every provider has.

mod ends;
mod pair;
mod simulation;

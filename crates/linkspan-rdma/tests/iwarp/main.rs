//! iWARP: two ends back to back, and each end against a script of bytes.

mod checks;
mod golden;
mod life;
mod order;
mod pair;
mod random;
mod reach;
mod saved;
mod script;
mod setup;
mod whole;

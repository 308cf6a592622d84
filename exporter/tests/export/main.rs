//! Exports of small made-up models through the public API.

mod model;
mod output;
mod precision;
mod refusals;
mod replacing;

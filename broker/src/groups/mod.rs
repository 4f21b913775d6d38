//! Consumer groups: their queue locks and their offsets.

pub mod locks;
pub mod members;
pub mod offsets;

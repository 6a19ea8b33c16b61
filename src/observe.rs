//! What an operator sees: for now, the logs.

pub(crate) mod log;

//! Implements the commands that only read. They may run beside relays at any time.
//!
//! - [`check`]: finds faults before traffic does
//! - [`status`]: shows the backlog, what blocks it, and the relays
//! - [`explain`]: says why one event waits
//! - [`route`]: says where an event goes, and why
//! - [`tail`]: follows events to their topic
//! - [`verify`]: compares the table with topics, in bounded memory
//! - [`compare`]: compares any two topics, in bounded memory
//! - [`sorter`]: sorts more facts than fit into memory, for both
//! - [`dedup_window`]: compares how far back topics can be read with how far back consumers remember

pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod dedup_window;
pub(crate) mod explain;
pub(crate) mod route;
pub(crate) mod sorter;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod verify;

//! Where events go: Kafka, through librdkafka.
//!
//! - [`producer`]: one idempotent producer, used by one worker for one batch at a time
//! - [`delivery`]: what became of each record of the batch
//! - [`broker`]: whether the cluster can be reached
//! - [`topics`]: whether a topic can be written
//! - [`client`]: the settings a guarantee rests on
//! - [`murmur2`]: where a key belongs
//! - [`progress`]: what a lane's last transaction published
//! - [`transactions`]: Kafka's side of exactly-once
//! - [`reader`]: reads topics, for commands that look
//! - [`resend`]: sends records a second time, as they are

pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod delivery;
pub(crate) mod murmur2;
pub(crate) mod producer;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod resend;
pub(crate) mod topics;
pub(crate) mod transactions;

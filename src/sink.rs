//! Sends events to Kafka, through librdkafka.
//!
//! - [`admission`]: refuses events that would mislead others
//! - [`producer`]: one idempotent producer, used by one worker for one batch at a time
//! - [`delivery`]: the outcome of each record of a batch
//! - [`produce_error`]: the errors of records that librdkafka sends again
//! - [`broker`]: whether the cluster can be reached
//! - [`topics`]: whether a topic can be written
//! - [`client`]: the librdkafka settings that the guarantees depend on
//! - [`login`]: the tokens of clients, and why a client has none
//! - [`progress`]: the batch that a lane's last Kafka transaction published
//! - [`transactions`]: Kafka's part of exactly-once
//! - [`groups`]: which topics a consumer group reads
//! - [`reader`]: reads topics for commands
//! - [`silence`]: whether the cluster answers a command
//! - [`resend`]: sends existing records again, unchanged

pub(crate) mod admission;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod delivery;
pub(crate) mod groups;
pub(crate) mod login;
mod produce_error;
pub(crate) mod producer;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod resend;
pub(crate) mod silence;
pub(crate) mod topics;
pub(crate) mod transactions;

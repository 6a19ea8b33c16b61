//! Creates and reads a system's own topic.

use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::{Servers, Sizes};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Topic {
    pub(crate) name: String,
    partitions: i32,
    config: ClientConfig,
    client: BaseConsumer,
}

impl Topic {
    pub(crate) fn make(servers: &Servers, sizes: &Sizes, name: &str) -> anyhow::Result<Self> {
        servers.runtime.block_on(servers.kafka.create_topic(name, sizes.partitions, &[]))?;
        let mut config = servers.kafka.client();
        config.set("group.id", "peers").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "100");
        let client = config.create()?;
        Ok(Self { name: name.to_owned(), partitions: sizes.partitions, config, client })
    }

    /// Returns the number of records so far; a record that was sent twice counts twice.
    pub(crate) fn records(&self) -> anyhow::Result<u64> {
        (0..self.partitions).try_fold(0, |sum, partition| {
            let (_, high) = self.client.fetch_watermarks(&self.name, partition, ANSWER_WITHIN)?;
            Ok(sum + u64::try_from(high)?)
        })
    }

    /// Returns a consumer of records from now on. The broker answers as soon as there is a record.
    pub(crate) fn follow(&self) -> anyhow::Result<BaseConsumer> {
        let consumer: BaseConsumer = self.config.create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..self.partitions {
            let (_, high) = self.client.fetch_watermarks(&self.name, partition, ANSWER_WITHIN)?;
            assignment.add_partition_offset(&self.name, partition, Offset::Offset(high)).context("offset")?;
        }
        consumer.assign(&assignment)?;
        Ok(consumer)
    }
}

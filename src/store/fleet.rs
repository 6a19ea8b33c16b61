//! Reads the relays of the registry, and which session works on which lane now.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::lane::LaneRange;
use crate::lane::share::BadRange;
use crate::store::read_only::read;
use crate::store::relay_conflicts::{RecordSettings, RelayFacts};
use crate::store::relay_registry::HAS_ENDED;
use event_outbox::names::Names;

/// A relay's row in the registry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RegisteredRelay {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) workers: usize,
    /// Seconds since the relay registered itself.
    pub(crate) up_s: f64,
    /// Seconds since its last heartbeat.
    pub(crate) silent_s: f64,
    /// The lanes its workers owned then, a range for each worker that owned some; `None`: it does not report them.
    pub(crate) lanes: Option<Vec<LaneRange>>,
    /// The settings that shape its records; `None`: it does not report them.
    pub(crate) settings: Option<RecordSettings>,
    /// True if the session that sent the heartbeats is gone.
    #[serde(skip)]
    pub(crate) has_ended: bool,
}

impl RegisteredRelay {
    /// Returns true if the relay was heard of within `alive_for` and has not ended since.
    pub(crate) fn is_alive(&self, alive_for: Duration) -> bool {
        !self.has_ended && self.silent_s < alive_for.as_secs_f64()
    }

    /// Returns what is compared with other live relays.
    pub(crate) fn facts(&self) -> RelayFacts {
        RelayFacts { name: self.name.clone(), up_s: self.up_s, settings: self.settings.clone() }
    }
}

/// A lane that a session has locked now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LaneHeld {
    pub(crate) lane: i16,
    pub(crate) pid: i32,
    pub(crate) application: String,
}

/// The worker that publishes a lane in Kafka transactions, by the lane's row in the table `delivery`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LaneDelivery {
    pub(crate) lane: i16,
    /// A number that grows with every change of the owner.
    pub(crate) epoch: i64,
    /// The id of the worker that publishes the lane exactly once and has not released it; `None` if there is none.
    pub(crate) transactional_id: Option<String>,
    /// True if the worker may have sent something. Its progress is in Kafka then.
    pub(crate) opened: bool,
}

/// Reads the owners of all lanes.
pub(crate) async fn deliveries(conn: &mut PgConnection, names: &Names) -> Result<Vec<LaneDelivery>, sqlx::Error> {
    let query = format!(
        "select lane::int8, epoch, transactional_id, opened from {} order by lane limit 1024",
        names.companion("delivery")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(LaneDelivery {
                lane: row.try_get::<i64, _>(0)? as i16,
                epoch: row.try_get(1)?,
                transactional_id: row.try_get(2)?,
                opened: row.try_get(3)?,
            })
        })
        .collect()
}

/// The relays of the registry, in the order in which they share the lanes out; those not heard of for an hour are forgotten. The columns
/// of the lanes and of the settings are missing in older versions of the schema.
pub(crate) async fn relays(conn: &mut PgConnection, names: &Names) -> Result<Vec<RegisteredRelay>, sqlx::Error> {
    let query = format!(
        "select name, version, workers::int8, extract(epoch from now() - started_at)::float8, \
         extract(epoch from now() - seen_at)::float8, to_jsonb(relay) ->> 'lanes', to_jsonb(relay) ->> 'settings', \
         {HAS_ENDED} from {} relay where seen_at > now() - interval '1 hour' \
         order by started_at, id limit 1000",
        names.companion("relay")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(RegisteredRelay {
                name: row.try_get(0)?,
                version: row.try_get(1)?,
                workers: row.try_get::<i64, _>(2)?.max(0) as usize,
                up_s: row.try_get(3)?,
                silent_s: row.try_get(4)?,
                lanes: row.try_get::<Option<&str>, _>(5)?.map(ranges).transpose()?,
                settings: RelayFacts::settings_of(row.try_get(6)?)?,
                has_ended: row.try_get(7)?,
            })
        })
        .collect()
}

fn ranges(json: &str) -> Result<Vec<LaneRange>, sqlx::Error> {
    let texts: Vec<&str> = serde_json::from_str(json).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    texts.into_iter().map(|text| text.parse().map_err(|error: BadRange| sqlx::Error::Decode(Box::new(error)))).collect()
}

/// The lanes that are locked: a worker locks its lanes' rows while a batch is under way, and none while there is nothing to do.
pub(crate) async fn lanes_held(conn: &mut PgConnection, names: &Names) -> Result<Vec<LaneHeld>, sqlx::Error> {
    let query = format!(
        "select lanes.lane::int8, l.pid::int8, coalesce(a.application_name, '') \
         from (select lane, xmax::text::int8 as locker from {}) lanes \
         join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = lanes.locker \
         left join pg_stat_activity a using (pid) where lanes.locker <> 0 order by 1",
        names.companion("lane")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(LaneHeld {
                lane: row.try_get::<i64, _>(0)? as i16,
                pid: row.try_get::<i64, _>(1)? as i32,
                application: row.try_get(2)?,
            })
        })
        .collect()
}

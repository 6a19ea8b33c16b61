//! Decides about the options of the connector itself, and finds the router in the chain of transforms.

use super::{CONNECTOR, ROUTER, Reading};
use crate::adopt::debezium::name::check_name;
use crate::adopt::debezium::pattern::matches;
use crate::adopt::debezium::report::Verdict;
use crate::adopt::trigger::TableName;
use crate::text;

impl Reading<'_> {
    /// Decides about the options of the connector itself, and finds the router.
    pub(super) fn connector_options(&mut self, table: &TableName) {
        match self.connector.get("connector.class") {
            Some(CONNECTOR | "PostgresConnector" | "PostgresqlConnector") => {
                self.say("connector.class", Verdict::Kept, "the relay reads the same database");
            }
            Some(_) => self.say("connector.class", Verdict::Refused, format!("only {CONNECTOR} is taken over")),
            None => self.say("connector.class", Verdict::Refused, format!("it is missing; accepted is {CONNECTOR}")),
        }
        if self.connector.get("table.include.list").is_some() {
            let list = self.connector.get("table.include.list").unwrap_or_default();
            match list.split(',').filter(|name| !name.trim().is_empty()).count() {
                0 | 1 => self.say("table.include.list", Verdict::Kept, format!("the trigger is on {}", table.quoted())),
                count => self.say(
                    "table.include.list",
                    Verdict::Differs,
                    format!(
                        "the trigger is on {} only; not taken over: {}",
                        table.quoted(),
                        text::counted(count - 1, "other table")
                    ),
                ),
            }
        }
        self.snapshot_and_headers();
        self.find_router(table);
    }

    pub(super) fn snapshot_and_headers(&mut self) {
        let mode = self.connector.get("snapshot.mode").unwrap_or("initial").to_owned();
        let text = match mode.as_str() {
            "no_data" | "never" | "schema_only" => None,
            "initial_only" => Some("the connector reads rows of the past and stops; the trigger sees only new rows"),
            _ => Some("the trigger sees only new rows: a fresh connector would have read the rows of the past as well"),
        };
        match text {
            Some(text) => self.say("snapshot.mode", Verdict::Differs, text),
            None => self.say("snapshot.mode", Verdict::Kept, "rows of the past are not sent"),
        }
        match self.connector.get("extended.headers.enabled").map(str::trim) {
            Some("false") => {
                self.say("extended.headers.enabled", Verdict::Kept, "no headers of the connector's context")
            }
            _ => self.say(
                "extended.headers.enabled",
                Verdict::Differs,
                "the headers __debezium.context.connectorLogicalName, .taskId and .connectorName are not sent",
            ),
        }
        if self.connector.get("provide.transaction.metadata").is_some_and(|value| value.trim() == "true") {
            self.say("provide.transaction.metadata", Verdict::Differs, "the relay writes no topic of transactions");
        } else if self.connector.get("provide.transaction.metadata").is_some() {
            self.say("provide.transaction.metadata", Verdict::Kept, "there is no topic of transactions");
        }
        if let Some(skipped) = self.connector.get("skipped.operations") {
            match skipped.split(',').any(|op| op.trim() == "c") {
                true => self.say(
                    "skipped.operations",
                    Verdict::Refused,
                    "with c the connector sends no inserts, and so no events",
                ),
                false => self.say("skipped.operations", Verdict::Kept, "inserts are sent"),
            }
        }
        if let Some(prefix) = self.connector.get("topic.prefix") {
            match check_name("prefix", prefix) {
                Ok(()) => self.say(
                    "topic.prefix",
                    Verdict::Kept,
                    "the router names the topic; the prefix is used in predicates and names of schemas",
                ),
                Err(why) => self.say("topic.prefix", Verdict::Refused, why),
            }
        }
        for mode in ["binary.handling.mode", "time.precision.mode"] {
            if self.connector.get(mode).is_some() {
                self.say(mode, Verdict::Kept, "columns are printed as with this mode");
            }
        }
    }

    /// Finds the router in the chain of transforms. Every other transform is refused.
    pub(super) fn find_router(&mut self, table: &TableName) {
        let chain = self.connector.get("transforms").unwrap_or_default().to_owned();
        let steps: Vec<_> = chain.split(',').map(str::trim).filter(|step| !step.is_empty()).collect();
        let mut routers = Vec::new();
        for step in &steps {
            let name = format!("transforms.{step}.type");
            match self.connector.get(&name).map(str::to_owned).as_deref() {
                Some(ROUTER | "EventRouter") => routers.push((*step).to_owned()),
                Some(other) => self.say(
                    &name,
                    Verdict::Refused,
                    format!("the transform {other} is not known, and may change any record; accepted is {ROUTER}"),
                ),
                None => self.say(&name, Verdict::Refused, format!("it is missing; accepted is {ROUTER}")),
            }
        }
        match routers.as_slice() {
            [router] => {
                self.prefix = format!("transforms.{router}.");
                self.router = self.connector.below(&self.prefix).0;
                self.say("transforms", Verdict::Kept, "the trigger does what the router does");
                self.say(&format!("{}type", self.prefix), Verdict::Kept, "the trigger does what the router does");
                self.predicate(table);
            }
            [] => self.say("transforms", Verdict::Refused, format!("no transform is {ROUTER}")),
            _ => self.say(
                "transforms",
                Verdict::Refused,
                "two routers would send each row twice, or contradict each other",
            ),
        }
    }

    /// Decides whether the router's predicate lets rows of the table pass.
    pub(super) fn predicate(&mut self, table: &TableName) {
        let Some(name) = self.router.get("predicate").cloned() else { return };
        let option = format!("predicates.{name}.type");
        let negated = self.router.get("negate").is_some_and(|value| value.trim() == "true");
        let topic =
            format!("{}.{}.{}", self.connector.get("topic.prefix").unwrap_or_default(), table.schema, table.table);
        let holds = match self.connector.get(&option) {
            Some("org.apache.kafka.connect.transforms.predicates.TopicNameMatches") => {
                let pattern = self.connector.get(&format!("predicates.{name}.pattern")).unwrap_or_default();
                matches(pattern, &topic).map_err(|why| format!("its pattern is not understood: {why}"))
            }
            Some("org.apache.kafka.connect.transforms.predicates.RecordIsTombstone") => Ok(false),
            Some(other) => {
                Err(format!("the predicate {other} is not known; accepted are TopicNameMatches and RecordIsTombstone"))
            }
            None => Err(format!("{option} is missing")),
        };
        let decided = match holds {
            Ok(holds) if holds != negated => Ok(()),
            Ok(_) => Err(format!("the router would not be applied to rows of the table, whose topic is {topic}")),
            Err(why) => Err(why),
        };
        self.settle("predicate", "rows of the table pass", decided);
        self.say_router("negate", Verdict::Kept, "see predicate");
    }
}

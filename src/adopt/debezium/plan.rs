//! Decides about every option of a connector, and writes the trigger and the settings that go on where it stops.
//!
//! - `connector`, `settings`: the options of the connector itself
//! - `fields`, `placed`, `value`: the options of the router
//! - `check`: the check of the table in the SQL

mod check;
mod connector;
mod fields;
mod placed;
mod settings;
mod value;

use std::collections::BTreeMap;

use event_outbox::Names;
use event_outbox::route::{NameMistake, check_topic};

use super::columns::{Column, Columns, Form, Kind, Modes};
use super::converter::Converter;
use super::file::Options;
use super::options::{is_shown, is_shown_of_router};
use super::pattern::Route;
use super::report::{Report, Verdict};
use super::sql::{Expand, Functions};
use crate::adopt::trigger::{Firing, TableName, Trigger};
use check::Checked;

/// The class of the connector.
const CONNECTOR: &str = "io.debezium.connector.postgresql.PostgresConnector";

/// The class of the router.
const ROUTER: &str = "io.debezium.transforms.outbox.EventRouter";

/// The defaults of the router (io.debezium.transforms.outbox.EventRouterConfigDefinition, 3.6.1).
const DEFAULTS: [(&str, &str); 9] = [
    ("table.field.event.id", "id"),
    ("table.field.event.key", "aggregateid"),
    ("table.field.event.type", "type"),
    ("table.field.event.payload", "payload"),
    ("route.by.field", "aggregatetype"),
    ("route.topic.regex", "(?<routedByValue>.*)"),
    ("route.topic.replacement", "outbox.event.${routedByValue}"),
    ("table.expand.json.payload", "false"),
    ("route.tombstone.on.empty.payload", "false"),
];

/// Header names that every record of the relay has.
const RELAYS_OWN: [&str; 4] = ["event-id", "event-type", "event-version", "sequence"];

/// The wishes of the user beside the connector's file.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The options of the Connect worker, for converters that the connector does not set.
    pub(crate) worker: Option<Options>,
    /// The outbox table of the application, if the connector's file does not name one table.
    pub(crate) table: Option<TableName>,
    pub(crate) firing: Firing,
    /// Options that are given up.
    pub(crate) ignored: Vec<String>,
}

/// The trigger and the settings that replace a connector.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) report: Report,
    /// The refused options that `--ignore` can give up.
    pub(crate) can_be_ignored: Vec<String>,
    /// The refused options that the user has given up in vain: the trigger follows from them.
    pub(crate) needed: Vec<String>,
    /// The statements to run; empty if something is refused.
    pub(crate) sql: String,
    /// The statement that undoes them.
    pub(crate) drop: String,
    pub(crate) env: String,
}

/// The reading of a connector's options, with the verdict of each.
pub(super) struct Reading<'a> {
    pub(super) connector: &'a Options,
    /// The options of the router without their prefix, with defaults.
    router: BTreeMap<String, String>,
    /// The prefix of the router's options, such as `transforms.outbox.`.
    prefix: String,
    request: &'a Request,
    pub(super) report: Report,
    /// Names that were looked at.
    decided: Vec<String>,
    /// Names that nobody knows.
    unknown: Vec<String>,
}

/// Returns the table of a connector: the one of the request, or else the only one of `table.include.list`.
///
/// # Errors
/// There is none, or there are several.
pub(crate) fn table(connector: &Options, request: &Request) -> Result<TableName, String> {
    if let Some(table) = &request.table {
        return Ok(table.clone());
    }
    let Some(list) = connector.get("table.include.list").filter(|list| !list.trim().is_empty()) else {
        return Err("table.include.list is missing: --from-table SCHEMA.TABLE names the outbox table".to_owned());
    };
    let names: Vec<_> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let [only] = names.as_slice() else {
        return Err(format!(
            "table.include.list names {} tables: --from-table SCHEMA.TABLE picks the outbox table",
            names.len()
        ));
    };
    parse_table(&only.replace("\\.", "."))
        .map_err(|why| format!("table.include.list={only:?}: {why}; --from-table SCHEMA.TABLE names the outbox table"))
}

/// Parses `schema.table`. Both are taken as they are, without quotes.
///
/// # Errors
/// What is accepted.
pub(crate) fn parse_table(text: &str) -> Result<TableName, String> {
    let is_plain = |name: &str| {
        let is_pattern = |c: char| "*+?([|\\^$\"".contains(c);
        !name.is_empty() && !name.contains(is_pattern) && !name.contains(char::is_control)
    };
    match text.split_once('.') {
        Some((schema, table)) if is_plain(schema) && is_plain(table) => {
            Ok(TableName { schema: schema.to_owned(), table: table.to_owned() })
        }
        _ => Err("accepted is SCHEMA.TABLE, without quotes, patterns and control characters".to_owned()),
    }
}

/// Decides about every option and writes the trigger.
pub(crate) fn plan(
    connector: &Options,
    request: &Request,
    names: &Names,
    table: &TableName,
    columns: &Columns,
) -> Plan {
    let mut reading = Reading {
        connector,
        router: BTreeMap::new(),
        prefix: String::new(),
        request,
        report: Report::default(),
        decided: Vec::new(),
        unknown: Vec::new(),
    };
    reading.connector_options(table);
    let written = reading.write(names, table, columns);
    reading.others();
    reading.report.sort();
    let refused = reading.report.0.iter().filter(|line| line.verdict == Verdict::Refused).map(|line| &line.option);
    let (can_be_ignored, needed): (Vec<String>, Vec<String>) =
        refused.cloned().partition(|option| reading.can_be_ignored(option));
    let is_refused = !can_be_ignored.is_empty() || !needed.is_empty();
    let needed = needed.into_iter().filter(|option| request.ignored.contains(option)).collect();
    let (sql, drop) = written.filter(|_| !is_refused).unwrap_or_default();
    let env = if is_refused || sql.is_empty() { String::new() } else { reading.env() };
    Plan { report: reading.report, can_be_ignored, needed, sql, drop, env }
}

/// Returns the text of a verdict for a result.
type Decided<T> = Result<T, String>;

impl Reading<'_> {
    pub(super) fn say(&mut self, option: &str, verdict: Verdict, text: impl Into<String>) {
        self.decided.push(option.to_owned());
        let in_router = option.strip_prefix(&self.prefix).filter(|_| !self.prefix.is_empty());
        let is_shown = in_router.map_or_else(|| is_shown(option), is_shown_of_router);
        let value = self.connector.get(option).filter(|_| is_shown);
        self.report.add(option, value, verdict, text);
    }

    /// Notes a verdict about an option of the router. Defaults are noted only if something is wrong with them.
    fn say_router(&mut self, option: &str, verdict: Verdict, text: impl Into<String>) {
        let name = format!("{}{option}", self.prefix);
        if verdict != Verdict::Kept || self.connector.get(&name).is_some() {
            self.say(&name, verdict, text);
        }
    }

    /// Notes a result about an option of the router: kept, or refused with the reason.
    fn settle<T>(&mut self, option: &str, kept: &str, result: Decided<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.say_router(option, Verdict::Kept, kept);
                Some(value)
            }
            Err(why) => {
                self.say_router(option, Verdict::Refused, why);
                None
            }
        }
    }

    fn router(&self, option: &str) -> Option<&str> {
        let given = self.router.get(option).map(String::as_str).map(str::trim).filter(|text| !text.is_empty());
        given.or_else(|| DEFAULTS.iter().find(|(name, _)| *name == option).map(|(_, value)| *value))
    }

    fn modes(&self) -> Modes<'_> {
        Modes {
            binary: self.connector.get("binary.handling.mode").unwrap_or("bytes"),
            time: self.connector.get("time.precision.mode").unwrap_or("adaptive"),
        }
    }

    /// Writes the trigger; `None` if something is refused that the trigger depends on.
    fn write(&mut self, names: &Names, table: &TableName, columns: &Columns) -> Option<(String, String)> {
        if self.prefix.is_empty() {
            return None;
        }
        let functions = Functions::new(names, table);
        let mut used: Vec<Checked> = Vec::new();
        let route = self.route(columns, &mut used);
        let key = self.key(columns, &functions, &mut used);
        let placed = self.placements(columns, &mut used);
        let value = self.value(columns, &functions, &placed, table, route.as_ref(), &mut used);
        let id = self.id(columns, names, table, &mut used);
        let headers = self.headers(&placed, id.as_ref(), &functions, &mut used);
        let event_type = self.event_type(columns, &placed, route.as_ref(), &mut used);
        let version = self.version(columns, &placed, &mut used);
        let created = self.created(columns, &mut used);
        let (route, key, (value, expand), id) = (route?, key?, value?, id?);
        let (headers, event_type) = (headers?, event_type?);
        let entity_type = format!("coalesce({}, '')", route.value);
        let mut values = vec![
            ("event_id", id.event_id),
            ("entity_type", entity_type.clone()),
            ("entity_id", key.clone()),
            ("event_type", event_type),
            ("payload_bytes", value),
            ("topic", format!("coalesce({}, '')", route.topic)),
        ];
        values.extend(version?.map(|version| ("event_version", version)));
        values.extend(created?.map(|created| ("created_at", created)));
        values.extend(headers.map(|headers| ("headers", headers)));
        let text: String = values.iter().map(|(_, value)| value.as_str()).collect();
        let payload = self.router("table.field.event.payload").unwrap_or_default().to_owned();
        let keeps_nulls = self.router("table.json.payload.null.behavior") == Some("optional_bytes");
        let expand = expand.then_some(Expand { payload: &payload, keeps_nulls });
        let helpers = functions.called_by(&text, expand.as_ref());
        let needs_utf8 = !helpers.is_empty();
        let trigger =
            Trigger { names, table, firing: self.request.firing, values, entity: (entity_type, key), helpers };
        let check = check::check(names, table, &used, needs_utf8);
        let drop = trigger.drop();
        Some((format!("{}{check}\n{}", check::header(names, table, &drop), trigger.create()), drop))
    }

    fn column(&self, option: &str, columns: &Columns, assumed: Kind) -> Decided<Column> {
        columns.get(self.router(option).unwrap_or_default(), assumed)
    }

    /// Decides about the route: the value that it is made from, and the topic.
    fn route(&mut self, columns: &Columns, used: &mut Vec<Checked>) -> Option<Routed> {
        let by = self.column("route.by.field", columns, Kind::Text).and_then(|column| {
            let form = Form::new(&column, self.modes())?;
            match form.is_string && !form.is_bytes() {
                true => Ok((column, form)),
                false => Err(format!(
                    "the column {:?} is not a text; accepted are text, varchar, char, uuid and enums",
                    column.name
                )),
            }
        });
        let by = self.settle("route.by.field", "entity type, and what the topic is made from", by);
        let regex = self.router("route.topic.regex").unwrap_or_default().to_owned();
        let replacement = self.router("route.topic.replacement").unwrap_or_default().to_owned();
        let route = Route::parse(&regex, &replacement);
        let is_of_replacement =
            route.as_ref().is_err_and(|why| why.contains("replacement") || why.contains("has no group"));
        let option = if is_of_replacement { "route.topic.replacement" } else { "route.topic.regex" };
        let other = if is_of_replacement { "route.topic.regex" } else { "route.topic.replacement" };
        let route = self.settle(option, "topics are named as by the router", route)?;
        let legal = legal(&route);
        match legal {
            Ok(()) => self.say_router(other, Verdict::Kept, "topics are named as by the router"),
            Err(why) => {
                self.say_router("route.topic.replacement", Verdict::Refused, why);
                return None;
            }
        }
        let (column, form) = by?;
        used.push(Checked::of(&column));
        Some(Routed { topic: route.sql(&form.text), value: form.text })
    }

    fn converter(&mut self, which: &str) -> Option<Converter> {
        let option = format!("{which}.converter");
        let given = self.connector.get(&option);
        let (class, of) = match given {
            Some(class) => (Some(class.to_owned()), self.connector.below(&format!("{option}."))),
            None => {
                let worker = self.request.worker.as_ref();
                let class = worker.and_then(|worker| worker.get(&option)).map(str::to_owned);
                (class, worker.map_or_else(Options::default, |worker| worker.below(&format!("{option}."))))
            }
        };
        let class = match (class, which) {
            (Some(class), _) => class,
            (None, "header") => "org.apache.kafka.connect.storage.SimpleHeaderConverter".to_owned(),
            (None, _) => {
                self.say(
                    &option,
                    Verdict::Refused,
                    "the connector does not set it, so the worker's counts: --worker FILE names worker.properties",
                );
                return None;
            }
        };
        let parsed = Converter::parse(class.trim(), &of);
        for name in of.0.keys().filter(|_| given.is_some()) {
            let name = format!("{option}.{name}");
            if parsed.is_ok() {
                self.say(&name, Verdict::Kept, format!("see {option}"));
            } else {
                self.decided.push(name);
            }
        }
        match parsed {
            Ok(converter) => {
                if given.is_some() {
                    self.say(&option, Verdict::Kept, "the trigger writes this form");
                }
                Some(converter)
            }
            Err(why) => {
                self.say(&option, Verdict::Refused, why);
                None
            }
        }
    }

    fn boolean(&mut self, option: &str, kept: &str) -> Option<bool> {
        let value = self.router(option).unwrap_or("false").to_lowercase();
        let parsed = value.parse::<bool>().map_err(|_| format!("{value:?} is not known; accepted are true and false"));
        self.settle(option, kept, parsed)
    }
}

/// The route of an event, as expressions.
struct Routed {
    value: String,
    topic: String,
}

/// The id of an event, as expressions.
struct Identity {
    event_id: String,
    text: String,
    form: Form,
    column: Column,
    is_uuid: bool,
}

/// Checks the literal part of a route: a topic that is only literal must be legal, and no other part may make it illegal.
fn legal(route: &Route) -> Result<(), String> {
    let (text, has_groups) = route.literals();
    match check_topic(&text) {
        Err(NameMistake::Empty | NameMistake::Dots) if has_groups => Ok(()),
        Err(mistake) => {
            Err(format!("it makes illegal names of topics: {mistake}; accepted are letters, digits, '.', '_' and '-'"))
        }
        Ok(()) => Ok(()),
    }
}

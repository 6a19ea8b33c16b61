//! Runs `outbox-relay import`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::exit::Failure;
use super::{output, runtime, target};
use crate::adopt::debezium::{self, Column, Columns, Kind, Options, Plan, Request, Verdict};
use crate::adopt::trigger::{Firing, TableName};
use crate::config::{Needs, Settings, Source, Sources};
use crate::store::columns;
use crate::store::connect::Purpose;
use crate::text;
use event_outbox::Names;

/// Take over from another program
#[derive(Debug, Subcommand)]
pub(crate) enum Import {
    /// Read a Debezium connector with the outbox event router, say what becomes of each option, and write a trigger and settings
    ///
    /// Nothing is changed in the database: --sql writes the trigger, which you run yourself, and --env the settings of the relay. With
    /// DATABASE_URL the columns are read from the table; without it they are assumed, or named by --column, and the SQL checks them.
    Debezium(Debezium),
}

/// The locks of the trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// Locks nothing: exact where the application locks an entity anywhere in its transaction
    Commit,
    /// Locks the entities of a transaction, sorted, when it commits
    Strict,
}

#[derive(Debug, Args)]
pub(crate) struct Debezium {
    /// The connector's file: JSON, bare or with "name" and "config", or Java properties
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write the trigger to this file
    #[arg(long, value_name = "FILE")]
    sql: Option<PathBuf>,
    /// Write the settings to this file
    #[arg(long, value_name = "FILE")]
    env: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// The file of the Connect worker, for converters that the connector does not set
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// The outbox table of the application, where the connector's file does not name exactly one
    #[arg(long = "from-table", value_name = "SCHEMA.TABLE")]
    from_table: Option<String>,
    /// The type of a column, where no database is asked; "absent" if there is none, "TYPE not null" where it matters; may be repeated
    #[arg(long = "column", value_name = "NAME=TYPE")]
    columns: Vec<String>,
    /// The locks of the trigger
    #[arg(long, value_enum, default_value_t = Order::Commit, conflicts_with = "bulk")]
    order: Order,
    /// Write the events of a statement together, for applications that lock entities before they insert
    #[arg(long)]
    bulk: bool,
    /// Give up what an option does; may be repeated
    #[arg(long, value_name = "OPTION")]
    ignore: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Import {
    pub(crate) fn run(self, sources: &Sources) -> Result<(), Failure> {
        match self {
            Self::Debezium(debezium) => debezium.run(sources),
        }
    }
}

impl Debezium {
    fn run(self, sources: &Sources) -> Result<(), Failure> {
        let shown = self.file.display().to_string();
        let connector = read(&self.file)?;
        self.check_ignored(&connector, &shown)?;
        let worker = self.worker.as_deref().map(read).transpose()?;
        let table = self.from_table.as_deref().map(debezium::parse_table).transpose();
        let table = table.map_err(|why| Failure::usage(format!("--from-table: {why}")))?;
        let firing = match (self.bulk, self.order) {
            (true, _) => Firing::Bulk,
            (false, Order::Commit) => Firing::Deferred,
            (false, Order::Strict) => Firing::Strict,
        };
        let request = Request { worker, table, firing, ignored: self.ignore.clone() };
        let table = debezium::table(&connector, &request).map_err(|why| refused(&shown, why))?;
        let mut columns = self.columns()?;
        let names = self.names(sources, &table, &mut columns)?;
        let plan = debezium::plan(&connector, &request, &names, &table, &columns);
        let is_refused = plan.report.count(Verdict::Refused) > 0;
        if !is_refused {
            self.write(&plan)?;
        }
        self.print(&plan, &table)?;
        match is_refused {
            true => Err(refusal(&plan, &shown)),
            false => Ok(()),
        }
    }

    /// Fails if the user gives up an option that the file does not have: it may be a typing mistake.
    fn check_ignored(&self, connector: &Options, file: &str) -> Result<(), Failure> {
        let is_missing = |option: &&String| !connector.names().any(|name| name == option.as_str());
        let Some(missing) = self.ignore.iter().find(is_missing) else { return Ok(()) };
        let alike = text::alike(missing, connector.names()).unwrap_or_default();
        Err(Failure::usage(format!("--ignore {}: {} has no such option", text::name(missing), text::name(file)))
            .hint(format!("its options with the most similar names are {alike}")))
    }

    /// Parses the columns that the user names.
    fn columns(&self) -> Result<Columns, Failure> {
        let mut columns = Columns::default();
        for given in &self.columns {
            let wrong = || {
                Failure::usage(format!(
                    "--column {}: accepted is NAME=TYPE with a type of {}",
                    text::name(given),
                    Kind::ACCEPTED
                ))
            };
            let (name, kind) = given.split_once('=').ok_or_else(wrong)?;
            let (name, kind) = (name.trim().to_owned(), kind.trim().to_lowercase());
            if kind == "absent" {
                columns.absent.push(name);
                continue;
            }
            let bare = kind.strip_suffix("not null").map(str::trim);
            match Kind::parse(bare.unwrap_or(&kind)) {
                Kind::Other(_) => return Err(wrong()),
                parsed => {
                    let column =
                        Column { name: name.clone(), kind: parsed, nullable: bare.is_none(), has_default: false };
                    columns.known.insert(name, column);
                }
            }
        }
        Ok(columns)
    }

    /// Returns the names of the outbox. Reads the columns of the table if there is a database.
    fn names(&self, sources: &Sources, table: &TableName, columns: &mut Columns) -> Result<Names, Failure> {
        let has_database = sources
            .effective()
            .iter()
            .any(|setting| setting.name == "database_url" && setting.source != Source::Default);
        if !has_database {
            return Ok(target::names(&Settings::load_names(sources)?));
        }
        let settings = Settings::load(sources.clone(), Needs::DatabaseOnly)?;
        let found = runtime()?.block_on(async {
            let mut conn = target::connect(&settings, "outbox-relay-import", Purpose::ReadRelays).await?;
            let found = columns::read(&mut conn, &table.schema, &table.table).await;
            found.map_err(|error| target::failed("read the columns of", &table.quoted(), error))
        })?;
        let Some(found) = found else {
            return Err(Failure::finding(format!(
                "the table {} does not exist in {}",
                table.quoted(),
                settings.database.target()
            ))
            .hint("name the outbox table of the application: --from-table SCHEMA.TABLE"));
        };
        columns.complete = true;
        for column in found {
            let kind = Kind::parse(&column.type_name);
            let (name, nullable, has_default) = (column.name, column.nullable, column.has_default);
            columns.known.insert(name.clone(), Column { name, kind, nullable, has_default });
        }
        Ok(target::names(&settings.outbox))
    }

    /// Writes both files, or none.
    fn write(&self, plan: &Plan) -> Result<(), Failure> {
        let files = [(self.sql.as_deref(), plan.sql.as_str()), (self.env.as_deref(), plan.env.as_str())];
        let files: Vec<(&Path, &str)> = files.into_iter().filter_map(|(path, text)| Some((path?, text))).collect();
        for (path, _) in &files {
            if path.exists() && !self.force {
                return Err(Failure::usage(format!("{} exists, nothing was written", path.display()))
                    .hint("--force replaces it"));
            }
        }
        let staged: Vec<_> = files
            .iter()
            .map(|(path, text)| stage(path, text).map(|staged| (staged, *path)))
            .collect::<Result<_, _>>()?;
        for (staged, path) in staged {
            staged.persist(path).map_err(|error| unwritten(path, error.error))?;
        }
        Ok(())
    }

    fn print(&self, plan: &Plan, table: &TableName) -> Result<(), Failure> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let is_written = plan.report.count(Verdict::Refused) == 0;
        let (sql, env) = (path(&self.sql).filter(|_| is_written), path(&self.env).filter(|_| is_written));
        if self.json {
            output::json(&json!({
                "table": { "schema": table.schema, "table": table.table },
                "options": plan.report,
                "sql": sql,
                "env": env,
                "undo": is_written.then_some(&plan.drop),
            }))?;
            return Ok(());
        }
        let mut shown = format!("table {}\n\n{}", text::name(&table.quoted()), plan.report);
        let [refused, differs, kept] =
            [Verdict::Refused, Verdict::Differs, Verdict::Kept].map(|verdict| plan.report.count(verdict));
        shown += &format!("\n{refused} refused, {differs} different, {kept} kept\n");
        if is_written {
            if let Some(sql) = &sql {
                shown +=
                    &format!("trigger   {sql}: psql -v ON_ERROR_STOP=1 --single-transaction -f {}\n", text::shell(sql));
            }
            if let Some(env) = &env {
                shown += &format!("settings  {env}\n");
            }
            if sql.is_none() && env.is_none() {
                shown += "nothing was written: --sql FILE writes the trigger, --env FILE the settings\n";
            }
            shown += &format!("undo      {}\n", plan.drop);
        }
        output::text(&shown);
        Ok(())
    }
}

/// Returns the failure of a connector of which options are refused.
fn refusal(plan: &Plan, file: &str) -> Failure {
    let listed =
        |options: &[String]| options.iter().map(|option| text::name(option).to_string()).collect::<Vec<_>>().join(", ");
    let refused = text::counted(plan.report.count(Verdict::Refused), "refused option");
    let file = text::name(file);
    let change = "change the options that are marked as refused";
    let hint = match (plan.needed.as_slice(), plan.can_be_ignored.as_slice()) {
        ([], []) => format!("{change}; --ignore cannot give them up, because the trigger follows from them"),
        ([], free) => format!("{change}; --ignore OPTION gives up {}, if the effect is not needed", listed(free)),
        (needed, _) => format!(
            "--ignore cannot give up {}, because the trigger follows from it: the line of the option says what is accepted",
            listed(needed)
        ),
    };
    Failure::finding(format!("nothing was written: {file} has {refused}")).hint(hint)
}

fn read(path: &Path) -> Result<Options, Failure> {
    let shown = path.display().to_string();
    let bytes = fs::read(path).map_err(|error| {
        Failure::finding(format!("cannot read {}", text::name(&shown)))
            .because(error)
            .hint("name the connector's file, JSON or Java properties")
    })?;
    let content = String::from_utf8(bytes).map_err(|_| refused(&shown, "it is not UTF-8 text".to_owned()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    Options::parse(&name, &content).map_err(|why| refused(&shown, why))
}

fn refused(file: &str, why: String) -> Failure {
    Failure::finding(format!("{}: {}", text::name(file), text::sentence(&why)))
}

/// Writes a file beside its place.
fn stage(path: &Path, content: &str) -> Result<tempfile::NamedTempFile, Failure> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::NamedTempFile::new_in(directory).and_then(|mut staged| {
        staged.write_all(content.as_bytes())?;
        staged.flush()?;
        Ok(staged)
    });
    staged.map_err(|error| unwritten(path, error))
}

fn unwritten(path: &Path, error: std::io::Error) -> Failure {
    Failure::finding(format!("cannot write {}", text::name(&path.display().to_string())))
        .because(error)
        .hint("name a file in a directory that exists and can be written")
}

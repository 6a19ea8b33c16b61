//! Hands the table of a home-made polling loop over to the outbox: finds out what its columns mean, and writes the trigger and the move of
//! the rows that the loop has not published.
//!
//! - [`role`]: what a column can mean
//! - [`given`]: what the user has said, and why a table is refused
//! - [`flag`]: how a row says that the loop has not published it yet
//! - [`mapping`]: what the columns mean
//! - [`guess`]: finds the meaning of the columns, by name and type
//! - [`script`]: the SQL of the cut, and of its undo
//! - [`rows`]: what the rows say: states, counts, topics
//! - [`history`]: who has adopted a table last, or given it back
//!
//! Each row belongs to exactly one side. The cut locks the table, so that no transaction of an application or of the loop is open on it. It
//! moves the pending rows, in the order of their ids, and marks them as the loop would have done. From then on a trigger does the same for
//! each new row when its transaction commits, so the loop sees no pending row any more.

pub(crate) mod flag;
pub(crate) mod given;
pub(crate) mod guess;
pub(crate) mod history;
pub(crate) mod mapping;
pub(crate) mod role;
pub(crate) mod rows;
pub(crate) mod script;

//! Prints the status for people: one screen, readable without colour.

use std::fmt;

use super::{Brokers, Status};
use crate::observe::terminal::{Stream, Tone, paint};
use crate::store::activity::span;
use crate::text;

/// The maximum number of rows in each part of the screen.
const MOST_TOPICS: usize = 8;
const MOST_STEPS: usize = 8;

/// The width of a line that no terminal shows.
const WIDTH: usize = 100;

/// The columns of a line beside the name of a topic.
const BESIDE_TOPIC: usize = 30;

/// Colours a count that is not zero.
fn toned(count: i64, tone: Tone) -> String {
    if count == 0 { count.to_string() } else { paint(tone, count).to_string() }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts(f)?;
        self.brokers(f)?;
        self.fleet(f)?;
        self.topics(f)?;
        self.lanes(f)?;
        self.delivery(f)?;
        if self.next.is_empty() {
            return writeln!(f, "\n{}", paint(Tone::Good, "nothing to do"));
        }
        writeln!(f, "\n{}", paint(Tone::Strong, "to do"))?;
        for step in self.next.iter().take(MOST_STEPS) {
            let what = text::sentence(&step.what);
            let tone = if step.is_urgent() { Tone::Bad } else { Tone::Doubtful };
            writeln!(f, "  - {}\n    next: {}", paint(tone, what), text::sentence(&step.next_step))?;
        }
        if self.next.len() > MOST_STEPS {
            writeln!(f, "  and {} more, see --json", self.next.len() - MOST_STEPS)?;
        }
        Ok(())
    }
}

impl Status {
    fn counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(counts) = &self.backlog else { return writeln!(f, "the outbox cannot be read") };
        let least = if counts.pending_is_at_least { "at least " } else { "" };
        let oldest = counts.oldest_pending_s.map_or_else(|| "-".to_owned(), span);
        writeln!(f, "pending    {least}{}, oldest {oldest}", counts.pending)?;
        if let Some(flow) = &self.flow {
            let drain = match self.drain_s {
                _ if counts.pending == 0 => "nothing to drain".to_owned(),
                Some(drain) => format!("drained in {}", span(drain)),
                None => "not draining".to_owned(),
            };
            let (settled, inserted, over) = (flow.settled_per_s, flow.inserted_per_s, span(flow.over_s));
            writeln!(f, "rate       {settled:.1}/s out, {inserted:.1}/s in over {over}: {drain}")?;
        }
        writeln!(f, "scheduled  {}", counts.scheduled)?;
        writeln!(f, "held       {}", toned(counts.held, Tone::Doubtful))?;
        writeln!(f, "dead       {}", toned(counts.dead, Tone::Bad))
    }

    fn brokers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Brokers { asked, answer, reason, .. }) = &self.brokers else { return Ok(()) };
        let reason = reason.as_deref().unwrap_or_default();
        match asked {
            Some(asked) if *answer => writeln!(f, "brokers    {asked} answer"),
            Some(asked) => writeln!(f, "brokers    {asked} do not answer: {reason}"),
            None => writeln!(f, "brokers    not asked: {reason}"),
        }
    }

    fn fleet(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nrelays")?;
        for relay in &self.relays {
            let seen = &relay.seen;
            if relay.alive {
                let lanes = match &seen.lanes {
                    Some(lanes) if lanes.is_empty() => "none".to_owned(),
                    Some(lanes) => lanes.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                    None => "not reported".to_owned(),
                };
                let (name, version) = (text::name(&seen.name), text::name(&seen.version));
                writeln!(f, "  {name}  {version}, {} workers, lanes {lanes}, up {}", seen.workers, span(seen.up_s))?;
            } else {
                let (name, version) = (text::name(&seen.name), text::name(&seen.version));
                writeln!(f, "  {name}  {version}, {} for {}", paint(Tone::Doubtful, "silent"), span(seen.silent_s))?;
            }
        }
        if self.relays.is_empty() {
            writeln!(f, "{}", if self.unreadable.is_some() { "  not known" } else { "  none" })?;
        }
        for waiting in &self.waiting {
            let pids: Vec<_> = waiting.waits_for.iter().map(ToString::to_string).collect();
            let application = text::name(&waiting.application);
            writeln!(f, "  session {} of \"{application}\" waits for pid {}", waiting.pid, pids.join(", "))?;
        }
        Ok(())
    }

    fn topics(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.topics.is_empty() {
            return Ok(());
        }
        let part = if self.is_head_only() { " (of the first 100000 events)" } else { "" };
        writeln!(f, "\npending by topic{part}")?;
        let shown = || self.topics.iter().take(MOST_TOPICS);
        let longest = shown().map(|topic| topic.topic.chars().count()).max().unwrap_or_default();
        let room = Stream::Out.columns().unwrap_or(WIDTH) - BESIDE_TOPIC;
        let width = longest.min(room);
        for topic in shown() {
            let name = text::name(&topic.topic).at_most(width);
            writeln!(f, "  {name:<width$} {:>9}  oldest {}", topic.pending, span(topic.oldest_s))?;
        }
        if self.topics.len() > MOST_TOPICS {
            writeln!(f, "  and {} more, see --json", self.topics.len() - MOST_TOPICS)?;
        }
        Ok(())
    }

    /// Prints the lanes that are published exactly once, grouped by owner.
    fn delivery(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owned = self.delivery.iter().filter(|lane| lane.row.transactional_id.is_some());
        let owned: Vec<_> = owned.collect();
        if owned.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nexactly once, by lane: epoch, events of the last batch, highest id")?;
        for lanes in owned.chunk_by(|one, next| one.row.transactional_id == next.row.transactional_id) {
            writeln!(f, "  {}", text::name(lanes[0].row.transactional_id.as_deref().unwrap_or_default()))?;
            for lane in lanes {
                let progress = match &lane.progress {
                    Some(progress) if progress.is_current => {
                        let last = progress.last_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
                        format!("{:>6} {last:>12}", progress.events)
                    }
                    Some(_) => "of another owner: lost".to_owned(),
                    None if !lane.row.opened => "not opened yet".to_owned(),
                    None if self.progress_unread.is_some() => "unknown".to_owned(),
                    None => "none in Kafka".to_owned(),
                };
                writeln!(f, "  {:>4} {:>6} {progress}", lane.row.lane, lane.row.epoch)?;
            }
        }
        if let Some(why) = &self.progress_unread {
            writeln!(f, "  {}", text::sentence(why))?;
        }
        Ok(())
    }

    /// Prints the lanes. Adjacent lanes with the same relay and the same lock share one line.
    fn lanes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes.iter().all(|lane| lane.pending == 0 && lane.locked_by.is_none()) {
            return Ok(());
        }
        writeln!(f, "\npending by lane")?;
        let owner = |at: usize| {
            let lane = &self.lanes[at];
            (lane.owner.as_deref(), lane.locked_by.as_ref().map(|held| held.pid))
        };
        let mut from = 0;
        while from < self.lanes.len() {
            let to = (from..self.lanes.len()).take_while(|at| owner(*at) == owner(from)).last().unwrap_or(from);
            let pending: Vec<_> = self.lanes[from..=to].iter().map(|lane| lane.pending.to_string()).collect();
            let (relay, pid) = owner(from);
            let locked = pid.map_or_else(String::new, |pid| format!(", locked by pid {pid}"));
            writeln!(
                f,
                "  {from:>3}-{to:<3} {}  (of {}{locked})",
                pending.join(" "),
                text::name(relay.unwrap_or("no relay"))
            )?;
            from = to + 1;
        }
        Ok(())
    }
}

//! Numbers the verified topics: the one that was asked for, or every topic that a row is routed to.

/// The maximum number of topics. More would mean a template that makes a topic of every row.
const MOST: usize = 1000;

/// The verified topics by number.
#[derive(Debug)]
pub(crate) struct TopicNames {
    names: Vec<String>,
    /// True when only the topic that was asked for is verified.
    only: bool,
    /// True when rows are routed to more topics than the maximum.
    pub(crate) too_many: bool,
}

impl TopicNames {
    pub(crate) fn new(only: Option<&str>) -> Self {
        Self { names: only.map(str::to_owned).into_iter().collect(), only: only.is_some(), too_many: false }
    }

    /// Returns the number of a topic; `None` for a topic that is not verified.
    pub(crate) fn index(&mut self, name: &str) -> Option<u16> {
        if let Some(index) = self.names.iter().position(|known| known == name) {
            return u16::try_from(index).ok();
        }
        self.too_many |= !self.only && self.names.len() >= MOST;
        if self.only || self.too_many {
            return None;
        }
        self.names.push(name.to_owned());
        u16::try_from(self.names.len() - 1).ok()
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

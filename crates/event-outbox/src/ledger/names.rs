//! Interns names as numbers, because an entity is in each of its events and a topic in each record.

use std::collections::HashMap;
use std::sync::Arc;

use super::record::EntityKey;

/// Texts, each with a number in the order of first appearance.
#[derive(Debug, Default)]
pub(super) struct Names {
    index: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Names {
    pub(super) fn intern(&mut self, text: &str) -> u32 {
        if let Some(index) = self.index.get(text) {
            return *index;
        }
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        let index = last_index(self.texts.len());
        self.index.insert(text, index);
        index
    }

    pub(super) fn text(&self, index: u32) -> &str {
        &self.texts[index as usize]
    }
}

/// Entities by type and id. The map has two levels, so that looking up a known entity allocates nothing and no separator can be ambiguous.
#[derive(Debug, Default)]
pub(super) struct Entities {
    types: Names,
    by_type: Vec<HashMap<Arc<str>, u32>>,
    all: Vec<(u32, Arc<str>)>,
}

impl Entities {
    pub(super) fn intern(&mut self, key: EntityKey<'_>) -> u32 {
        let entity_type = self.types.intern(key.entity_type);
        if self.by_type.len() <= entity_type as usize {
            self.by_type.push(HashMap::new());
        }
        let of_type = &mut self.by_type[entity_type as usize];
        if let Some(entity) = of_type.get(key.entity_id) {
            return *entity;
        }
        let entity_id: Arc<str> = key.entity_id.into();
        self.all.push((entity_type, Arc::clone(&entity_id)));
        let entity = last_index(self.all.len());
        of_type.insert(entity_id, entity);
        entity
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Formats an entity for people: `order/17`.
    pub(super) fn describe(&self, entity: u32) -> String {
        let (entity_type, entity_id) = &self.all[entity as usize];
        format!("{}/{entity_id}", self.types.text(*entity_type))
    }
}

/// Returns the index of the last of `len` items.
pub(super) fn last_index(len: usize) -> u32 {
    u32::try_from(len - 1).expect("a ledger of more than four billion events does not fit memory")
}

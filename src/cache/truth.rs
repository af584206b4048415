//! How much of a record's data is here. The database does not say: it could be wrong after a crash, or when a chunk comes or goes, which
//! is no business of its own. The layer's directory does.
//!
//! ```text
//! nothing there            lazy          chunk map, no bit set      lazy
//! files that do not hold   incomplete               some            partial
//! a verdict against it     poisoned                 all, or no map  extracted
//! ```

use std::collections::HashMap;

use super::{Application, Cache, CacheError, LayerSource};
use crate::store::record_tables::CacheRecord;
use crate::store::{LayerState, Store, StoreError, TableSource, Verdict};

/// What a layer's directory says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truth {
    pub state: LayerState,
    /// Whether its data were held against the diff ID.
    pub is_proved: bool,
}

/// What the directory of the layer of that name says.
pub(super) fn truth(store: &Store, layer: &str) -> Result<Truth, StoreError> {
    let nothing = |state| Truth { state, is_proved: false };
    let files = match store.layers().layer(layer)?.open() {
        Ok(Some(files)) => files,
        Ok(None) => return Ok(nothing(LayerState::Lazy)),
        Err(StoreError::Damaged { .. }) => return Ok(nothing(LayerState::Incomplete)),
        Err(error) => return Err(error),
    };
    let verdict = files.verdict()?;
    if let Some(Verdict::Poisoned { .. }) = verdict {
        return Ok(nothing(LayerState::Poisoned));
    }
    let provenance = files.provenance()?.map(|provenance| provenance.index);
    let is_proved = verdict.is_some() || matches!(provenance, Some(TableSource::Stream { .. }));
    let state = match files.chunk_map.as_ref().map(|map| (map.present(), map.len())) {
        None => LayerState::Extracted,
        Some((present, all)) if present >= all => LayerState::Extracted,
        Some((0, _)) => LayerState::Lazy,
        Some(_) => LayerState::Partial,
    };
    Ok(Truth { state, is_proved })
}

/// How many layers of the store there are in each state, those that are there alone.
///
/// # Errors
/// If the store cannot be read.
pub fn layer_states(store: &Store) -> Result<Vec<(LayerState, u64)>, StoreError> {
    let mut counts: Vec<_> = LayerState::ALL.map(|state| (state, 0)).into();
    for layer in store.layers().list()? {
        let found = truth(store, &layer)?.state;
        counts.iter_mut().filter(|(state, _)| *state == found).for_each(|(_, count)| *count += 1);
    }
    Ok(counts)
}

/// The states of layers that were looked at, each once.
#[derive(Default)]
pub(super) struct States {
    layers: HashMap<String, LayerState>,
}

impl States {
    /// How much of a record's own data is here. A merge or a diff has none.
    pub fn of(&mut self, store: &Store, record: &CacheRecord) -> Result<LayerState, StoreError> {
        match &record.layer {
            Some(layer) => self.of_layer(store, layer),
            // What is in a snapshot was made here.
            None => Ok(record.state),
        }
    }

    fn of_layer(&mut self, store: &Store, layer: &str) -> Result<LayerState, StoreError> {
        if let Some(known) = self.layers.get(layer) {
            return Ok(*known);
        }
        let state = truth(store, layer)?.state;
        self.layers.insert(layer.to_owned(), state);
        Ok(state)
    }
}

/// The state of what is made of several layers.
pub(super) fn together(states: impl Iterator<Item = LayerState> + Clone) -> LayerState {
    let any = |state| states.clone().any(|one| one == state);
    if any(LayerState::Poisoned) {
        LayerState::Poisoned
    } else if any(LayerState::Incomplete) {
        LayerState::Incomplete
    } else if !any(LayerState::Lazy) && !any(LayerState::Partial) {
        LayerState::Extracted
    } else if any(LayerState::Extracted) || any(LayerState::Partial) {
        LayerState::Partial
    } else {
        LayerState::Lazy
    }
}

impl Cache {
    /// Says of all layers how much of them is here.
    pub(super) fn with_states(
        &self,
        mut applications: Vec<Application>,
    ) -> Result<Vec<Application>, CacheError> {
        let mut states = States::default();
        let mut left: Vec<&mut Application> = applications.iter_mut().collect();
        while let Some(application) = left.pop() {
            match application {
                Application::Layer(layer) => {
                    if let LayerSource::Layer(name) = &layer.source {
                        layer.state = states.of_layer(self.store(), name)?;
                    }
                }
                Application::Diff { lower, upper, .. } => left.extend(lower.iter_mut().chain(upper)),
            }
        }
        Ok(applications)
    }
}

//! The table of a tree that is composed of layers, and of differences of trees that are composed likewise.
//!
//! ```text
//! Layer(n)               the table of layer n ──────────────────────────┐
//! Difference{lower, upper}   compose(lower) ─┐                          ├─▶ applied, one after another ─▶ tree
//!                            compose(upper) ─┴─▶ difference: a layer ───┘
//! ```
//!
//! All of it is metadata: the files of the tree name the layers that have their content, whichever way they came there.

use super::difference::difference;
use super::merge::{Applied, MAXIMUM_LAYERS, MergeError, merge_applied};
use crate::store::Step;
use crate::table::Table;

/// How deep differences of differences may be.
const MAXIMUM_DEPTH: usize = 32;
/// Layers and differences of all depths together.
const MAXIMUM_STEPS: usize = 4 * MAXIMUM_LAYERS;

/// The table of the tree that these steps make of the layers with these tables. `identity` is what it is known by.
///
/// # Errors
/// [`MergeError::Composition`] if a step names no layer, or there are too many or too deep; else those of the merge.
pub fn compose(steps: &[Step], layers: &[&Table], identity: [u8; 32]) -> Result<Vec<u8>, MergeError> {
    if layers.len() > MAXIMUM_LAYERS {
        return Err(MergeError::TooManyLayers(layers.len()));
    }
    let mut composer = Composer { layers, identity, steps_left: MAXIMUM_STEPS };
    composer.tree(steps, MAXIMUM_DEPTH)
}

struct Composer<'a> {
    layers: &'a [&'a Table],
    identity: [u8; 32],
    steps_left: usize,
}

/// What a step applies.
enum Made {
    Layer(u16),
    Difference(Box<Table>),
}

impl Composer<'_> {
    fn tree(&mut self, steps: &[Step], depth: usize) -> Result<Vec<u8>, MergeError> {
        let made = steps.iter().map(|step| self.step(step, depth)).collect::<Result<Vec<_>, _>>()?;
        let applied = made.iter().map(|made| match made {
            Made::Layer(number) => {
                let table = *self
                    .layers
                    .get(usize::from(*number))
                    .ok_or(damaged("it names a layer that there is not"))?;
                Ok(Applied { table, layer: Some(*number) })
            }
            Made::Difference(table) => Ok(Applied { table, layer: None }),
        });
        let applied = applied.collect::<Result<Vec<_>, MergeError>>()?;
        merge_applied(&applied, self.layers.len() as u32, self.identity)
    }

    fn step(&mut self, step: &Step, depth: usize) -> Result<Made, MergeError> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(damaged("it has too many steps"))?;
        match step {
            Step::Layer(number) => Ok(Made::Layer(*number)),
            Step::Difference { lower, upper } => {
                let depth = depth.checked_sub(1).ok_or(damaged("its differences are nested too deep"))?;
                let lower = Table::from_bytes(self.tree(lower, depth)?)?;
                let upper = Table::from_bytes(self.tree(upper, depth)?)?;
                let table = difference(&lower, &upper, self.layers, self.identity)?;
                Ok(Made::Difference(Box::new(Table::from_bytes(table)?)))
            }
        }
    }
}

fn damaged(what: &'static str) -> MergeError {
    MergeError::Composition { what }
}

//! The latest operations of a running guest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// The latest operations, as lines of [`OperationsFormat::Text`](super::OperationsFormat::Text).
#[derive(Clone, Debug, Default)]
pub struct Latest(Arc<Mutex<VecDeque<Vec<u8>>>>);

/// Most lines that are kept.
const MOST_LATEST: usize = 100;

impl Latest {
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.truncate(MOST_LATEST - 1);
        lines.push_front(line);
    }

    /// The latest lines, at most `count`, the latest first. Names are escaped.
    pub fn lines(&self, count: usize) -> Vec<Vec<u8>> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().take(count).cloned().collect()
    }
}

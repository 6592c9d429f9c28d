//! The block map: model, index and formats.

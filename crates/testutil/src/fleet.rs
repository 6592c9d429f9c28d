//! Reads what the run of a fleet has written.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The records in a `fleet.jsonl`, by id. No id may occur twice.
pub fn records(path: &Path) -> BTreeMap<String, Value> {
    let mut records = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let id = record["id"].as_str().unwrap().to_owned();
        assert!(records.insert(id.clone(), record).is_none(), "{id} is there twice");
    }
    records
}

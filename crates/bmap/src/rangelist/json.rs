//! JSON arrays whose entries are taken one at a time.
//!
//! The text is held in memory meanwhile: to parse it byte by byte as it comes takes three times as
//! long.

use serde::de::{DeserializeOwned, DeserializeSeed, SeqAccess, Visitor};
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

use super::lines::LineProblem;
use super::{Kind, ListError};

/// Calls `visit` with each entry of the array that `input` is.
pub(super) fn for_each<T: DeserializeOwned>(
    input: &mut (impl Read + ?Sized),
    kind: Kind,
    visit: impl FnMut(T) -> Result<(), LineProblem>,
) -> Result<(), ListError> {
    let mut text = Vec::new();
    input.read_to_end(&mut text)?;
    let mut json = serde_json::Deserializer::from_slice(&text);
    let mut number = 0;
    let mut problem = None;
    let entries = Entries { visit, number: &mut number, problem: &mut problem, entry: PhantomData::<T> };
    let read = entries.deserialize(&mut json);
    if let Some(problem) = problem {
        return Err(ListError::Entry { entry: number, kind, problem });
    }
    read.and_then(|()| json.end()).map_err(|source| ListError::Json { kind, source })
}

struct Entries<'a, T, F> {
    visit: F,
    number: &'a mut u64,
    problem: &'a mut Option<LineProblem>,
    entry: PhantomData<T>,
}

impl<'de, T, F> DeserializeSeed<'de> for Entries<'_, T, F>
where
    T: DeserializeOwned,
    F: FnMut(T) -> Result<(), LineProblem>,
{
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T, F> Visitor<'de> for Entries<'_, T, F>
where
    T: DeserializeOwned,
    F: FnMut(T) -> Result<(), LineProblem>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(entry) = array.next_element::<T>()? {
            *self.number += 1;
            if let Err(problem) = (self.visit)(entry) {
                *self.problem = Some(problem);
                return Err(serde::de::Error::custom("the entry is wrong"));
            }
        }
        Ok(())
    }
}

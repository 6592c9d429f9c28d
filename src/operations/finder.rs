//! Looks at the states of the disks, one after the other, and writes the operations found.

use super::states::join;
use super::{Action, Operation, OperationsFormat, Span, States, Written, compare};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap_image::Source;
use virt_bmap_map::hardlinks::disk_ranges;
use virt_bmap_map::{Header, Map, MapBuilder, Warning};
use virt_bmap_ranges::{DiskOffset, RangeSet};

/// Maps one state of the disks. The caller supplies it, and the means to cancel it.
pub type MapState = Box<dyn FnMut(&StateToMap<'_>) -> Result<Look, LookError> + Send>;

/// Why a state could not be mapped.
pub type LookError = Box<dyn std::error::Error + Send + Sync>;

/// The maps of filesystems, by device.
pub type Maps = BTreeMap<Vec<u8>, Arc<Map>>;

/// A state of the disks that is to be mapped.
pub struct StateToMap<'a> {
    /// The disks, in order.
    pub disks: &'a [Arc<dyn Source>],
    /// For each disk, what may differ from the state that was mapped before.
    pub written: &'a [RangeSet<DiskOffset>],
    /// The maps of that state.
    pub maps: &'a Maps,
}

/// The map of a state.
#[derive(Debug)]
pub struct Look {
    /// The map of the filesystems that may have changed; its warnings list what is missing.
    pub map: Map,
    /// For each disk, the ranges that its filesystems wrote to the private layer when they were
    /// mounted, for example by replaying a journal.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// What a [`Finder`] has found.
#[derive(Debug, Default)]
pub struct Ended {
    /// Number of operations of each kind.
    pub counts: BTreeMap<Action, u64>,
    /// Number of states of the disks.
    pub states: u64,
    /// Number of times that the disks were mapped after the beginning.
    pub looks: u64,
    /// Time that these took.
    pub looking: Duration,
    /// What could not be determined, as printable messages; empty if the result is complete.
    pub missing: Vec<String>,
}

/// Maximum number of messages kept in [`Ended::missing`].
const MOST_MISSING: usize = 100;

/// What was written and is in none of these operations.
fn still_held(
    map: &Map,
    operations: &[Operation<'_>],
    mut written: Vec<RangeSet<DiskOffset>>,
) -> Vec<RangeSet<DiskOffset>> {
    let objects = operations.iter().filter_map(|operation| map.find(operation.name));
    for (disk, range) in objects.flat_map(disk_ranges) {
        if let Some(written) = usize::from(disk).checked_sub(1).and_then(|disk| written.get_mut(disk)) {
            written.remove(range);
        }
    }
    for ranges in &mut written {
        if ranges.range_count() > MOST_HELD {
            *ranges = RangeSet::new();
        }
    }
    written
}

/// What is due from before the present state.
#[derive(Default)]
struct Before {
    /// Written in states that could not be mapped.
    unseen: Vec<RangeSet<DiskOffset>>,
    /// Written, and not yet part of an operation.
    held: Vec<RangeSet<DiskOffset>>,
    /// When that was written last.
    span: Option<Span>,
    /// Written by mounting in the state that was mapped last.
    replayed: Vec<RangeSet<DiskOffset>>,
}

/// Most ranges that are held of a disk. The journal and other metadata are among them, which never
/// become part of an operation.
const MOST_HELD: usize = 1 << 16;

/// Finds operations between states that follow one another.
pub struct Finder {
    /// The state that was mapped last.
    maps: Maps,
    before: Before,
    output: Box<dyn Write + Send>,
    map: MapState,
    format: OperationsFormat,
    ended: Ended,
}

impl Finder {
    /// `map` maps the states. Operations are written to `output`. `is_series`: whether the states
    /// have names, and no times.
    ///
    /// # Errors
    /// The output's.
    pub fn new(
        mut output: Box<dyn Write + Send>,
        map: MapState,
        format: OperationsFormat,
        is_series: bool,
    ) -> io::Result<Self> {
        format.begin(&mut *output, is_series)?;
        let (maps, before, ended) = (Maps::new(), Before::default(), Ended::default());
        Ok(Self { maps, before, output, map, format, ended })
    }

    /// Maps the disks before the first write.
    ///
    /// # Errors
    /// They cannot be mapped. What was there before is then unknown, until another state is mapped.
    pub fn begin(&mut self, disks: &[Arc<dyn Source>]) -> Result<(), LookError> {
        let nothing: Vec<RangeSet<DiskOffset>> = vec![RangeSet::new(); disks.len()];
        let look = (self.map)(&StateToMap { disks, written: &nothing, maps: &self.maps })?;
        self.take(look);
        Ok(())
    }

    /// Maps the disks in the next state, and writes the operations. If they cannot be mapped, that is
    /// one of the reasons in [`Ended::missing`].
    ///
    /// # Errors
    /// The output's.
    pub fn look(&mut self, states: &States) -> io::Result<()> {
        let began = Instant::now();
        self.ended.states += states.span.states();
        if states.written.iter().all(RangeSet::is_empty) && self.before.unseen.is_empty() {
            return Ok(());
        }
        let outcome = self.try_look(states).unwrap_or_else(|error| {
            join(&mut self.before.unseen, &states.written);
            let end = states.span.end();
            self.note_missing(format!("those up to {end}, because the disks could not be mapped: {error}"));
            Ok(())
        });
        self.ended.looking += began.elapsed();
        outcome
    }

    fn try_look(&mut self, states: &States) -> Result<io::Result<()>, LookError> {
        let mut seen = states.written.clone();
        join(&mut seen, &self.before.unseen);
        let mut written = seen.clone();
        join(&mut written, &self.before.replayed);
        join(&mut seen, &self.before.held);
        let look = (self.map)(&StateToMap { disks: &states.disks, written: &written, maps: &self.maps })?;
        self.ended.looks += 1;
        let held = std::mem::take(&mut self.before.held);
        let written = Written { seen, held, replayed: look.replayed.clone() };
        let nothing = MapBuilder::new(Header::default()).build();
        let mut operations = Vec::new();
        for filesystem in &look.map.header().filesystems {
            let before = self.maps.get(&filesystem.device).map_or(&nothing, |map| map);
            operations.extend(compare(before, &look.map, &filesystem.device, &written));
        }
        for operation in &operations {
            *self.ended.counts.entry(operation.action).or_default() += 1;
        }
        let earlier = operations.iter().filter(|operation| operation.is_earlier).count();
        operations.sort_by_key(|operation| !operation.is_earlier);
        let (earlier, present) = operations.split_at(earlier);
        let span = self.before.span.as_ref().unwrap_or(&states.span);
        let result = self
            .format
            .write(&mut *self.output, span, earlier)
            .and_then(|()| self.format.write(&mut *self.output, &states.span, present));
        self.before.held = still_held(&look.map, &operations, written.seen);
        self.before.span = Some(states.span.clone());
        self.before.unseen.clear();
        drop(operations);
        self.take(look);
        Ok(result)
    }

    /// Writes what was held, since no further state follows.
    ///
    /// # Errors
    /// The output's.
    pub fn end(&mut self) -> io::Result<()> {
        let Some(span) = self.before.span.take() else { return Ok(()) };
        let held = std::mem::take(&mut self.before.held);
        let written = Written { seen: held.clone(), held, replayed: Vec::new() };
        let each = self.maps.iter().flat_map(|(device, map)| compare(map, map, device, &written));
        let operations: Vec<_> = each.collect();
        for operation in &operations {
            *self.ended.counts.entry(operation.action).or_default() += 1;
        }
        self.format.write(&mut *self.output, &span, &operations)
    }

    /// What was found.
    pub fn into_result(self) -> Ended {
        self.ended
    }

    /// Keeps what a look has found, for the next.
    fn take(&mut self, look: Look) {
        let Look { map, replayed } = look;
        for warning in map.header().warnings.iter().filter(|warning| warning.is_incomplete()) {
            self.note_missing(Warning::to_string(warning));
        }
        let map = Arc::new(map);
        for filesystem in &map.header().filesystems {
            self.maps.insert(filesystem.device.clone(), map.clone());
        }
        self.before.replayed = replayed;
    }

    /// Adds a reason why operations are missing.
    pub fn note_missing(&mut self, reason: String) {
        tracing::debug!("{reason}");
        if self.ended.missing.len() < MOST_MISSING && !self.ended.missing.contains(&reason) {
            self.ended.missing.push(reason);
        }
    }
}

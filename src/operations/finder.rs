//! Looks at the states of the disks, one after the other, and writes the operations found.

use super::compare::is_now;
use super::held::Held;
use super::journaled::{Replayed, Seen, without_data};
use super::output::text_line;
use super::states::join;
use super::{Action, Latest, Missing, Operation, OperationsFormat, Span, States, compare};
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap_image::Source;
use virt_bmap_map::hardlinks::disk_ranges;
use virt_bmap_map::{Cause, Header, Hit, Kind, Map, MapBuilder, Marks, Warning};
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
    /// Those of them that hold data of files, as far as they are not too many.
    pub data: Vec<Replayed>,
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
    /// What could not be determined; empty if the result is complete.
    pub missing: Vec<Missing>,
}

/// Maximum number of reasons kept in [`Ended::missing`].
const MOST_MISSING: usize = 100;

/// Whether a range holds data of a file, and writing it changes nothing else.
fn is_plain_data(hit: &Hit<'_>) -> bool {
    let is_certain = !hit.object.attributes().marks.intersects(Marks::INEXACT | Marks::UNVERIFIED);
    hit.object.kind() == Kind::File && is_certain && hit.role.flags.is_empty()
}

/// What is due from before the present state.
#[derive(Default)]
struct Before {
    /// The states that could not be mapped.
    unseen: Option<States>,
    /// What was wrong with each of the last of them that may have been unfinished.
    doubts: Vec<Vec<Missing>>,
    held: Held,
    /// Files, by device and inode, of which data was told before their inode has changed.
    untimed: HashSet<(Vec<u8>, u64)>,
    /// Written by mounting in the state that was mapped last.
    replayed: Vec<RangeSet<DiskOffset>>,
    /// What the last look has seen of the data of files.
    seen: Seen,
}

impl Before {
    /// Whether an operation is only the new time of an inode whose data was told before: the inode
    /// is often written long after the data (`fdatasync(2)`).
    fn explains(&mut self, operation: &Operation<'_>) -> bool {
        let attributes = operation.after.or(operation.before).unwrap_or_default();
        let Some(inode) = attributes.inode else { return false };
        let key = (operation.name.device.to_vec(), inode);
        if operation.is_earlier {
            if self.untimed.len() == MOST_UNTIMED {
                self.untimed.clear();
            }
            self.untimed.insert(key);
            return false;
        }
        let is_modified =
            operation.before.map(|before| before.modified) != operation.after.map(|after| after.modified);
        let is_touch = operation.action == Action::Touch && is_now(&attributes);
        is_modified && self.untimed.remove(&key) && is_touch
    }
}

/// Whether a state was mapped and its operations told.
#[derive(PartialEq, Eq)]
enum Looked {
    /// They were.
    Seen,
    /// The next state tells them as well.
    Unseen,
}

/// Most states in a row that may be unfinished. After these, something else is wrong.
const MOST_DOUBTS: usize = 8;

/// Most files of which data was told without a change of the inode.
const MOST_UNTIMED: usize = 1 << 16;

/// Finds operations between states that follow one another.
pub struct Finder {
    /// The state that was mapped last.
    maps: Maps,
    before: Before,
    output: Box<dyn Write + Send>,
    map: MapState,
    format: OperationsFormat,
    latest: Latest,
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
        Ok(Self { maps, before, output, map, format, latest: Latest::default(), ended })
    }

    /// The latest operations.
    pub fn latest(&self) -> Latest {
        self.latest.clone()
    }

    /// Maps the disks before the first write.
    ///
    /// # Errors
    /// They cannot be mapped. What was there before is then unknown, until another state is mapped.
    pub fn begin(&mut self, disks: &[Arc<dyn Source>]) -> Result<(), LookError> {
        let nothing: Vec<RangeSet<DiskOffset>> = vec![RangeSet::new(); disks.len()];
        let look = (self.map)(&StateToMap { disks, written: &nothing, maps: &self.maps })?;
        for warning in self.warnings(&look.map, |_, _| true) {
            self.note_missing(warning);
        }
        self.keep(&Arc::new(look.map));
        self.before.replayed = look.replayed;
        self.before.seen.replace(iter::empty(), look.data);
        self.before.seen.disks = disks.to_vec();
        Ok(())
    }

    /// Maps the disks in the next state, and writes the operations. If they cannot be mapped, that
    /// is one of the reasons in [`Ended::missing`].
    ///
    /// # Errors
    /// The output's.
    pub fn look(&mut self, states: States) -> io::Result<()> {
        let began = Instant::now();
        self.ended.states += states.span.states();
        let unseen = self.before.unseen.take();
        if unseen.is_none() && states.written.iter().all(RangeSet::is_empty) {
            return Ok(());
        }
        let must_map = unseen.is_some();
        let states = match unseen {
            Some(mut earlier) => {
                earlier.add(states);
                earlier
            }
            None => states,
        };
        let outcome = self.try_look(&states, must_map).unwrap_or_else(|error| {
            let reason = Missing::Unmapped { end: states.span.end(), error: error.to_string() };
            if self.may_be_unfinished(&states) {
                self.before.doubts.push(vec![reason]);
            } else {
                self.note_missing(reason);
            }
            Ok(Looked::Unseen)
        });
        self.ended.looking += began.elapsed();
        if outcome? == Looked::Unseen {
            self.before.unseen = Some(states);
        }
        Ok(())
    }

    /// Whether the guest may have been in the middle of its writes, so that the next ones may mend
    /// what is wrong with this state. A filesystem without a journal is so after a flush, too:
    /// ext4 flushes in `sync(2)` before the bitmaps are written.
    fn may_be_unfinished(&self, states: &States) -> bool {
        matches!(states.span, Span::Time { .. }) && self.before.doubts.len() < MOST_DOUBTS
    }

    /// `must_map`: whether some of the states could not be mapped before.
    fn try_look(&mut self, states: &States, must_map: bool) -> Result<io::Result<Looked>, LookError> {
        let mut now = self.before.seen.without_known(&states.written, &states.disks)?;
        if !must_map
            && !self.before.seen.has_replayed(&now)
            && let Some(maps) = self.maps_of_data(&now)
        {
            let same: Vec<_> = maps.iter().map(|(device, map)| (device.as_slice(), map, map)).collect();
            let result = self.tell(&same, &states.span, &now, Vec::new());
            self.before.seen.disks.clone_from(&states.disks);
            return Ok(result.map(|()| Looked::Seen));
        }
        let mut written = states.written.clone();
        join(&mut written, &self.before.replayed);
        let look = (self.map)(&StateToMap { disks: &states.disks, written: &written, maps: &self.maps })?;
        self.ended.looks += 1;
        let Look { map, replayed, data } = look;
        // A partition is there before the filesystem that is made in it.
        let warnings = self.warnings(&map, |maps, warning| {
            let is_known = warning.device().is_some_and(|device| maps.contains_key(device));
            is_known || warning.cause != Cause::UnknownContent
        });
        let is_new = |missing: &Missing| !self.ended.missing.contains(missing);
        if warnings.iter().any(is_new) && self.may_be_unfinished(states) {
            self.before.doubts.push(warnings);
            return Ok(Ok(Looked::Unseen));
        }
        self.before.doubts.clear();
        warnings.into_iter().for_each(|warning| self.note_missing(warning));
        let map = Arc::new(map);
        join(&mut now, &self.before.seen.changed(&data, &self.maps)?);
        let before = std::mem::take(&mut self.maps);
        self.keep(&map);
        let nothing = Arc::new(MapBuilder::new(Header::default()).build());
        let each = map.header().filesystems.iter().map(|filesystem| {
            let device = filesystem.device.as_slice();
            (device, before.get(device).unwrap_or(&nothing), &map)
        });
        let in_journal = without_data(replayed.clone(), &data);
        let result = self.tell(&each.collect::<Vec<_>>(), &states.span, &now, in_journal);
        for (device, map) in before {
            self.maps.entry(device).or_insert(map);
        }
        self.before.replayed = replayed;
        let devices = map.header().filesystems.iter().map(|filesystem| filesystem.device.as_slice());
        self.before.seen.replace(devices, data);
        self.before.seen.disks.clone_from(&states.disks);
        Ok(result.map(|()| Looked::Seen))
    }

    /// The maps of the filesystems of which data was written, if nothing else was: then the state
    /// has the same maps as the one before.
    fn maps_of_data(&self, written: &[RangeSet<DiskOffset>]) -> Option<Maps> {
        let mut maps = Maps::new();
        for (disk, range) in (1..).zip(written).flat_map(|(disk, set)| set.iter().map(move |it| (disk, it))) {
            let mut left = RangeSet::from_iter([range]);
            for (device, map) in &self.maps {
                let hits = map
                    .over(disk, range)
                    .filter(|hit| is_plain_data(hit) && hit.object.name().device == device);
                for hit in hits {
                    left.remove(hit.range);
                    maps.entry(device.clone()).or_insert_with(|| map.clone());
                }
            }
            if !left.is_empty() {
                return None;
            }
        }
        Some(maps)
    }

    /// Writes the operations between maps of a device before and after. `now`: what was written
    /// between them.
    fn tell(
        &mut self,
        maps: &[(&[u8], &Arc<Map>, &Arc<Map>)],
        span: &Span,
        now: &[RangeSet<DiskOffset>],
        replayed: Vec<RangeSet<DiskOffset>>,
    ) -> io::Result<()> {
        let written = self.before.held.written(span, now, replayed);
        let (mut earlier, mut present): (Vec<(Span, Vec<Operation<'_>>)>, _) = (Vec::new(), Vec::new());
        let mut told = Vec::new();
        for &(device, old, new) in maps {
            let mut found = compare(old, new, device, &written);
            for operation in &found {
                let places = new.find(operation.name).into_iter().flat_map(disk_ranges);
                told.extend(places.map(|place| (place, operation.is_earlier)));
            }
            found.retain(|operation| !self.before.explains(operation));
            let (before, new): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|operation| operation.is_earlier);
            present.extend(new);
            let earlier_span = self.before.held.next_span(device, span);
            match earlier.iter_mut().find(|(other, _)| *other == earlier_span) {
                Some((_, operations)) => operations.extend(before),
                None => earlier.push((earlier_span, before)),
            }
        }
        earlier.sort_by_key(|(span, _)| span.begin());
        earlier.push((span.clone(), present));
        self.before.held.keep(span, now, &told);
        for (span, operations) in earlier {
            for operation in &operations {
                *self.ended.counts.entry(operation.action).or_default() += 1;
                self.latest.push(text_line(operation));
            }
            self.format.write(&mut *self.output, &span, &operations)?;
        }
        Ok(())
    }

    /// Writes what was held, since no further state follows.
    ///
    /// # Errors
    /// The output's.
    pub fn end(&mut self) -> io::Result<()> {
        for reason in std::mem::take(&mut self.before.doubts).into_iter().flatten() {
            self.note_missing(reason);
        }
        // All that is left is earlier than this.
        self.before.held.settle();
        let Some(span) = self.before.held.any_span() else { return Ok(()) };
        let maps = std::mem::take(&mut self.maps);
        let same: Vec<_> = maps.iter().map(|(device, map)| (device.as_slice(), map, map)).collect();
        self.tell(&same, &span, &[], Vec::new())
    }

    /// What was found.
    pub fn into_result(self) -> Ended {
        self.ended
    }

    /// Keeps the map of filesystems that were looked at.
    fn keep(&mut self, map: &Arc<Map>) {
        for filesystem in &map.header().filesystems {
            self.maps.insert(filesystem.device.clone(), map.clone());
        }
    }

    /// What could not be examined, as far as it matters.
    fn warnings(&self, map: &Map, matters: impl Fn(&Maps, &Warning) -> bool) -> Vec<Missing> {
        let warnings = map.header().warnings.iter().filter(|warning| warning.is_incomplete());
        let those = warnings.filter(|warning| matters(&self.maps, warning));
        those.cloned().map(Missing::Unexamined).collect()
    }

    /// Adds a reason why operations are missing.
    pub fn note_missing(&mut self, reason: Missing) {
        tracing::debug!("{reason}");
        if self.ended.missing.len() < MOST_MISSING && !self.ended.missing.contains(&reason) {
            self.ended.missing.push(reason);
        }
    }
}

#[cfg(test)]
mod tests;

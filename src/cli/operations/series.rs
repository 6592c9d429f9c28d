//! The operations between states of one disk that are given as images or snapshots.

use super::super::Exit;
use super::super::make::with_formats;
use super::super::progress::Counter;
use super::{OperationsArgs, Run, usage};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use virt_bmap::mapper::GuestDisk;
use virt_bmap::operations::Missing;
use virt_bmap::operations::series::{NamedState, between, possible};
use virt_bmap_image::Image;
use virt_bmap_ranges::{Printable, error_chain};

/// Most states that are open at a time. Images that are not raw have a process each.
const MOST_OPEN: usize = 16;

/// A state that is to be looked at.
struct Wanted {
    name: Arc<[u8]>,
    disk: GuestDisk,
    /// The state, if it is open.
    opened: Option<NamedState>,
}

impl Wanted {
    /// Opens it, unless that was done. `None` after a signal.
    fn open(&mut self, run: &Run<'_>) -> Result<Option<NamedState>> {
        if let Some(opened) = self.opened.take() {
            return Ok(Some(opened));
        }
        let Some(images) = run.open(std::slice::from_ref(&self.disk))? else { return Ok(None) };
        let [image] = <[Image; 1]>::try_from(images).map_err(|_| {
            anyhow::anyhow!(
                "{}: it has several disks, and states of one disk are compared",
                Printable(&self.name)
            )
        })?;
        Ok(Some(NamedState { name: self.name.clone(), image }))
    }
}

pub(super) fn run(args: &OperationsArgs) -> Result<Exit> {
    let of_snapshots = args.snapshots || args.from_snapshot.is_some() || args.to_snapshot.is_some();
    if of_snapshots && args.images.len() > 1 {
        return Ok(usage("the snapshots are those inside of one IMAGE"));
    }
    if !of_snapshots && args.images.len() < 2 {
        return Ok(usage(
            "two IMAGEs or more are needed, or the snapshots inside of one (--snapshots), or --history LOG",
        ));
    }
    let run = Run::new(args)?;
    let disks = with_formats(&args.images, &args.image_format, &args.mapping.tls)?;
    let mut states = match &disks[..] {
        [disk] => match snapshots(&run, disk)? {
            Some(states) => states,
            None => return Ok(run.interrupted()),
        },
        several => several.iter().map(present).collect(),
    };
    if !have_one_size(&run, &mut states)? {
        return Ok(run.interrupted());
    }
    let quiet = args.mapping.quiet;
    let last = states.len().saturating_sub(1);
    let Some((first, later)) = states.split_first_mut() else {
        return Ok(Exit::Success);
    };
    let Some(mut old) = first.open(&run)? else { return Ok(run.interrupted()) };
    let mut looking = match run.begin(&disks, std::slice::from_ref(&old.image), true)? {
        Ok(looking) => looking,
        Err(exit) => return Ok(exit),
    };
    for (number, state) in (1..).zip(later) {
        let Some(new) = state.open(&looking.run)? else { return Ok(looking.run.interrupted()) };
        let [from, to] = [&old, &new].map(|state| state.name.clone());
        let asked =
            possible(&old, &new).with_context(|| format!("{} and {}", Printable(&from), Printable(&to)))?;
        let counter = Counter::new(quiet, "comparing", asked.bytes());
        let (next, error) = between(&old, &new, &asked, &|bytes| counter.add(bytes));
        counter.finish();
        if let Some(error) = error {
            looking.note_missing(Missing::Uncompared { from, to, error: error_chain(&error) });
        }
        if let ControlFlow::Break(exit) = looking.look(next, f64::from(number) / last as f64)? {
            return Ok(exit);
        }
        old = new;
    }
    looking.finish()
}

/// The present disk of an image.
fn present(disk: &GuestDisk) -> Wanted {
    Wanted { name: disk.location.to_string().into_bytes().into(), disk: disk.clone(), opened: None }
}

/// The wanted snapshots inside of an image, and its present disk. `None` after a signal.
fn snapshots(run: &Run<'_>, disk: &GuestDisk) -> Result<Option<Vec<Wanted>>> {
    let Some(images) = run.open(std::slice::from_ref(disk))? else { return Ok(None) };
    let image = images.first().context("the image is missing")?;
    let names = image.snapshots()?;
    let at = |name: &String| match names.iter().position(|other| other == name) {
        Some(at) => Ok(at),
        None => bail!("{}: it has no snapshot {}", disk.location, Printable(name.as_bytes())),
    };
    let from = run.args.from_snapshot.as_ref().map(at).transpose()?.unwrap_or(0);
    let to = run.args.to_snapshot.as_ref().map(at).transpose()?;
    let end = to.map_or(names.len(), |to| to + 1);
    if from >= end {
        bail!("{}: it has no snapshots, or the last one is before the first", disk.location);
    }
    let wanted = &names[from..end];
    if wanted.iter().collect::<BTreeSet<_>>().len() < wanted.len() {
        bail!("{}: several of its snapshots have the same name", disk.location);
    }
    let of = |name: &String| Wanted {
        name: name.as_bytes().into(),
        disk: GuestDisk { snapshot: Some(name.clone()), ..disk.clone() },
        opened: None,
    };
    Ok(Some(wanted.iter().map(of).chain(to.is_none().then(|| present(disk))).collect()))
}

/// Refuses states that cannot be of the same disk, before the long work. `false` after a signal.
fn have_one_size(run: &Run<'_>, states: &mut [Wanted]) -> Result<bool> {
    let mut first = None;
    for (number, state) in states.iter_mut().enumerate() {
        let Some(opened) = state.open(run)? else { return Ok(false) };
        run.print_warnings(&opened.image);
        let (name, size) = (&state.name, opened.image.source.size());
        let (before, expected) = first.get_or_insert_with(|| (name.clone(), size));
        if size != *expected {
            bail!(
                "{} has {size} bytes, and {} has {expected}: states of one disk have the same size; \
                 leave one out, or enlarge a copy of the smaller one with `qemu-img resize`",
                Printable(name),
                Printable(before)
            );
        }
        state.opened = Some(opened).filter(|_| number < MOST_OPEN);
    }
    Ok(true)
}

//! The operations of a recorded history.

use super::super::Exit;
use super::super::make::with_formats;
use super::{OperationsArgs, Run};
use anyhow::{Context as _, Result, anyhow};
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;
use virt_bmap::mapper;
use virt_bmap::operations::{Missing, States};
use virt_bmap_history::{LogEnd, LogError, LogReader, Recorded, RecordedBase};
use virt_bmap_image::Image;
use virt_bmap_ranges::Printable;
use virt_bmap_trace::identity;

pub(super) fn run(args: &OperationsArgs, log: &Path) -> Result<Exit> {
    let run = Run::new(args)?;
    let disks = mapper::each(&with_formats(&args.images, &args.image_format, &args.mapping.tls)?)?;
    let Some(images) = run.open(&disks)? else { return Ok(run.interrupted()) };
    images.iter().for_each(|image| run.print_warnings(image));
    let mut recorded = open(args, log, &images)?;
    let mut looking = match run.begin(&disks, &images, false)? {
        Ok(looking) => looking,
        Err(exit) => return Ok(exit),
    };
    let every = args.every.time();
    // The states that are looked at next.
    let mut waiting: Option<States> = None;
    let end = loop {
        let next = match recorded.next() {
            Some(Ok(state)) => States::from(state),
            Some(Err(error)) => break Err(error),
            None => break Ok(recorded.end()),
        };
        match &mut waiting {
            Some(before) if every.is_some_and(|every| before.is_within(every, &next)) => before.add(next),
            _ => {
                let (read, all) = recorded.position();
                let share = read as f64 / all.max(1) as f64;
                if let Some(states) = waiting.replace(next)
                    && let ControlFlow::Break(exit) = looking.look(states, share)?
                {
                    return Ok(exit);
                }
            }
        }
    };
    if let Some(states) = waiting
        && let ControlFlow::Break(exit) = looking.look(states, 1.0)?
    {
        return Ok(exit);
    }
    match end {
        Ok(None | Some(LogEnd::Whole)) => {}
        Ok(Some(LogEnd::CutShort)) => looking.note_missing(Missing::HistoryCutShort { log: log.to_owned() }),
        Ok(Some(LogEnd::BrokenOff)) => {
            looking.note_missing(Missing::HistoryBrokenOff { log: log.to_owned() });
        }
        Err(error) => {
            looking.note_missing(Missing::HistoryUnread { log: log.to_owned(), error: error.to_string() });
        }
    }
    looking.finish()
}

/// Opens the history of these disks.
fn open(args: &OperationsArgs, log: &Path, images: &[Image]) -> Result<Recorded> {
    let name = || Printable::path(log).to_string();
    let mut bases: Vec<RecordedBase> = images
        .iter()
        .map(|image| RecordedBase { source: image.source.clone(), identity: identity(image) })
        .collect();
    if args.force {
        let file = File::open(log).with_context(name)?;
        let logged = LogReader::open(BufReader::new(file)).with_context(name)?;
        for (number, (base, logged)) in (1..).zip(bases.iter_mut().zip(logged.disks())) {
            if base.identity != logged.identity {
                note!("virt-bmap-rs: warning: disk {number} seems to be another than that of the history");
                base.identity.clone_from(&logged.identity);
            }
        }
    }
    Recorded::open(log, bases).map_err(|error| match error {
        LogError::AnotherBase { .. } => anyhow!(
            "{}: {error}; give the disks of the trace, in its order, as they were before it; \
             --force accepts copies of them",
            name()
        ),
        error => anyhow::Error::from(error).context(name()),
    })
}

//! An agent that stays in an appliance that is kept. A call into guestfsd, which would start an
//! agent, takes some fifty milliseconds under emulation; the tasks of this one come on the control
//! disk.

use crate::control::{Control, next_sequence, task};
use crate::{Fatal, work};
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virt_bmap_agent_protocol::bounds::TEXT_BYTES;
use virt_bmap_agent_protocol::{Ended, Record, Task};

/// How often to look for a task. The next one of a look comes at once; the next look when the guest
/// has written something.
const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_millis(10);

/// How long the next task may be one of the same look.
const SAME_LOOK: Duration = Duration::from_millis(300);

/// Does one task after the other until the host ends it. The next frame has the number `sequence`:
/// a task that expects another one is an old one.
pub(crate) fn run(control: &str, sequence: u32) -> Result<(), Fatal> {
    let _alone = alone()?;
    let mut sequence = sequence;
    let mut ended = Instant::now();
    loop {
        let next = task(control).ok().filter(|task| task.sequence() == sequence);
        let Some(next) = next else {
            sleep(if ended.elapsed() < SAME_LOOK { SOON } else { LATER });
            continue;
        };
        let is_last = matches!(next, Task::End(_));
        // Most tasks open the control disk with this number, too.
        let mut report = Control::open(control, sequence)?;
        let done = if is_last { Ok(String::new()) } else { work(control, next) };
        report.continue_at(next_sequence());
        let end = match done {
            Ok(text) => Ended::Done(cut(text)),
            Err(error) => Ended::Failed(cut(error.to_string())),
        };
        report.put(&Record::Ended(end));
        report.flush()?;
        if is_last {
            return Ok(());
        }
        (sequence, ended) = (next_sequence(), Instant::now());
    }
}

/// Waits until no other agent stays, and then keeps others away.
pub(crate) fn alone() -> Result<OwnedFd, Fatal> {
    let program = open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&program, FlockOperation::LockExclusive)?;
    Ok(program)
}

/// The end of a text that is too long.
fn cut(mut text: String) -> String {
    let mut from = text.len().saturating_sub(TEXT_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.split_off(from)
}

//! Reads pieces of block devices, each under a tag of its own.
//!
//! The plan is a file of lines `TAG DEVICE OFFSET LENGTH`; a length is rounded up to whole sectors.

use crate::Fatal;
use crate::buffer::AlignedBuffer;
use crate::control::Control;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};
use virt_bmap_agent::record::{Operation, Record};

const CHUNK: usize = 1 << 20;
const SECTOR: usize = 512;

pub(crate) fn run(control: &str, sequence: u32, plan: &str) -> Result<(), Fatal> {
    let mut control = Control::open(control, sequence)?;
    let mut buffer = AlignedBuffer::new(CHUNK);
    control.put(&Record::Hello { version: virt_bmap_agent::VERSION });
    let plan = std::fs::read_to_string(plan).map_err(|error| format!("{plan}: {error}"))?;
    for line in plan.lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or("short line in the plan");
        let (tag, device, offset, length) =
            (word()?.parse()?, word()?, word()?.parse::<u64>()?, word()?.parse::<u64>()?);
        control.tag(tag, false)?;
        if let Err((errno, at)) = read_device(device, offset, length, &mut buffer) {
            control.trouble(Operation::Read, errno, 0, device.as_bytes(), at);
        }
    }
    control.tag(0, false)?;
    control.put(&Record::Done);
    control.flush()
}

fn read_device(device: &str, offset: u64, length: u64, buffer: &mut [u8]) -> Result<(), (Errno, u64)> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let fd = open(device, flags, Mode::empty()).map_err(|errno| (errno, offset))?;
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let want = left.min(buffer.len()).next_multiple_of(SECTOR);
        match pread(&fd, &mut buffer[..want], at) {
            Ok(0) => return Ok(()),
            Ok(got) => at += got as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err((errno, at)),
        }
    }
    Ok(())
}

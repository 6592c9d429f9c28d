//! Reads parts of block devices, each under its own tag.

use crate::Fatal;
use crate::buffer::AlignedBuffer;
use crate::control::Control;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};
use virt_bmap_agent_protocol::record::Operation;
use virt_bmap_agent_protocol::{DeviceRead, DeviceReads, Record, VERSION};

const CHUNK: usize = 1 << 20;

pub(crate) fn run(control: &str, task: &DeviceReads) -> Result<(), Fatal> {
    let mut control = Control::open(control, task.sequence)?;
    let mut buffer = AlignedBuffer::new(CHUNK);
    control.put(&Record::Hello { version: VERSION });
    for DeviceRead { tag, device, offset, length } in &task.reads {
        control.tag(*tag, false)?;
        if let Err((errno, at)) = read_device(device, *offset, *length, &mut buffer) {
            control.read_failure(Operation::Read, errno, 0, device.as_bytes(), at);
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
        // The host asks for whole sectors of the device.
        let want = left.min(buffer.len());
        match pread(&fd, &mut buffer[..want], at) {
            Ok(0) => return Ok(()),
            Ok(got) => at += got as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err((errno, at)),
        }
    }
    Ok(())
}

//! Checks one request and carries it out.

use super::export::{Export, Extent, Zeroing};
use super::protocol::*;
use super::reply::{DATA_ROOM, Refusal, is_zero};
use std::io;

/// What a client may ask for: the properties of the export and of the agreement with the client,
/// none of which changes during transmission.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Size of the export in bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Whether replies are structured.
    pub(super) structured: bool,
    /// Whether the client has chosen the context `base:allocation`.
    pub(super) base_allocation: bool,
}

impl Terms {
    /// Checks a request before it is carried out.
    pub(super) fn check(&self, header: &RequestHeader) -> Result<Request, Refusal> {
        let refuse = |error, why| Err(Refusal { error, why });
        let no_flags = CommandFlags::empty();
        let (command, mut allowed) = match header.command {
            NBD_CMD_READ if self.structured => (Command::Read, CommandFlags::DF),
            NBD_CMD_READ => (Command::Read, no_flags),
            NBD_CMD_WRITE => (Command::Write, no_flags),
            NBD_CMD_FLUSH => (Command::Flush, no_flags),
            NBD_CMD_TRIM => (Command::Trim, no_flags),
            NBD_CMD_WRITE_ZEROES => (Command::WriteZeroes, CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO),
            NBD_CMD_BLOCK_STATUS if self.base_allocation => (Command::BlockStatus, CommandFlags::REQ_ONE),
            NBD_CMD_BLOCK_STATUS => return refuse(NBD_EINVAL, "no metadata context was negotiated"),
            _ => return refuse(NBD_EINVAL, "unknown command"),
        };
        if self.read_only && command.is_write() {
            return refuse(NBD_EPERM, "the export is read-only");
        }
        if !self.read_only {
            // Where FUA can be used at all, the specification allows it on every command.
            allowed |= CommandFlags::FUA;
        }
        let Some(flags) = CommandFlags::from_bits(header.flags).filter(|&flags| allowed.contains(flags))
        else {
            return refuse(NBD_EINVAL, "a flag that does not go with the command");
        };
        let &RequestHeader { cookie, offset, length, .. } = header;
        let request = Request { command, flags, cookie, offset, length };
        if command == Command::Flush {
            return match (offset, length) {
                (0, 0) => Ok(request),
                _ => refuse(NBD_EINVAL, "a flush has neither offset nor length"),
            };
        }
        if length == 0 {
            return refuse(NBD_EINVAL, "a request for no bytes");
        }
        if offset.checked_add(length.into()).is_none_or(|end| end > self.size) {
            let error = match command {
                Command::Write | Command::WriteZeroes => NBD_ENOSPC,
                _ => NBD_EINVAL,
            };
            return refuse(error, "past the end of the export");
        }
        if matches!(command, Command::Read | Command::Write) && length > MAX_PAYLOAD {
            let unfragmented = flags.contains(CommandFlags::DF);
            return refuse(if unfragmented { NBD_EOVERFLOW } else { NBD_EINVAL }, "more than 32 MiB");
        }
        Ok(request)
    }
}

/// The result of a request.
pub(super) enum Outcome {
    Done,
    /// The bytes that were read, after [`DATA_ROOM`] bytes for the header.
    Data(Vec<u8>),
    /// All bytes that were read are zeroes.
    Hole,
    Extents(Vec<Extent>),
}

/// Carries out a request that has been checked; `data` is what a write writes. May block.
pub(super) fn perform(
    export: &dyn Export,
    request: &Request,
    data: &[u8],
    structured: bool,
) -> io::Result<Outcome> {
    let &Request { command, flags, offset, length, .. } = request;
    let fua = flags.contains(CommandFlags::FUA);
    let done = match command {
        Command::Read => {
            let mut bytes = vec![0; DATA_ROOM + length as usize];
            export.read(&mut bytes[DATA_ROOM..], offset)?;
            let hole = structured && is_zero(&bytes[DATA_ROOM..]);
            return Ok(if hole { Outcome::Hole } else { Outcome::Data(bytes) });
        }
        Command::BlockStatus => {
            let one = flags.contains(CommandFlags::REQ_ONE);
            return export.block_status(length, offset, one).map(Outcome::Extents);
        }
        Command::Write => export.write(data, offset, fua),
        Command::Flush => export.flush(),
        Command::Trim => export.trim(length, offset, fua),
        Command::WriteZeroes => {
            let no_hole = flags.contains(CommandFlags::NO_HOLE);
            let fast = flags.contains(CommandFlags::FAST_ZERO);
            export.write_zeroes(length, offset, Zeroing { fua, no_hole, fast })
        }
    };
    done.map(|()| Outcome::Done)
}

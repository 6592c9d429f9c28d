//! A raw export of an NBD server, read without `qemu-nbd` in between.
//!
//! Each program between the appliance and the disk costs a switch of processes for each read. So an
//! export is read directly if its server allows that: it needs no TLS, it lets a client open
//! several connections (`NBD_FLAG_CAN_MULTI_CONN`), and it can be read in sectors. `qemu-nbd` reads
//! all others. It also explains why a server cannot be used.
//!
//! Numbers and messages are those of `doc/proto.md` in the NBD project ("Fixed newstyle
//! negotiation").

use super::SECTOR;
use super::nbd_uri::{NbdUri, Server};
use super::served::{Connection, START_TIME, Served, Stream, Wire};
use nbd::Export;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;

/// Connections to the server, and so the reads that can be under way at once.
const CONNECTIONS: usize = 4;

/// Most bytes of one reply to an option, and most replies. A server sends a few short ones.
const MOST_REPLY: u32 = 64 << 10;
const MOST_REPLIES: usize = 64;

/// "IHAVEOPT", which begins each option.
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Fixed newstyle, and no zeroes after the reply to `NBD_OPT_EXPORT_NAME`.
const HANDSHAKE_FLAGS: u16 = 0b11;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const CAN_MULTI_CONN: u16 = 1 << 8;

/// What a server says of an export.
#[derive(Debug, Default)]
struct Description {
    size: u64,
    flags: u16,
    /// The least that can be read at once, in bytes.
    minimum_block: Option<u32>,
}

/// Connects to the export. `None`: it has to be read through `qemu-nbd`.
pub(super) fn open(uri: &NbdUri) -> Option<Served> {
    if uri.tls.is_some() {
        return None;
    }
    let connected = connect(uri).inspect_err(|error| tracing::debug!(%error, "{uri}: qemu-nbd reads it"));
    let (first, size) = connected.ok()??;
    let mut connections = vec![first];
    // A server may allow fewer.
    while connections.len() < CONNECTIONS
        && let Ok(Some((another, same))) = connect(uri)
        && same == size
    {
        connections.push(another);
    }
    Some(Served::by_server(uri, connections, size))
}

/// One connection, and the size of the export. `None`: the export cannot be read directly.
fn connect(uri: &NbdUri) -> io::Result<Option<(Connection, u64)>> {
    let stream = match &uri.server {
        Server::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        Server::Tcp { host, port } => Stream::Tcp(connect_tcp(host, *port)?),
    };
    stream.set_read_timeout(Some(START_TIME))?;
    let mut wire = Wire::new(stream)?;
    let described = choose(&mut wire, &uri.export)?;
    let is_readable = described.minimum_block.is_none_or(|block| u64::from(block) <= SECTOR);
    if described.flags & CAN_MULTI_CONN == 0 || !is_readable {
        return Ok(None);
    }
    // How long a read takes is up to the storage, and to whoever waits for it.
    wire.stream().set_read_timeout(None)?;
    let export = Export { size: described.size, readonly: true, ..Export::default() };
    Ok(Some((Connection::new(wire, &export), described.size)))
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, START_TIME) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Chooses an export.
///
/// # Errors
/// The server is none of NBD, does not know `NBD_OPT_GO` or refuses the export.
fn choose(wire: &mut (impl Read + Write), export: &str) -> io::Result<Description> {
    let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut greeting = [0; 18];
    wire.read_exact(&mut greeting)?;
    let [flags @ ..] = [greeting[16], greeting[17]];
    if greeting[..8] != *b"NBDMAGIC" || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
        return Err(invalid("no server of newstyle NBD"));
    }
    let flags = u16::from_be_bytes(flags) & HANDSHAKE_FLAGS;
    let name = export.as_bytes();
    let mut message = u32::from(flags).to_be_bytes().to_vec();
    message.extend(OPTION_MAGIC.to_be_bytes());
    message.extend(OPT_GO.to_be_bytes());
    // The name is at most 4096 bytes.
    let length = name.len() as u32;
    message.extend((4 + length + 2 + 2).to_be_bytes());
    message.extend(length.to_be_bytes());
    message.extend(name);
    message.extend(1u16.to_be_bytes());
    message.extend(INFO_BLOCK_SIZE.to_be_bytes());
    wire.write_all(&message)?;
    wire.flush()?;
    let mut described = Description::default();
    for _ in 0..MOST_REPLIES {
        let (kind, data) = reply(wire)?;
        match kind {
            REP_ACK => return Ok(described),
            REP_INFO => match (be16(&data, 0), data.len()) {
                (Some(INFO_EXPORT), 12) => {
                    described.size = be64(&data, 2).unwrap_or(0);
                    described.flags = be16(&data, 10).unwrap_or(0);
                }
                (Some(INFO_BLOCK_SIZE), 14) => described.minimum_block = be32(&data, 2),
                _ => {}
            },
            _ => return Err(invalid("the server refuses NBD_OPT_GO")),
        }
    }
    Err(invalid("the server describes the export without an end"))
}

/// Reads a reply to `NBD_OPT_GO`: its kind and its data.
fn reply(wire: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    wire.read_exact(&mut header)?;
    let [magic, option] = [be64(&header, 0), be32(&header, 8).map(u64::from)];
    let [kind, length] = [12, 16].map(|at| be32(&header, at).unwrap_or(u32::MAX));
    if magic != Some(REPLY_MAGIC) || option != Some(OPT_GO.into()) || length > MOST_REPLY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply breaks the protocol"));
    }
    let mut data = vec![0; length as usize];
    wire.read_exact(&mut data)?;
    Ok((kind, data))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// A server that says what it was given, and takes whatever is written.
    struct Script(Cursor<Vec<u8>>);

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Script {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting() -> Vec<u8> {
        [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat()
    }

    fn chosen(said: Vec<u8>) -> io::Result<Description> {
        choose(&mut Script(Cursor::new(said)), "disk")
    }

    fn answer(kind: u32, data: &[u8]) -> Vec<u8> {
        let length = data.len() as u32;
        let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
        [OPT_GO, kind, length].iter().for_each(|word| bytes.extend(word.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    #[test]
    fn the_description_is_what_the_server_says() {
        let size = [&[0, 0][..], &4096u64.to_be_bytes(), &0x101u16.to_be_bytes()].concat();
        let blocks = [&[0, 3][..], &[0, 0, 16, 0], &[0; 8]].concat();
        let name = [0, 1, b'x'];
        let said = [answer(3, &size), answer(3, &name), answer(3, &blocks), answer(1, b"")].concat();
        let described = chosen([greeting(), said].concat()).unwrap();
        assert_eq!((described.size, described.flags), (4096, 0x101));
        assert_eq!(described.minimum_block, Some(4096));
    }

    #[test]
    fn a_server_that_refuses_or_never_ends_is_an_error() {
        let refused = answer(1 << 31 | 6, b"no such export");
        let endless = answer(3, &[0, 1]).repeat(MOST_REPLIES + 1);
        let mut huge = answer(3, b"");
        huge[16..].copy_from_slice(&u32::MAX.to_be_bytes());
        for said in [refused, endless, huge, b"".to_vec()] {
            assert!(chosen([greeting(), said].concat()).is_err());
        }
        assert!(chosen(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00".to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn no_server_makes_it_panic(rest in prop::collection::vec(any::<u8>(), 0..200), is_greeted: bool) {
            let said = if is_greeted { [greeting(), rest].concat() } else { rest };
            let _ = chosen(said);
        }
    }
}

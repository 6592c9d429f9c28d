//! A client of qemu's monitor protocol (QMP, `docs/interop/qmp-spec` in qemu).
//!
//! One command at a time: it is sent with an id, and everything else is skipped until the answer
//! with that id comes. What comes is bounded in size and in time.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use virt_bmap_child as child;

/// Time for an answer. qemu may wait for the disk before it gives one.
const TIME: Duration = Duration::from_secs(30);

/// Time for the greeting, which comes at once unless another program is connected.
const GREETING: Duration = Duration::from_secs(5);

/// Most bytes of a message. The largest known, `query-qmp-schema`, has 0.2 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a monitor does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no answer.
    #[error(
        "qemu's monitor does not answer; another program may be connected to it: give it a QMP socket of its own"
    )]
    Silent,
    /// The connection failed.
    #[error("the connection to qemu's monitor failed")]
    Connection(#[source] io::Error),
    /// It speaks another protocol, or floods us.
    #[error("this is no QMP monitor, or it breaks the protocol")]
    Protocol,
    /// It refused a command.
    #[error("qemu refuses {command}: {message}")]
    Refused {
        /// The command.
        command: String,
        /// qemu's message.
        message: String,
    },
}

impl From<io::Error> for QmpError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Connection(error),
        }
    }
}

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    /// The process that sends. Another one may have used the connection before.
    process: u32,
    sent: u64,
    /// The major version of qemu, if the greeting said it.
    version: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    id: Option<String>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the monitor at a socket.
    pub(crate) fn connect(socket: &Path) -> Result<Self, QmpError> {
        let mut qmp = Self::resume(UnixStream::connect(socket)?);
        let greeting = qmp.message(Instant::now() + GREETING)?;
        let greeting: Value = serde_json::from_slice(&greeting).map_err(|_| QmpError::Protocol)?;
        let Some(greeting) = greeting.get("QMP") else { return Err(QmpError::Protocol) };
        qmp.version = greeting.pointer("/version/qemu/major").and_then(Value::as_u64);
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Goes on with a connection that was used by another process.
    pub(crate) fn resume(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), process: std::process::id(), sent: 0, version: None }
    }

    /// The major version of qemu.
    pub(crate) fn version(&self) -> Option<u64> {
        self.version
    }

    /// The same connection for another process, which uses it when this one no longer does.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Executes a command.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None)
    }

    /// Executes a query, and reads its answer.
    pub(crate) fn query<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<T, QmpError> {
        let value = self.execute(command, arguments)?;
        serde_json::from_value(value).map_err(|_| QmpError::Protocol)
    }

    /// Executes a command that takes a file.
    pub(crate) fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        self.sent += 1;
        let id = format!("{}-{}", self.process, self.sent);
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.stream.set_write_timeout(Some(TIME))?;
        self.send(line.as_bytes(), file)?;
        let deadline = Instant::now() + TIME;
        loop {
            // A process that was killed may have left the rest of a line.
            let message = self.message(deadline)?;
            let Ok(answer) = serde_json::from_slice::<Answer>(&message) else { continue };
            if answer.id.as_deref() != Some(&id) {
                continue;
            }
            return match (answer.value, answer.error) {
                (Some(value), None) => Ok(value),
                (_, Some(Refusal { desc })) => Err(QmpError::Refused {
                    command: command.to_owned(),
                    message: child::message(desc.as_bytes()),
                }),
                (None, None) => Err(QmpError::Protocol),
            };
        }
    }

    fn send(&mut self, line: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(file) = file else { return self.stream.write_all(line) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(line)], &mut ancillary, flags)?;
        // The file came with the first byte.
        self.stream.write_all(line.get(sent..).unwrap_or_default())
    }

    /// The next line.
    fn message(&mut self, deadline: Instant) -> Result<Vec<u8>, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(length) = memchr(b'\n', self.received.get(searched..).unwrap_or_default()) {
                let rest = self.received.split_off(searched + length + 1);
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            searched = self.received.len();
            if searched > MAX_MESSAGE {
                return Err(QmpError::Protocol);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Silent);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buf = [0; 16 << 10];
            match self.stream.read(&mut buf) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(length) => self.received.extend_from_slice(buf.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn memchr(byte: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|other| *other == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A monitor that says these lines, each as soon as a command has come.
    fn monitor(lines: Vec<Vec<u8>>) -> Qmp {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut buf = [0; 4096];
            for line in lines {
                let _ = theirs.read(&mut buf);
                let _ = theirs.write_all(&line);
            }
        });
        Qmp::resume(ours)
    }

    fn answer(text: &str) -> Vec<u8> {
        text.replace("ID", &format!("{}-1", std::process::id())).into_bytes()
    }

    #[test]
    fn only_the_answer_counts() {
        let said = "half a line}\n{\"event\": \"STOP\"}\n{\"return\": 1, \"id\": \"7-1\"}\n{\"return\": 2, \"id\": \"ID\"}\n";
        let mut qmp = monitor(vec![answer(said)]);
        assert_eq!(qmp.execute("query", &json!({})).unwrap(), json!(2));
    }

    #[test]
    fn a_refusal_is_a_harmless_line() {
        let said =
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[31m\"}, \"id\": \"ID\"}\n";
        let error = monitor(vec![answer(said)]).execute("stop", &json!({})).unwrap_err();
        let QmpError::Refused { command, message } = error else { panic!("{error}") };
        assert_eq!((&*command, &*message), ("stop", "no\\u{1b}[31m"));
    }

    #[test]
    fn a_monitor_that_ends_or_floods_is_an_error() {
        assert!(matches!(monitor(vec![vec![]]).execute("stop", &json!({})), Err(QmpError::Connection(_))));
        let flood = vec![b'x'; MAX_MESSAGE + (32 << 10)];
        assert!(matches!(monitor(vec![flood]).execute("stop", &json!({})), Err(QmpError::Protocol)));
        let deep = [vec![b'['; 1 << 20], b"\n".to_vec()].concat();
        assert!(matches!(monitor(vec![deep]).execute("stop", &json!({})), Err(QmpError::Connection(_))));
    }
}

//! Metadata contexts of an NBD server: which parts of an export are allocated or dirty.

use super::nbd_uri::{NbdUri, Server};
use super::{OpenError, qemu_img};
use std::io;
use std::path::Path;
use std::time::Duration;
use virt_bmap_child as child;

/// Asks a server for the extents of a context.
const NBDINFO: &str = "nbdinfo";

/// Most processor time for it. A server may answer in millions of small pieces.
const MAX_CPU: Duration = Duration::from_secs(1800);

impl NbdUri {
    /// Passes the extents of a metadata context, such as `base:allocation` or
    /// `qemu:dirty-bitmap:NAME`, to `read`: the output of `nbdinfo --map --json`.
    ///
    /// # Errors
    /// nbdinfo cannot be run, the server cannot be reached or does not have the context, or `read`
    /// fails.
    pub fn extents<T, E: std::error::Error>(
        &self,
        context: &str,
        read: impl FnOnce(&mut dyn io::Read) -> Result<T, E>,
    ) -> Result<T, OpenError> {
        let mut command = child::command(NBDINFO.as_ref());
        command.arg(format!("--map={context}")).args(["--json", "--"]).arg(self.with_keys());
        qemu_img::ask(NBDINFO, command, Path::new(&self.to_string()), MAX_CPU, read)
    }

    /// The URI with the places of its keys, as libnbd takes them.
    fn with_keys(&self) -> String {
        let mut uri = self.to_string();
        let Some(tls) = &self.tls else { return uri };
        let mut separator = if matches!(self.server, Server::Unix(_)) { '&' } else { '?' };
        let mut add = |key: &str, value: &[u8]| {
            uri.push(separator);
            uri.push_str(&format!("{key}={}", super::nbd_uri::Encoded(value)));
            separator = '&';
        };
        if let Some(path) = &tls.certificates {
            add("tls-certificates", path.as_os_str().as_encoded_bytes());
        }
        if let Some(path) = &tls.psk {
            add("tls-psk-file", path.as_os_str().as_encoded_bytes());
        }
        for (key, value) in [("tls-username", &tls.user), ("tls-hostname", &tls.hostname)] {
            if let Some(value) = value {
                add(key, value.as_bytes());
            }
        }
        uri
    }
}

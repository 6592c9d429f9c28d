//! NBD URIs: where a server is, and which of its exports is meant.
//!
//! The syntax is that of `doc/uri.md` in the NBD project, with the parameters for TLS that libnbd
//! adds (`nbd_connect_uri(3)`).

use fluent_uri::Uri;
use fluent_uri::component::Authority;
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// The beginnings of the URIs.
const BEGINNINGS: [&str; 6] = ["nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:"];

/// An export of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    /// The server.
    pub server: Server,
    /// The name of the export; empty for the default one. At most 4096 bytes, by the protocol.
    pub export: String,
    /// How the connection is encrypted, if it is.
    pub tls: Option<Tls>,
    /// As the user wrote it.
    text: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// On a port of a host.
    Tcp {
        /// Name or address; that of IPv6 has no brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// At a Unix socket.
    Unix(PathBuf),
}

/// The keys of an encrypted connection. The places of keys are no secrets, but they are of no use
/// to readers of a map, so the URI is shown without them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The directory of the certificates, with the files that qemu expects there: `ca-cert.pem`,
    /// and perhaps `client-cert.pem` and `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// A file of pre-shared keys, in the format of psktool(1).
    pub psk: Option<PathBuf>,
    /// Whose pre-shared key is used. The default is the name of this user.
    pub user: Option<String>,
    /// The name in the server's certificate, if it is not that of the host.
    pub hostname: Option<String>,
}

/// Why a text is no NBD URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUri {
    /// It is no URI at all.
    #[error("this is not a URI (RFC 3986): {0}")]
    Syntax(String),
    /// It has no host.
    #[error("the URI names no host; write nbd://HOST/EXPORT, or nbd+unix:///EXPORT?socket=PATH")]
    NoHost,
    /// It has a host and a Unix socket, or a Unix socket is missing.
    #[error("a URI of a Unix socket has the form nbd+unix:///EXPORT?socket=PATH")]
    Socket,
    /// A port that is none.
    #[error("the port in the URI is not a number below 65536")]
    Port,
    /// A parameter that is not known.
    #[error("the URI has the parameter {0:?}, which is not known")]
    Parameter(String),
    /// An export name of more than 4096 bytes, one with a NUL byte, or one that is not UTF-8.
    #[error("the export's name in the URI is too long, or is not UTF-8 without NUL bytes")]
    Export,
    /// A transport that qemu does not have.
    #[error("NBD over vsock cannot be used; connect to the server by TCP or by a Unix socket")]
    Vsock,
    /// Parameters for TLS without TLS.
    #[error("the URI has parameters for TLS, but its scheme is not nbds or nbds+unix")]
    NotEncrypted,
}

impl NbdUri {
    /// The port of a URI that has none, as registered with IANA.
    pub const DEFAULT_PORT: u16 = 10809;

    /// An export of a server; if the connection is encrypted, without keys.
    ///
    /// # Errors
    /// [`BadUri::Export`]
    pub fn new(server: Server, export: &str, is_encrypted: bool) -> Result<Self, BadUri> {
        let tls = is_encrypted.then(Tls::default);
        let mut uri = Self { server, export: checked(export)?, tls, text: String::new() };
        uri.text = uri.to_string();
        Ok(uri)
    }

    /// The URI as the user wrote it, with whatever it says of keys.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a user who writes this means a URI: it begins with one of NBD's schemes and a colon.
    /// A file of such a name can be written with `./` before it.
    pub fn is_meant(text: &OsStr) -> bool {
        BEGINNINGS.iter().any(|beginning| {
            let start = text.as_bytes().get(..beginning.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(beginning.as_bytes()))
        })
    }

    /// Reads a URI.
    ///
    /// ```
    /// use virt_bmap_image::{NbdUri, Server};
    ///
    /// let uri = NbdUri::parse("nbd+unix:///disk%201?socket=/run/nbd.sock".as_ref())?;
    /// assert_eq!(uri.export, "disk 1");
    /// assert_eq!(uri.server, Server::Unix("/run/nbd.sock".into()));
    /// assert_eq!(uri.to_string(), "nbd+unix:///disk%201?socket=/run/nbd.sock");
    /// # Ok::<(), virt_bmap_image::BadUri>(())
    /// ```
    ///
    /// # Errors
    /// [`BadUri`]
    pub fn parse(text: &OsStr) -> Result<Self, BadUri> {
        let text = text.to_str().ok_or_else(|| BadUri::Syntax("it is not UTF-8".to_owned()))?;
        let uri = Uri::parse(text).map_err(|error| BadUri::Syntax(error.to_string()))?;
        let scheme = uri.scheme().as_str().to_ascii_lowercase();
        let (is_encrypted, transport) = match scheme.strip_prefix("nbds") {
            Some(transport) => (true, transport),
            None => (false, scheme.strip_prefix("nbd").unwrap_or(&scheme)),
        };
        let parameters = Parameters::of(&uri)?;
        let authority = uri.authority();
        let server = match transport {
            "" => tcp(authority)
                .and_then(|tcp| if parameters.socket.is_none() { Ok(tcp) } else { Err(BadUri::Socket) })?,
            "+unix" => {
                let has_host = authority.is_some_and(|authority| !authority.host().is_empty());
                let socket = parameters.socket.filter(|_| !has_host).ok_or(BadUri::Socket)?;
                Server::Unix(socket)
            }
            "+vsock" => return Err(BadUri::Vsock),
            _ => return Err(BadUri::Syntax("its scheme is not one of NBD".to_owned())),
        };
        let path = uri.path().decode().to_string().map_err(|_| BadUri::Export)?;
        let export = checked(path.strip_prefix('/').unwrap_or(&path))?;
        let user = authority.and_then(|authority| authority.userinfo());
        let user = user.map(|user| user.decode().to_string().map(Cow::into_owned)).transpose();
        let user = user.map_err(|_| BadUri::Syntax("its user is not UTF-8".to_owned()))?;
        let mut tls = parameters.tls;
        tls.user = tls.user.or(user);
        let tls = match is_encrypted {
            true => Some(tls),
            false if tls != Tls::default() => return Err(BadUri::NotEncrypted),
            false => None,
        };
        Ok(Self { server, export, tls, text: text.to_owned() })
    }
}

/// The name of an export, which the protocol limits to 4096 bytes.
fn checked(export: &str) -> Result<String, BadUri> {
    let is_possible = export.len() <= 4096 && !export.contains('\0');
    is_possible.then(|| export.to_owned()).ok_or(BadUri::Export)
}

fn tcp(authority: Option<Authority<'_>>) -> Result<Server, BadUri> {
    let authority = authority.filter(|authority| !authority.host().is_empty()).ok_or(BadUri::NoHost)?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = authority.port_to_u16().map_err(|_| BadUri::Port)?.unwrap_or(NbdUri::DEFAULT_PORT);
    Ok(Server::Tcp { host: host.to_owned(), port })
}

/// The parameters after the question mark.
#[derive(Default)]
struct Parameters {
    socket: Option<PathBuf>,
    tls: Tls,
}

impl Parameters {
    fn of(uri: &Uri<&str>) -> Result<Self, BadUri> {
        let mut parameters = Self::default();
        let Some(query) = uri.query() else { return Ok(parameters) };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| BadUri::Parameter(pair.to_string()))?;
            let bytes = value.decode().to_bytes().into_owned();
            if bytes.is_empty() || bytes.contains(&0) {
                return Err(BadUri::Parameter(pair.to_string()));
            }
            let path = || PathBuf::from(OsString::from_vec(bytes.clone()));
            let word = || String::from_utf8(bytes.clone()).map_err(|_| BadUri::Parameter(pair.to_string()));
            match key.as_str() {
                "socket" => parameters.socket = Some(path()),
                "tls-certificates" => parameters.tls.certificates = Some(path()),
                "tls-psk-file" => parameters.tls.psk = Some(path()),
                "tls-username" => parameters.tls.user = Some(word()?),
                "tls-hostname" => parameters.tls.hostname = Some(word()?),
                _ => return Err(BadUri::Parameter(pair.to_string())),
            }
        }
        Ok(parameters)
    }
}

/// The URI without a user and without the places of keys.
impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        match &self.server {
            Server::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}")?;
                if *port != Self::DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{}", Encoded(self.export.as_bytes()))
            }
            Server::Unix(path) => {
                let path = Encoded(path.as_os_str().as_bytes());
                write!(f, "{scheme}+unix:///{}?socket={path}", Encoded(self.export.as_bytes()))
            }
        }
    }
}

/// Bytes of a path or parameter, percent-encoded where RFC 3986 wants it: all but the unreserved
/// characters and slashes.
pub(super) struct Encoded<'a>(pub(super) &'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'-' | b'.' | b'_' | b'~' | b'/' => write!(f, "{}", char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => write!(f, "{}", char::from(byte)),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<NbdUri, BadUri> {
        NbdUri::parse(text.as_ref())
    }

    #[test]
    fn uris_are_read_and_written() {
        for (text, shown) in [
            ("nbd://host", "nbd://host/"),
            ("nbd://host:10809/", "nbd://host/"),
            ("NBD://host:1/a/b", "nbd://host:1/a/b"),
            ("nbd://[::1]:10810/", "nbd://[::1]:10810/"),
            ("nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s"),
            ("nbd+unix://?socket=s%2cock", "nbd+unix:///?socket=s%2Cock"),
            ("nbds://me@host/x%20y", "nbds://host/x%20y"),
            ("nbds+unix:///x?socket=/s&tls-psk-file=/k&tls-username=u", "nbds+unix:///x?socket=/s"),
        ] {
            let uri = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(uri.to_string(), shown, "{text}");
            assert!(NbdUri::is_meant(text.as_ref()), "{text}");
        }
        let Ok(uri) = parse("nbds://me@host:7/?tls-certificates=/pki&tls-hostname=h") else { panic!() };
        assert_eq!(uri.server, Server::Tcp { host: "host".into(), port: 7 });
        let tls = uri.tls.unwrap();
        assert_eq!((tls.certificates, tls.psk), (Some("/pki".into()), None));
        assert_eq!((tls.user.as_deref(), tls.hostname.as_deref()), (Some("me"), Some("h")));
    }

    #[test]
    fn what_is_none_is_refused() {
        for (text, why) in [
            ("nbd:", BadUri::NoHost),
            ("nbd:///x", BadUri::NoHost),
            ("nbd+unix:///x", BadUri::Socket),
            ("nbd+unix://host/x?socket=/s", BadUri::Socket),
            ("nbd://host/?socket=/s", BadUri::Socket),
            ("nbd://host:70000/", BadUri::Port),
            ("nbd://host/?colour=red", BadUri::Parameter("colour=red".into())),
            ("nbd+unix:///?socket=", BadUri::Parameter("socket=".into())),
            ("nbd+unix:///?socket=a%00b", BadUri::Parameter("socket=a%00b".into())),
            ("nbd://host/%ff", BadUri::Export),
            ("nbd+vsock://2/", BadUri::Vsock),
            ("nbd://host/?tls-psk-file=/k", BadUri::NotEncrypted),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
        assert!(matches!(parse("nbd://a b/"), Err(BadUri::Syntax(_))));
        for file in ["nbd", "./nbd:x", "/nbd://x", "nbdx://y", "https://host/x"] {
            assert!(!NbdUri::is_meant(file.as_ref()), "{file}");
        }
    }

    proptest! {
        /// What is shown is read again as the same, but for the keys.
        #[test]
        fn what_is_shown_is_the_same(export in "[^\0]{0,40}", socket in "[^\0]{1,40}", unix: bool, port: u16) {
            let server = match unix {
                true => Server::Unix(socket.into()),
                false => Server::Tcp { host: "host".into(), port },
            };
            let uri = NbdUri { server, export, tls: None, text: String::new() };
            let again = parse(&uri.to_string()).unwrap();
            prop_assert_eq!((again.server, again.export, again.tls), (uri.server, uri.export, uri.tls));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(nbds?(\\+unix|\\+vsock)?:)?.{0,60}") {
            let _ = parse(&text);
        }
    }
}

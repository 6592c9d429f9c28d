//! Servers of other people that tests talk to. Each ends with its test.

use crate::tools;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed at the end of the test.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Waits until the server does what `is_ready` looks for. `what`: its name, for failures.
    fn wait(&mut self, what: &str, is_ready: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_ready() {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{what} does not listen: {ended:?}");
            sleep(Duration::from_millis(10));
        }
    }
}

/// nbdkit with these arguments, in a directory. It listens at the Unix socket when this returns.
pub fn nbdkit(dir: &Path, args: &[&str]) -> (Server, PathBuf) {
    let socket = dir.join("s");
    let _ = fs::remove_file(&socket);
    let mut command = Command::new("nbdkit");
    command.args(["-f", "-U"]).arg(&socket).args(args).current_dir(dir);
    let mut server = Server(command.spawn().unwrap());
    server.wait(&format!("nbdkit {args:?}"), || socket.exists());
    (server, socket)
}

/// An ssh server on the loopback interface. The user's client configuration for these names of
/// hosts is `ssh_config` in the directory, and the server's messages are in `sshd.log`. `more`:
/// further lines of the server's configuration.
pub fn sshd(dir: &Path, hosts: &str, more: &str) -> Server {
    let at = |name: &str| dir.join(name);
    for key in ["host", "user"] {
        tools::output(
            tools::command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key)),
        );
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let d = dir.display();
    let server = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {d}/host\nAuthorizedKeysFile {d}/user.pub\nPidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\nAcceptEnv none\nMaxStartups 100\n\
         Subsystem sftp internal-sftp\n{more}"
    );
    let client = format!(
        "Host {hosts}\nHostName 127.0.0.1\nPort {port}\nIdentityFile {d}/user\nIdentitiesOnly yes\n\
         BatchMode yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    );
    fs::write(at("sshd_config"), server).unwrap();
    fs::write(at("ssh_config"), client).unwrap();
    if rustix::process::geteuid().is_root() {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let mut command = tools::command("sshd");
    let log = File::create(at("sshd.log")).unwrap();
    let mut server =
        Server(command.args(["-D", "-e", "-f"]).arg(at("sshd_config")).stderr(log).spawn().unwrap());
    server.wait("sshd", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    server
}

//! Opens encrypted devices with cryptsetup(8).

use crate::Fatal;
use crate::control::Control;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use virt_bmap_agent_protocol::{Encryption, Opener, Record, Unlock, Unlocked, VERSION};

/// How often cryptsetup is looked at.
const TICK: Duration = Duration::from_millis(5);

pub(crate) fn run(control: &str, task: &Unlock) -> Result<(), Fatal> {
    let mut control = Control::open(control, task.sequence)?;
    control.put(&Record::Hello { version: VERSION });
    control.put(&Record::Unlocked(open(task)?));
    control.put(&Record::Done);
    control.flush()
}

/// Runs cryptsetup, which gets the secret through a pipe. The device becomes writable, because a
/// journal may have to be replayed; writes stay in the host's overlay.
fn open(task: &Unlock) -> Result<Unlocked, Fatal> {
    let mut command = Command::new("cryptsetup");
    // udev was stopped; without the variable cryptsetup would wait for it forever.
    command.env("DM_DISABLE_UDEV", "1").arg("open");
    if task.encryption == Encryption::BitLocker {
        command.args(["--type", "bitlk"]);
    }
    let (option, secret) = match &task.opener {
        Opener::Passphrase(secret) => ("--key-file", secret),
        Opener::VolumeKey(secret) => ("--volume-key-file", secret),
    };
    command.args([option, "/proc/self/fd/0", &task.device, &task.name]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::scope(|scope| {
        if let Some(mut pipe) = child.stdin.take() {
            // It fails if cryptsetup ends without reading, which its exit status tells. On a
            // thread, because a long secret does not fit into a pipe that nobody reads.
            scope.spawn(move || pipe.write_all(secret.expose()));
        }
        let deadline = Instant::now() + Duration::from_secs(task.seconds);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(match status.code() {
                    Some(0) => Unlocked::Yes,
                    // See cryptsetup(8), "RETURN CODES".
                    Some(3) => Unlocked::Memory,
                    _ => Unlocked::No,
                });
            }
            if Instant::now() >= deadline {
                child.kill()?;
                child.wait()?;
                return Ok(Unlocked::Never);
            }
            thread::sleep(TICK);
        }
    })
}

//! The tasks of the agent. In an appliance that is kept, an agent stays and takes them from the
//! control disk; otherwise one is started for each.

use super::channel::Waited;
use super::context::Context;
use crate::appliance::{AgentError, CallError, SYSROOT};
use std::time::Duration;
use virt_bmap_agent_protocol::{EndTask, Ended, Leave, Mount, Task};

/// How often to check that the appliance still runs.
const TICK: Duration = Duration::from_millis(100);

impl Context<'_> {
    /// Has the agent do the task on the control disk. Returns its output.
    ///
    /// # Errors
    /// [`AgentError`]
    pub(super) fn work(&self) -> Result<String, AgentError> {
        let output = if self.is_again { self.wait_for_end()? } else { self.appliance.work()? };
        tracing::debug!("time of the agent: {}", output.trim_end());
        Ok(output)
    }

    /// Mounts a device as `mount -t KIND -o OPTIONS` does, with a filesystem that the kernel has a
    /// driver for. Returns the kernel's messages since the last time.
    ///
    /// # Errors
    /// [`AgentError`]: it cannot be mounted.
    pub(super) fn mount_in_kernel(
        &self,
        node: &str,
        kind: &str,
        options: &str,
    ) -> Result<String, AgentError> {
        let [device, kind, options] = [node, kind, options].map(str::to_owned);
        let root = SYSROOT.to_owned();
        self.perform(|sequence| Task::Mount(Mount { sequence, device, kind, options, root }))
    }

    /// Unmounts what [`mount_in_kernel`](Self::mount_in_kernel) has mounted, and has the kernel
    /// forget the disks. Returns its messages since the last time.
    ///
    /// # Errors
    /// [`AgentError`]
    pub(super) fn leave(&self) -> Result<String, AgentError> {
        self.perform(|sequence| Task::Leave(Leave { sequence, root: SYSROOT.to_owned() }))
    }

    /// Ends the agent that stays.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn end_agent(&self) -> Result<(), AgentError> {
        self.perform(|sequence| Task::End(EndTask { sequence })).map(drop)
    }

    fn perform(&self, task: impl FnOnce(u32) -> Task) -> Result<String, AgentError> {
        let task = task(self.channel.begin_reads());
        self.channel.hand_over(&task).map_err(|error| failed(error.to_string()))?;
        self.wait_for_end()
    }

    fn wait_for_end(&self) -> Result<String, AgentError> {
        loop {
            match self.channel.wait_for_end(TICK) {
                Waited::Ended(Ended::Done(text)) => return Ok(text),
                Waited::Ended(Ended::Failed(text)) => {
                    return Err(failed(crate::appliance::printable(text.as_bytes())));
                }
                Waited::Broken => {
                    // Whatever it still sends is refused until it has ended.
                    self.appliance.stay(self.channel.sequence())?;
                    return Err(failed("the conversation has ended".into()));
                }
                Waited::NotYet if self.appliance.has_ended() => {
                    return Err(failed("the appliance has ended".into()));
                }
                Waited::NotYet => {}
            }
        }
    }
}

fn failed(message: String) -> AgentError {
    AgentError::Run(CallError { message })
}

//! Processes that this one starts on CPUs of their own, and that end with it.

use std::{
    fs::File,
    io::{Read, Seek},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::machine::pin_process;

/// Processes that are killed when this goes.
#[derive(Debug, Default)]
pub struct Children(Vec<Process>);

#[derive(Debug)]
struct Process {
    program: String,
    child: Child,
    /// What it says on standard error.
    said: File,
}

impl Children {
    /// Starts one more on `cpus`, its standard input a pipe that ends with this process.
    ///
    /// # Errors
    /// Names the program that cannot be started.
    pub fn spawn(&mut self, command: &mut Command, cpus: &[usize]) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let said = tempfile::tempfile().context("cannot make a temporary file")?;
        let stderr = said.try_clone().context("cannot share a temporary file")?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr).spawn();
        let child = child.with_context(|| format!("{program}: cannot start"))?;
        // It has hardly begun: the threads that compute are still to come, and inherit it.
        let pinned = pin_process(child.id(), cpus);
        self.0.push(Process { program, child, said });
        pinned
    }

    /// Checks that all are still there.
    ///
    /// # Errors
    /// Says how the first that has ended did, and what it said last.
    pub fn check(&mut self) -> Result<()> {
        for Process { program, child, said } in &mut self.0 {
            let Some(status) = child.try_wait()? else { continue };
            let mut text = String::new();
            said.rewind()?;
            said.read_to_string(&mut text)?;
            bail!("{program} ended ({status}): {}", text.lines().last().unwrap_or("it said nothing"));
        }
        Ok(())
    }

    /// Closes their pipes, which asks them to leave, and waits a little.
    pub fn stop(mut self) {
        for process in &mut self.0 {
            drop(process.child.stdin.take());
        }
        let until = Instant::now() + LEAVING;
        let running = |process: &mut Process| matches!(process.child.try_wait(), Ok(None));
        while Instant::now() < until && self.0.iter_mut().any(running) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // It may have ended by itself; then there is nothing to kill.
            let _ended = process.child.kill();
            let _status = process.child.wait();
        }
    }
}

/// A worker leaves within a step.
const LEAVING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_early_says_why() {
        let mut children = Children::default();
        children.spawn(Command::new("sh").args(["-c", "read line; echo no such ticket >&2; exit 3"]), &[]).unwrap();
        children.check().unwrap();
        drop(children.0[0].child.stdin.take());
        let until = Instant::now() + LEAVING;
        let error = loop {
            if let Err(error) = children.check() {
                break error.to_string();
            }
            assert!(Instant::now() < until, "it did not end");
            thread::sleep(Duration::from_millis(5));
        };
        assert!(error.contains("sh ended") && error.contains("no such ticket"), "{error}");
    }
}

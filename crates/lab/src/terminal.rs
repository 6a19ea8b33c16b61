//! Runs a command on a terminal, as a person would.

use std::fs::File;
use std::io::Read;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually::{SOON, eventually};
use crate::relay::Relay;

/// The lines of the terminal.
const ROWS: u16 = 40;

/// A command that runs on a terminal. Dropping it kills the process.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// Starts a command whose stdin, stdout and stderr are a terminal with this number of columns.
    ///
    /// # Errors
    /// Fails if the system has no terminal left, or the binary cannot be started.
    pub fn start(relay: &Relay, command: &str, columns: u16) -> anyhow::Result<Self> {
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(Some(&size), None)?;
        let end = || terminal.slave.try_clone();
        let mut process = relay.command(command);
        process.env("TERM", "xterm").stdin(end()?).stdout(end()?).stderr(end()?);
        let child = process.spawn().context("the relay's binary")?;
        let shown: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut master, heard) = (File::from(terminal.master), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once the command has ended and nobody writes any more.
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                heard.lock().expect("the screen").extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Self { child, shown })
    }

    /// Returns everything that was written so far. The terminal has turned each line end into CR and LF.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("the screen")).replace("\r\n", "\n")
    }

    /// Waits until the terminal shows a text.
    pub async fn until_shown(&self, part: &str) {
        eventually(&format!("the terminal shows {part:?}"), SOON, || async {
            let shown = self.shown();
            shown.contains(part).then_some(()).ok_or(shown)
        })
        .await;
    }

    /// Sends what Ctrl-C sends.
    ///
    /// # Errors
    /// Fails if the command has ended.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?)
    }

    /// Waits until the command has ended. Returns its status and everything that it has shown.
    ///
    /// # Errors
    /// Fails if the command cannot be waited for.
    pub async fn end(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let child = Mutex::new(&mut self.child);
        let status = eventually("the command ends", SOON, || async {
            child.lock().expect("the child").try_wait().transpose().ok_or("it runs")
        });
        let status = status.await?;
        // The thread may still have to read the last bytes.
        let last = eventually("the terminal is read to its end", SOON, || async {
            let shown = self.shown.lock().expect("the screen").len();
            tokio::task::yield_now().await;
            (Arc::strong_count(&self.shown) == 1).then_some(()).ok_or(shown)
        });
        last.await;
        Ok((status, self.shown()))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Fails if the command has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

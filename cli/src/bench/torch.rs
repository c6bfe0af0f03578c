//! PyTorch, if `python3` on the path can import it: a process that is asked for steps in turns with ours.

use super::network::Network;
use crate::lab::Norm;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

const SCRIPT: &str = include_str!("../../../benches/peers/torch_step.py");

/// How PyTorch trains: its optimiser by default, and the one with `fused=True`.
pub(crate) const MODES: [&str; 2] = ["eager", "fused"];

/// How long an answer may take: importing PyTorch from a slow disk is the longest of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// PyTorch in a process of its own.
pub(crate) struct Torch {
    child: Child,
    to: ChildStdin,
    /// Its lines, which a thread reads, so that one that does not come is not waited for without end.
    from: Receiver<io::Result<String>>,
    version: String,
}

impl Torch {
    /// Starts it, or says why there is none.
    pub(crate) fn start() -> Result<Torch, String> {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("python3 cannot be run: {error}"))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("python3 cannot be talked to".to_string());
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(from).lines().try_for_each(|line| sender.send(line)));
        let mut torch = Torch { child, to, from: lines, version: String::new() };
        let hello = torch.hear()?;
        match (hello["version"].as_str(), hello["missing"].as_str()) {
            (Some(version), _) => torch.version = version.to_string(),
            (None, Some(why)) => return Err(format!("the python3 on the path cannot import torch ({why})")),
            (None, None) => return Err(format!("python3 says {hello}")),
        }
        Ok(torch)
    }

    /// What its figures are called: as in the files of peers.
    pub(crate) fn name(&self, mode: &str) -> String {
        let mode = if mode == "fused" { "eager_fusedopt" } else { mode };
        format!("torch-{}-{mode}", self.version)
    }

    /// Makes a network ready.
    pub(crate) fn build(&mut self, network: &Network, element: &str, threads: usize) -> Result<(), String> {
        let answer = self.ask(&json!({
            "widths": network.widths,
            "batch": network.batch,
            "bn": network.norm == Norm::Batch,
            "optimizer": network.optimizer.name(),
            "type": element,
            "threads": threads,
        }))?;
        if answer["ready"] == true { Ok(()) } else { Err(format!("python3 says {answer}")) }
    }

    /// Seconds of so many steps.
    pub(crate) fn steps(&mut self, mode: &str, steps: usize) -> Result<f64, String> {
        let answer = self.ask(&json!({ "mode": mode, "steps": steps }))?;
        answer["seconds"].as_f64().ok_or_else(|| format!("python3 says {answer}"))
    }

    fn ask(&mut self, what: &Value) -> Result<Value, String> {
        writeln!(self.to, "{what}")
            .and_then(|()| self.to.flush())
            .map_err(|error| format!("python3 has ended: {error}"))?;
        self.hear()
    }

    fn hear(&mut self) -> Result<Value, String> {
        match self.from.recv_timeout(PATIENCE) {
            Ok(Ok(line)) => serde_json::from_str(&line).map_err(|_| format!("python3 says {}", line.trim())),
            Ok(Err(error)) => Err(format!("python3 cannot be heard: {error}")),
            Err(RecvTimeoutError::Disconnected) => Err("python3 has ended".to_string()),
            Err(RecvTimeoutError::Timeout) => Err(format!("python3 says nothing for {} s", PATIENCE.as_secs())),
        }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

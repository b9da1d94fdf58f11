//! llama.cpp's way to split a model: `ggml-rpc-server` processes, each with its part of the layers.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    children::Children,
    machine::{cpus, cpus_of_worker},
};

/// Servers that llama.cpp's programs are told of by `--rpc`; they end with this.
#[derive(Debug)]
pub struct RpcServers {
    _children: Children,
    addresses: Vec<SocketAddr>,
}

impl RpcServers {
    /// Starts `count` of them with `threads` each, on the CPUs that our workers have.
    ///
    /// # Errors
    /// One cannot be started, or does not listen.
    pub fn start(program: &Path, count: usize, threads: usize) -> Result<Self> {
        let (mut children, mut addresses) = (Children::default(), Vec::new());
        for number in 0..count {
            // Free now, and hardly taken by another in the moment between.
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let mut command = Command::new(program);
            command.args(["-H", "127.0.0.1", "-p", &address.port().to_string(), "-t", &threads.to_string()]);
            children.spawn(&mut command, &cpus_of_worker(&cpus(), number, threads))?;
            let until = Instant::now() + STARTING;
            while TcpStream::connect(address).is_err() {
                children.check()?;
                ensure!(Instant::now() < until, "{} does not listen on {address}", program.display());
                thread::sleep(Duration::from_millis(20));
            }
            addresses.push(address);
        }
        Ok(Self { _children: children, addresses })
    }

    /// The value of `--rpc`.
    pub fn addresses(&self) -> String {
        self.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

const STARTING: Duration = Duration::from_secs(10);

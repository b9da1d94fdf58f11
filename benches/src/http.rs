//! Clients of the API, each on one connection that it keeps, as small as measuring needs.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A connection to the API.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    address: SocketAddr,
    /// What has come and was not read yet.
    bytes: Vec<u8>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; a stream's as it came, with the lengths of its chunks.
    pub body: String,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nothing listens, or it takes too long.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let socket = timeout(SILENCE, TcpStream::connect(address)).await.context("no connection in time")??;
        socket.set_nodelay(true)?;
        Ok(Self { socket, address, bytes: Vec::new() })
    }

    /// Asks for what is at `path`.
    ///
    /// # Errors
    /// The connection ends, the answer is none, or nothing comes for long.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address)).await
    }

    /// Sends a body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Answer> {
        let (body, address) = (body.to_string(), self.address);
        let kind = "content-type: application/json";
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\n{kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        self.ask(&(head + &body)).await
    }

    /// Whether the other side has left this connection as it is.
    pub fn stands(&self) -> bool {
        let silent = self.socket.try_read(&mut [0; 1]).map_err(|error| error.kind());
        silent == Err(std::io::ErrorKind::WouldBlock)
    }

    async fn ask(&mut self, request: &str) -> Result<Answer> {
        self.socket.write_all(request.as_bytes()).await?;
        let head_end = self.read_past("\r\n\r\n").await?;
        let head = String::from_utf8(self.bytes.drain(..head_end).collect())?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let body_end = match header(&head, "content-length") {
            Some(length) => {
                let length = length.parse().context("content-length")?;
                while self.bytes.len() < length {
                    self.read_more().await?;
                }
                length
            }
            None if header(&head, "transfer-encoding") == Some("chunked") => self.read_past("\r\n0\r\n\r\n").await?,
            None => bail!("an answer without a length: {head}"),
        };
        Ok(Answer { status, body: String::from_utf8(self.bytes.drain(..body_end).collect())? })
    }

    /// Reads until `end` has come, and says where it ends.
    async fn read_past(&mut self, end: &str) -> Result<usize> {
        loop {
            let found = self.bytes.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                return Ok(at + end.len());
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<()> {
        let read = timeout(SILENCE, self.socket.read_buf(&mut self.bytes)).await.context("nothing came for long")??;
        ensure!(read > 0, "the connection has ended");
        Ok(())
    }
}

/// A header's value, by its name in small letters, as our server writes it.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// So long an answer may take.
const SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn answers_follow_each_other_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            for answer in [
                "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
            ] {
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"\r\n\r\n") && !bytes.ends_with(b"}") {
                    socket.read_buf(&mut bytes).await.unwrap();
                }
                asked.push(String::from_utf8(bytes).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        let mut client = Client::connect(address).await.unwrap();
        let absent = client.get("/x").await.unwrap();
        assert_eq!((absent.status, absent.body.as_str()), (404, "none"));
        assert!(client.stands());
        let streamed = client.post("/y", &serde_json::json!({"a": 1})).await.unwrap();
        assert_eq!((streamed.status, streamed.body.contains("one")), (200, true));
        let asked = server.await.unwrap();
        assert!(
            asked[0].starts_with("GET /x HTTP/1.1\r\n") && asked[1].ends_with("content-length: 7\r\n\r\n{\"a\":1}")
        );
        assert!(client.get("/z").await.is_err() && !client.stands(), "the other side is gone");
    }
}

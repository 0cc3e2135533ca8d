//! An HTTP server that sends exactly the bytes it is told to, and keeps what it was asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// How a reply's body goes out.
#[derive(Clone, Debug)]
pub enum Body {
    /// Whole, with its length.
    Whole(Vec<u8>),
    /// In these pieces, one HTTP chunk each.
    Chunks(Vec<Vec<u8>>),
    /// In these pieces, then the connection breaks.
    Broken(Vec<Vec<u8>>),
    /// These pieces, then this one again and again until the client goes away.
    Endless(Vec<Vec<u8>>, Vec<u8>),
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Raw {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Body,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Method and path.
    pub line: String,
    pub headers: Vec<String>,
    pub body: Value,
}

/// The server; it answers until the process ends.
pub struct RawServer {
    pub url: String,
    reply: Arc<Mutex<Raw>>,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Endless replies whose client went away.
    left: Arc<Mutex<usize>>,
}

impl RawServer {
    pub fn start(reply: Raw) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let server = Self {
            url,
            reply: Arc::new(Mutex::new(reply)),
            heard: Arc::default(),
            left: Arc::default(),
        };
        let shared = (server.reply.clone(), server.heard.clone(), server.left.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (reply, heard, left) = shared.clone();
                std::thread::spawn(move || {
                    let _gone = talk(stream, &reply, &heard, &left);
                });
            }
        });
        server
    }

    /// What is answered from now on.
    pub fn set(&self, reply: Raw) {
        *self.reply.lock().expect("no panic") = reply;
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic").clone()
    }

    pub fn left(&self) -> usize {
        *self.left.lock().expect("no panic")
    }
}

fn talk(
    stream: TcpStream,
    reply: &Mutex<Raw>,
    heard: &Mutex<Vec<Heard>>,
    left: &Mutex<usize>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => headers.push(line.to_owned()),
            }
        }
        let length = headers
            .iter()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let line = headers.remove(0);
        heard.lock().expect("no panic").push(Heard {
            line: line.trim_end_matches(" HTTP/1.1").to_owned(),
            headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        let Raw {
            status,
            content_type,
            body,
        } = reply.lock().expect("no panic").clone();
        let head =
            |more: &str| format!("HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{more}\r\n\r\n");
        let chunk = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        let chunked = head("transfer-encoding: chunked").into_bytes();
        match body {
            Body::Whole(bytes) => {
                out.write_all(head(&format!("content-length: {}", bytes.len())).as_bytes())?;
                out.write_all(&bytes)?;
            }
            Body::Chunks(pieces) => {
                let mut all = chunked;
                pieces.iter().for_each(|piece| all.extend(chunk(piece)));
                all.extend(b"0\r\n\r\n");
                out.write_all(&all)?;
            }
            Body::Broken(pieces) => {
                out.write_all(&chunked)?;
                for piece in pieces {
                    out.write_all(&chunk(&piece))?;
                }
                return Ok(());
            }
            Body::Endless(first, again) => {
                out.write_all(&chunked)?;
                for piece in first {
                    out.write_all(&chunk(&piece))?;
                }
                let again = chunk(&again);
                while out.write_all(&again).is_ok() {}
                *left.lock().expect("no panic") += 1;
                return Ok(());
            }
        }
    }
}

/// The address of a server that sends one event to everyone and then nothing more.
pub fn silent(content_type: &'static str, event: &[u8]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let head =
        format!("HTTP/1.1 200 X\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
    let first = [
        head.as_bytes(),
        format!("{:x}\r\n", event.len()).as_bytes(),
        event,
        b"\r\n",
    ]
    .concat();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // The request first: an answer to nothing is a fault of its own.
            let _some = stream.read(&mut [0; 16 << 10]);
            let _gone = stream.write_all(&first);
            open.push(stream);
        }
    });
    url
}

//! HTTPS engines: a certificate that this machine trusts, and one that it does not.
//!
//! `tests/it/tls/` holds a certificate for 127.0.0.1, its key, and the authority that signed it (whose
//! own key was thrown away); they are good until 2126 and protect nothing.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use serde_json::json;

use crate::harness::{Bench, Ran};

/// The address of a server that answers everything with one reply, over TLS.
fn server() -> String {
    let certificate =
        CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("key and certificate belong together");
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let url = format!("https://{}/v1", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || {
                let mut connection = ServerConnection::new(config).expect("a good configuration");
                let mut stream = Stream::new(&mut connection, &mut socket);
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                // The body of the one request ends with its last brace.
                while !request.ends_with(b"}") {
                    match stream.read(&mut piece) {
                        Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
                        _ => return,
                    }
                }
                let body = json!({"choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]});
                let body = body.to_string();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
                let _gone = stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
                stream.conn.send_close_notify();
                let _gone = stream.flush();
            });
        }
    });
    url
}

fn run(trust: &str) -> Ran {
    let chain = format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\"}}}}\n\
         steps: [{{id: a, engine: e, user_prompt: \"{{{{ text }}}}\"}}]\n",
        server()
    );
    let bench = Bench::new(&chain, "{\"text\":\"hi\"}\n");
    let trust = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(trust);
    let output = bench
        .command(&[])
        .env("SSL_CERT_FILE", trust)
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("the command starts");
    bench.ran(&output)
}

#[test]
fn a_trusted_certificate_is_taken() {
    let ran = run("tests/it/tls/ca.pem");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.values("a")[0]["text"], "safe");
}

#[test]
fn an_unknown_certificate_stops_the_run_at_once() {
    // Another authority: the server's own certificate signs nothing.
    let ran = run("tests/it/tls/other.pem");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("cannot be trusted") && ran.stderr.contains("check `endpoint`"),
        "{}",
        ran.stderr
    );
    assert!(ran.errors().is_empty(), "no row failed");
}

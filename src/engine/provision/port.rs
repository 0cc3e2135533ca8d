//! A port that nobody listens on.

use std::net::TcpListener;

/// The preferred port if it is free at the address, else one that is. Somebody else may take it before it is used.
///
/// # Errors
/// Nobody can listen at this address.
pub fn free_port(host: &str, preferred: Option<u16>) -> std::io::Result<u16> {
    if let Some(port) = preferred
        && TcpListener::bind((host, port)).is_ok()
    {
        return Ok(port);
    }
    Ok(TcpListener::bind((host, 0))?.local_addr()?.port())
}

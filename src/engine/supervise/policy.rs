//! Every number of the engines' life in one place (ENGINES.md, "Numbers"); each can be set.

use std::time::Duration;

/// The numbers. `Policy::default()` is what the documentation says.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The first pause between two looks at `/health` while a server starts; it doubles.
    pub poll_first: Duration,
    /// The longest such pause.
    pub poll_most: Duration,
    /// A first start that ends by itself before this is not tried again with the same arguments.
    pub stillborn: Duration,
    /// Lines of a server's log that an error shows.
    pub log_tail: usize,
    /// Starts on another port after "address in use".
    pub port_tries: u32,
    /// After the first SIGTERM.
    pub first_term: Duration,
    /// After the second SIGTERM; then SIGKILL.
    pub second_term: Duration,
    /// The pause before the first restart; it doubles.
    pub restart_first: Duration,
    /// The longest such pause.
    pub restart_most: Duration,
    /// Share by which a pause may be longer or shorter.
    pub restart_jitter: f64,
    /// After so long in good health, failures before it are forgotten.
    pub healthy_after: Duration,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// How long it stays open.
    pub breaker_open: Duration,
    /// Between two health checks of a server that is ready.
    pub health_every: Duration,
    /// How long one health check may take.
    pub health_patience: Duration,
    /// Missed health checks in a row that mean that it hangs.
    pub health_misses: u32,
    /// How long a drain waits for requests in flight.
    pub drain: Duration,
    /// Between two looks for engines that nobody uses.
    pub maintenance: Duration,
    /// A log longer than this is put aside and begun again, in bytes.
    pub log_most: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            poll_first: Duration::from_millis(50),
            poll_most: Duration::from_secs(1),
            stillborn: Duration::from_secs(5),
            log_tail: 50,
            port_tries: 3,
            first_term: Duration::from_secs(3),
            second_term: Duration::from_secs(2),
            restart_first: Duration::from_secs(1),
            restart_most: Duration::from_secs(60),
            restart_jitter: 0.1,
            healthy_after: Duration::from_secs(300),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(300),
            health_every: Duration::from_secs(5),
            health_patience: Duration::from_secs(5),
            health_misses: 3,
            drain: Duration::from_secs(30),
            maintenance: Duration::from_secs(5),
            log_most: 64 << 20,
        }
    }
}

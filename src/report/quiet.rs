//! `--quiet`: errors only. They are printed by the command itself, so this reports nothing.

use std::time::SystemTime;

use crate::event::{Event, Progress, Report};

/// Says nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Report for Quiet {
    fn event(&mut self, _: SystemTime, _: &Event, _: &Progress) {}
    fn tick(&mut self, _: &Progress) {}
}

//! `when:` conditions.

use crate::expr::template::{Read, Template, condition};
use crate::expr::{ExprError, Scope, Visible};

/// A compiled condition.
#[derive(Debug)]
pub struct When {
    template: Template,
    source: String,
    guards: Vec<String>,
}

impl When {
    /// Compiles a Jinja expression that may read the visible names.
    pub fn compile(source: &str, visible: &Visible) -> Result<Self, ExprError> {
        let (template, guards) = condition(source, visible)?;
        Ok(Self {
            template,
            source: source.trim().to_owned(),
            guards,
        })
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What it reads, in source order.
    pub fn reads(&self) -> &[Read] {
        self.template.reads()
    }

    /// The names that cannot be null where the condition holds.
    pub fn guards(&self) -> &[String] {
        &self.guards
    }

    /// Evaluates for one row; the error is the row's `template` message.
    pub fn eval(&self, scope: &Scope<'_>) -> Result<bool, String> {
        self.template.render(scope).map(|text| !text.is_empty())
    }
}

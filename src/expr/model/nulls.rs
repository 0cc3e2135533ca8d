//! Checking values from columns, which do not tell a null from a field that was left out.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use super::Model;

impl Model {
    /// As [`Model::validate`], for a value that came without its nulls: what is required and not there may have
    /// been one. Where only alternatives could tell which, the value is taken as it is.
    pub(crate) fn validate_without_nulls(&self, mut value: Value) -> Result<(), String> {
        // Each round puts a null where a field is missing, or ends.
        loop {
            if self.validator.is_valid(&value) {
                return Ok(());
            }
            let mut missing = None;
            for error in self.validator.iter_errors(&value) {
                match error.kind() {
                    ValidationErrorKind::Required { property } => {
                        let place = error.instance_path().as_str().to_owned();
                        missing = property.as_str().map(|name| (place, name.to_owned()));
                        break;
                    }
                    ValidationErrorKind::AnyOf { context }
                    | ValidationErrorKind::OneOfNotValid { context }
                        if context.iter().flatten().any(lacks_a_field) =>
                    {
                        return Ok(());
                    }
                    _ => {}
                }
            }
            let place = missing.as_ref().and_then(|(place, name)| {
                let object = value.pointer_mut(place)?.as_object_mut()?;
                (!object.contains_key(name)).then_some((object, name))
            });
            match place {
                Some((object, name)) => object.insert(name.clone(), Value::Null),
                None => return self.validate(&value),
            };
        }
    }
}

/// True for an error that a null which was left out may have caused.
fn lacks_a_field(error: &ValidationError<'_>) -> bool {
    match error.kind() {
        ValidationErrorKind::Required { .. } => true,
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            context.iter().flatten().any(lacks_a_field)
        }
        _ => false,
    }
}

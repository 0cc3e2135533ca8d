//! The chat template of a model: what a conversation looks like to it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use super::head::Head;
use super::vocabulary::Vocabulary;
use crate::engine::Message;
use crate::engine::embedded::LoadError;

const NAME: &str = "chat";
/// What stands around a model's thoughts.
const OPEN: &str = "<think>";
pub(super) const CLOSE: &str = "</think>";

/// A chat template, compiled.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    first: String,
    end: String,
    /// Whether the model is to think before it answers.
    thinking: bool,
}

impl Template {
    /// Reads it.
    pub(super) fn read(head: &Head, vocabulary: &Vocabulary, thinking: bool) -> Result<Self, LoadError> {
        let Some(source) = head.text("tokenizer.chat_template") else {
            return Err(head.wrong(
                "it has no chat template: it is a base model, or was converted without one\n  \
                 take the model's `instruct` or `chat` version",
            ));
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| head.wrong(format!("its chat template: {error:#}")))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(10_000_000));
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // Some print the date. A prompt must not change over night: none gets it.
        environment.add_function("strftime_now", |_format: String| String::new());
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| head.wrong(format!("its chat template: {error:#}")))?;
        let has_switch = source.contains(OPEN) && source.contains("enable_thinking");
        let template = Self {
            environment,
            first: head
                .number("tokenizer.ggml.bos_token_id")
                .map(|id| vocabulary.text(id as u32).to_owned())
                .unwrap_or_default(),
            end: vocabulary
                .ends
                .first()
                .map(|id| vocabulary.text(*id).to_owned())
                .unwrap_or_default(),
            thinking,
        };
        let sample = [Message::user("?")];
        if thinking && !has_switch && !template.conversation(&sample).is_ok_and(|text| is_open(&text)) {
            return Err(head.wrong(
                "its chat template knows nothing of thinking\n  leave out `reasoning`, or take a model that thinks",
            ));
        }
        Ok(template)
    }

    /// Whether replies begin with thoughts.
    pub(super) fn thinks(&self) -> bool {
        self.thinking
    }

    /// The prompt of a conversation, up to where the reply begins: with the first thought, if the model is to think.
    ///
    /// # Errors
    /// What the template says against it.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, String> {
        let text = self.conversation(messages)?;
        Ok(match (self.thinking, is_open(&text)) {
            (true, false) => format!("{text}{OPEN}\n"),
            // A model that always thinks: its thoughts are over before they begin.
            (false, true) => format!("{}\n\n{CLOSE}\n\n", text.trim_end()),
            _ => text,
        })
    }

    /// What the template makes of a conversation.
    fn conversation(&self, messages: &[Message]) -> Result<String, String> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| error.to_string())?;
        template
            .render(context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt => true,
                bos_token => self.first.as_str(),
                eos_token => self.end.as_str(),
                enable_thinking => self.thinking,
                tools => Value::from(()),
            })
            .map_err(|error| format!("the model's chat template refuses the conversation: {error}"))
    }
}

/// Whether thoughts come next.
fn is_open(prompt: &str) -> bool {
    prompt.trim_end().ends_with(OPEN)
}

//! What a client says about thoughts: whether the model shall have any, and where they shall be.

use serde_json::{Map, Value};

use crate::{api::error::ApiError, text::ThoughtsWanted};

/// The parameters of several servers, as they were sent.
#[derive(Debug, Default)]
pub(super) struct Thinking {
    /// OpenAI's `reasoning_effort`.
    pub(super) effort: Option<String>,
    /// `enable_thinking`, of many templates.
    pub(super) enable: Option<bool>,
    /// llama.cpp's `reasoning_format`.
    pub(super) format: Option<String>,
    /// vLLM's `include_reasoning`.
    pub(super) include: Option<bool>,
    /// SGLang's `separate_reasoning`.
    pub(super) separate: Option<bool>,
}

const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

impl Thinking {
    /// Where thoughts shall be.
    ///
    /// # Errors
    /// `Invalid` for a format that we do not know.
    pub(super) fn wanted(&self) -> Result<ThoughtsWanted, ApiError> {
        let format = match self.format.as_deref() {
            None | Some("auto" | "deepseek") => ThoughtsWanted::Apart,
            Some("none") => ThoughtsWanted::InText,
            Some(_) => {
                let text = "'reasoning_format' is one of auto, deepseek and none";
                return Err(ApiError::invalid("reasoning_format", text));
            }
        };
        Ok(match (self.include, self.separate) {
            (Some(false), _) => ThoughtsWanted::Dropped,
            (_, Some(false)) => ThoughtsWanted::InText,
            (Some(true) | None, Some(true) | None) => format,
        })
    }

    /// Adds what it means to the variables of the template; those that the client has set itself stay.
    ///
    /// # Errors
    /// `Invalid` for an effort that we do not know.
    pub(super) fn set(&self, variables: &mut Map<String, Value>) -> Result<(), ApiError> {
        let effort = self.effort.as_deref();
        if effort.is_some_and(|effort| !EFFORTS.contains(&effort)) {
            let text = format!("'reasoning_effort' is one of {}", EFFORTS.join(", "));
            return Err(ApiError::invalid("reasoning_effort", text));
        }
        // Who wants no effort wants no thoughts, by whichever name the template knows them.
        let enable = self.enable.or((effort == Some("none")).then_some(false));
        if let Some(enable) = enable {
            variables.entry("enable_thinking").or_insert(enable.into());
        }
        if let Some(effort) = effort {
            // Templates know no more than high.
            let effort = if effort == "xhigh" { "high" } else { effort };
            variables.entry("reasoning_effort").or_insert(effort.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thoughts_are_where_they_are_wanted() {
        let format = |format: &str| Thinking { format: Some(format.to_owned()), ..Thinking::default() };
        for (sent, wanted) in [
            (Thinking::default(), ThoughtsWanted::Apart),
            (format("auto"), ThoughtsWanted::Apart),
            (Thinking { separate: Some(true), ..format("deepseek") }, ThoughtsWanted::Apart),
            (format("none"), ThoughtsWanted::InText),
            (Thinking { separate: Some(false), ..Thinking::default() }, ThoughtsWanted::InText),
            (Thinking { include: Some(false), ..Thinking::default() }, ThoughtsWanted::Dropped),
            (Thinking { include: Some(true), ..Thinking::default() }, ThoughtsWanted::Apart),
        ] {
            assert_eq!(sent.wanted().expect("known"), wanted, "{sent:?}");
        }
        assert!(format("xml").wanted().is_err());
    }

    #[test]
    fn templates_hear_of_it() {
        let effort = |effort: &str| Thinking { effort: Some(effort.to_owned()), ..Thinking::default() };
        let enabled = Thinking { enable: Some(true), ..Thinking::default() };
        for (sent, given, variables) in [
            (effort("low"), json!({}), json!({"reasoning_effort": "low"})),
            (effort("xhigh"), json!({}), json!({"reasoning_effort": "high"})),
            (effort("none"), json!({}), json!({"enable_thinking": false, "reasoning_effort": "none"})),
            (enabled, json!({"enable_thinking": false}), json!({"enable_thinking": false})),
            (Thinking::default(), json!({"mood": 1}), json!({"mood": 1})),
        ] {
            let mut set = given.as_object().expect("an object").clone();
            sent.set(&mut set).expect("known");
            assert_eq!(Value::from(set), variables, "{sent:?}");
        }
        assert!(effort("huge").set(&mut Map::new()).is_err());
    }
}

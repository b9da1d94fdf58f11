//! The tools that a model may call.

use serde_json::Value;

/// Names of tools and what arguments they take.
#[derive(Clone, Debug, Default)]
pub struct Tools(Vec<Tool>);

#[derive(Clone, Debug)]
struct Tool {
    name: String,
    parameters: Value,
}

impl Tools {
    /// Of tools as OpenAI describes them. What has no name is left out.
    pub fn new(described: &[Value]) -> Self {
        let one = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            Some(Tool { name, parameters: function.get("parameters").cloned().unwrap_or_default() })
        };
        Self(described.iter().filter_map(one).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|tool| tool.name == name)
    }

    /// The names, with JSON schemas of the arguments.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|tool| (tool.name.as_str(), &tool.parameters))
    }

    /// The schema of an argument, if the tool describes it.
    pub(super) fn argument(&self, tool: &str, argument: &str) -> Option<&Value> {
        let tool = self.0.iter().find(|known| known.name == tool)?;
        tool.parameters.get("properties")?.get(argument)
    }
}

//! Arguments of `run` and `chat` about a coordinator that runs already.

use clap::Args;
use qmesh_models::pull::ModelRef;

use super::{CoordinatorArgs, Failure, SplitArgs};
use crate::api::ApiKey;

/// A running coordinator, in place of workers on this machine.
#[derive(Args, Clone, Debug)]
pub struct RemoteArgs {
    /// Ask the coordinator whose HTTP API is here, instead of starting workers on this machine
    #[arg(long, env = URL)]
    pub url: Option<String>,
    /// Key of that API, if it asks for one
    #[arg(long, value_name = "KEY", env = "QMESH_API_KEY")]
    pub api_key: Option<ApiKey>,
}

impl RemoteArgs {
    /// Whom to ask; none where workers of this machine shall answer by `model`.
    ///
    /// # Errors
    /// Both are asked for.
    pub fn coordinator(&self, model: Option<&ModelRef>, split: &SplitArgs) -> Result<Option<CoordinatorArgs>, Failure> {
        let variable = std::env::var(URL).ok();
        self.chosen(variable.as_deref(), model, split)
    }

    fn chosen(
        &self,
        variable: Option<&str>,
        model: Option<&ModelRef>,
        split: &SplitArgs,
    ) -> Result<Option<CoordinatorArgs>, Failure> {
        let Some(url) = &self.url else { return Ok(None) };
        // The variable is there for `status` and its like as well: a model says that another thing is meant.
        if model.is_some() && variable == Some(url) {
            return Ok(None);
        }
        if model.is_some() {
            return Err(Failure::usage("--url asks a coordinator, which has its model: leave MODEL out"));
        }
        if split.workers.is_some() || split.cut.is_some() || split.threads.is_some() {
            return Err(Failure::usage(
                "--workers, --cut and --threads are about this machine, and --url asks another",
            ));
        }
        Ok(Some(CoordinatorArgs { url: url.clone(), api_key: self.api_key.clone() }))
    }
}

const URL: &str = "QMESH_URL";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    fn chosen(line: &str, variable: Option<&str>) -> Result<Option<String>, String> {
        let cli = Cli::try_parse_from(format!("coordinator {line}").split(' ')).map_err(|error| error.to_string())?;
        let Command::Chat(args) = cli.command else { panic!("{line}") };
        let chosen = args.remote.chosen(variable, args.model.as_ref(), &args.split);
        chosen.map(|chosen| chosen.map(|chosen| chosen.url)).map_err(|failure| failure.text)
    }

    #[test]
    fn a_model_means_this_machine_and_an_url_another() {
        let there = "http://10.0.0.5:8080";
        assert_eq!(chosen("chat smollm2-135m --workers 2", None).unwrap(), None);
        assert_eq!(chosen(&format!("chat --url {there}"), None).unwrap().as_deref(), Some(there));
        assert_eq!(chosen(&format!("chat --url {there}"), Some(there)).unwrap().as_deref(), Some(there));
        assert_eq!(chosen(&format!("chat smollm2-135m --url {there}"), Some(there)).unwrap(), None, "by the variable");
        for both in ["chat smollm2-135m --url", "chat --workers 2 --url", "chat --cut 3 --url"] {
            assert!(chosen(&format!("{both} {there}"), None).is_err(), "{both}");
        }
        assert!(chosen("chat", None).unwrap_err().contains("MODEL"));
    }
}

//! A template's own thread, which is kept for a while: to start one and to compile the template takes longer than to render it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value as Json};

use super::{
    TemplateError,
    sandbox::{self, Compiled},
};

/// How long the thread waits for more to render. The memory that its deep stack has taken goes with it.
const KEPT: Duration = Duration::from_secs(10);

/// Renders one template, one conversation at a time, so that the bounds of a render are the template's.
#[derive(Debug)]
pub(super) struct Renderer {
    source: Arc<str>,
    kept: Mutex<Option<Kept>>,
}

/// The thread, as long as it is of use.
#[derive(Debug)]
struct Kept {
    /// Of no capacity: what is sent has been taken.
    jobs: SyncSender<Job>,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests tell threads apart by it"))]
    thread: JoinHandle<()>,
}

/// A conversation to render.
#[derive(Debug)]
struct Job {
    variables: Map<String, Json>,
    now: SystemTime,
    reply: SyncSender<Result<String, TemplateError>>,
}

impl Renderer {
    /// Starts nothing yet.
    pub(super) fn new(source: String) -> Self {
        Self { source: source.into(), kept: Mutex::new(None) }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders the template with these variables.
    ///
    /// # Errors
    /// The template's faults and complaints, and `Thread` where none can be started.
    pub(super) fn render(&self, variables: Map<String, Json>, now: SystemTime) -> Result<String, TemplateError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, rendered) = sync_channel(1);
        let mut job = Job { variables, now, reply };
        if let Some(Kept { jobs, .. }) = &*kept {
            match jobs.send(job) {
                Ok(()) => return answer(&rendered),
                // It has waited for long enough, or has ended with what it rendered last.
                Err(back) => job = back.0,
            }
        }
        let Kept { jobs, .. } = kept.insert(self.start()?);
        // Whoever ends before the first job has dropped it, and its reply with it.
        drop(jobs.send(job));
        answer(&rendered)
    }

    fn start(&self) -> Result<Kept, TemplateError> {
        let (source, (jobs, taken)) = (Arc::clone(&self.source), sync_channel(0));
        let thread = sandbox::deep_thread().spawn(move || serve(&source, &taken))?;
        Ok(Kept { jobs, thread })
    }
}

/// What comes of a job. A panic in minijinja, which ends the thread, is the template's fault.
fn answer(rendered: &Receiver<Result<String, TemplateError>>) -> Result<String, TemplateError> {
    rendered.recv().unwrap_or_else(|_| Err(TemplateError::panicked()))
}

/// Renders until nothing more comes, or until a render fails: that may have taken all of the stack.
fn serve(source: &str, jobs: &Receiver<Job>) {
    let mut compiled = None;
    while let Ok(Job { variables, now, reply }) = jobs.recv_timeout(KEPT) {
        let template = match compiled.take() {
            Some(template) => Ok(template),
            None => Compiled::of(source),
        };
        let rendered = template.and_then(|template| compiled.insert(template).render(&variables, now));
        let goes_on = matches!(rendered, Ok(_) | Err(TemplateError::Raised { .. }));
        // Nobody waits any more where this fails.
        drop(reply.send(rendered));
        if !goes_on {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        thread::ThreadId,
        time::{Instant, UNIX_EPOCH},
    };

    use serde_json::json;

    use super::*;

    fn rendered(renderer: &Renderer, word: &str) -> Result<String, TemplateError> {
        let variables = json!({"word": word}).as_object().unwrap().clone();
        renderer.render(variables, UNIX_EPOCH)
    }

    fn thread(renderer: &Renderer) -> ThreadId {
        renderer.kept.lock().unwrap().as_ref().unwrap().thread.thread().id()
    }

    #[test]
    fn a_thread_renders_more_than_once_and_each_time_anew() {
        let renderer = Renderer::new("{% set said = word %}{{ said }}{{ other is defined }}".to_owned());
        assert_eq!(rendered(&renderer, "a").unwrap(), "aFalse");
        let first = thread(&renderer);
        assert_eq!(rendered(&renderer, "b").unwrap(), "bFalse");
        assert_eq!(thread(&renderer), first);
    }

    #[test]
    fn a_complaint_leaves_the_thread_and_a_failure_ends_it() {
        let source = "{% if word == 'deep' %}{{ nothing.at.all }}{% endif %}{{ raise_exception(word) }}";
        let renderer = Renderer::new(source.to_owned());
        let raised =
            |word| matches!(rendered(&renderer, word), Err(TemplateError::Raised { message }) if message == word);
        assert!(raised("a"));
        let first = thread(&renderer);
        assert!(raised("b") && thread(&renderer) == first);
        assert!(matches!(rendered(&renderer, "deep"), Err(TemplateError::Failed { .. })));
        assert!(raised("c") && thread(&renderer) != first);
    }

    #[test]
    fn every_render_has_all_of_its_limits() {
        // Half of what a render may do, again and again.
        let renderer = Renderer::new("{% for i in range(100000) %}{% set a = 1 %}{% endfor %}{{ word }}".to_owned());
        for word in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            assert_eq!(rendered(&renderer, word).unwrap(), word);
        }
    }

    #[test]
    fn the_thread_ends_with_the_template() {
        let renderer = Renderer::new("{{ word }}".to_owned());
        rendered(&renderer, "a").unwrap();
        let Kept { jobs, thread } = renderer.kept.lock().unwrap().take().unwrap();
        let dropped = Instant::now();
        drop((renderer, jobs));
        thread.join().unwrap();
        assert!(dropped.elapsed() < KEPT / 2);
    }
}

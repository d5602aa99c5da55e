//! How a failure is told: who must act, and what the way out is.
//!
//! Errors travel as [`anyhow::Error`], whose contexts say what was being done to what. Somewhere in the chain may
//! stand a [`Fault`], which adds the two things that a chain of sentences cannot say: whether the request itself is
//! wrong (exit status 2) or the work failed (exit status 1), and a hint that names the way out.

use std::fmt;

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// What was asked for is wrong and will be wrong on every try: exit status 2.
    Request,
    /// What was asked for is right, doing it failed: exit status 1.
    Work,
}

/// A failure with its blame and, if there is one, its way out.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whose failure it is.
    pub blame: Blame,
    /// What is wrong; may have several lines, as a source snippet has.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Fault {
    /// A wrong request.
    pub fn request(message: impl Into<String>) -> Fault {
        Fault { blame: Blame::Request, message: message.into(), hint: None }
    }

    /// Work that failed.
    pub fn work(message: impl Into<String>) -> Fault {
        Fault { blame: Blame::Work, message: message.into(), hint: None }
    }

    /// The same with a way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// Whose failure `error` is: the outermost [`Fault`] decides, work is assumed where none speaks.
pub fn blame(error: &anyhow::Error) -> Blame {
    faults(error).next().map_or(Blame::Work, |fault| fault.blame)
}

/// `error` as a person reads it: each cause on a line of its own, then the hint.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str("\n  because: ");
        text.push_str(&cause.to_string().replace('\n', "\n  "));
    }
    if let Some(hint) = faults(error).find_map(|fault| fault.hint.as_deref()) {
        text.push_str("\n\nhint: ");
        text.push_str(&hint.replace('\n', "\n      "));
    }
    text
}

/// The faults of a chain. `anyhow` shows a fault that was added as context to its own `downcast_ref` only, and one that
/// is the source of another error in `chain` only.
fn faults(error: &anyhow::Error) -> impl Iterator<Item = &Fault> {
    error.downcast_ref::<Fault>().into_iter().chain(error.chain().filter_map(|cause| cause.downcast_ref::<Fault>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_report_names_the_chain_and_the_way_out() {
        let error = anyhow::Error::new(Fault::request("no recipe `demo`").hint("recipes: ha-postgres"))
            .context("loading recipe demo");
        assert_eq!(blame(&error), Blame::Request);
        assert_eq!(
            report(&error),
            "error: loading recipe demo\n  because: no recipe `demo`\n\nhint: recipes: ha-postgres"
        );
    }

    #[test]
    fn a_fault_speaks_also_when_added_as_context() {
        let error = Err::<(), _>(std::io::Error::other("cut off"))
            .context(Fault::request("wrong").hint("try again"))
            .unwrap_err();
        assert_eq!(report(&error), "error: wrong\n  because: cut off\n\nhint: try again");
        assert_eq!(blame(&error), Blame::Request);
    }

    #[test]
    fn an_error_without_a_fault_is_failed_work() {
        assert_eq!(blame(&anyhow::anyhow!("disk on fire")), Blame::Work);
    }
}

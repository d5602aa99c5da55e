//! How a failure is told: who must act, and what the way out is.
//!
//! Errors travel as [`anyhow::Error`], whose contexts say what was being done to what. Somewhere in the chain may
//! stand a [`UserError`], which adds the two things that a chain of sentences cannot say: whether the request itself is
//! wrong (exit status 2) or the work failed (exit status 1), and a hint that names the way out.

use std::fmt;

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for is wrong and will be wrong on every try: exit status 2.
    Usage,
    /// What was asked for is right, doing it failed: exit status 1.
    Runtime,
}

/// A failure with its blame and, if there is one, its way out.
#[derive(Debug, Clone)]
pub struct UserError {
    /// Whose failure it is.
    pub kind: ErrorKind,
    /// What is wrong; may have several lines, as a source snippet has.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl UserError {
    /// A wrong request.
    pub fn usage(message: impl Into<String>) -> UserError {
        UserError { kind: ErrorKind::Usage, message: message.into(), hint: None }
    }

    /// Work that failed.
    pub fn runtime(message: impl Into<String>) -> UserError {
        UserError { kind: ErrorKind::Runtime, message: message.into(), hint: None }
    }

    /// The same with a way out.
    pub fn hint(mut self, hint: impl Into<String>) -> UserError {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for UserError {}

/// Whose failure `error` is: the outermost [`UserError`] decides, work is assumed where none speaks.
pub fn kind_of(error: &anyhow::Error) -> ErrorKind {
    user_errors(error).next().map_or(ErrorKind::Runtime, |problem| problem.kind)
}

/// `error` as a person reads it: each cause on a line of its own, then the hint.
pub fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str("\n  because: ");
        text.push_str(&cause.to_string().replace('\n', "\n  "));
    }
    if let Some(hint) = user_errors(error).find_map(|problem| problem.hint.as_deref()) {
        text.push_str("\n\nhint: ");
        text.push_str(&hint.replace('\n', "\n      "));
    }
    text
}

/// The faults of a chain. `anyhow` shows a fault that was added as context to its own `downcast_ref` only, and one that
/// is the source of another error in `chain` only.
fn user_errors(error: &anyhow::Error) -> impl Iterator<Item = &UserError> {
    error
        .downcast_ref::<UserError>()
        .into_iter()
        .chain(error.chain().filter_map(|cause| cause.downcast_ref::<UserError>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_report_names_the_chain_and_the_way_out() {
        let error = anyhow::Error::new(UserError::usage("no recipe `demo`").hint("recipes: ha-postgres"))
            .context("loading recipe demo");
        assert_eq!(kind_of(&error), ErrorKind::Usage);
        assert_eq!(
            report(&error),
            "error: loading recipe demo\n  because: no recipe `demo`\n\nhint: recipes: ha-postgres"
        );
    }

    #[test]
    fn a_fault_speaks_also_when_added_as_context() {
        let error = Err::<(), _>(std::io::Error::other("cut off"))
            .context(UserError::usage("wrong").hint("try again"))
            .unwrap_err();
        assert_eq!(report(&error), "error: wrong\n  because: cut off\n\nhint: try again");
        assert_eq!(kind_of(&error), ErrorKind::Usage);
    }

    #[test]
    fn an_error_without_a_fault_is_failed_work() {
        assert_eq!(kind_of(&anyhow::anyhow!("disk on fire")), ErrorKind::Runtime);
    }
}

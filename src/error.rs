//! Errors for users: which kind they are, and what to do about them.
//!
//! Errors travel as [`anyhow::Error`]; each context says what was being done to what. A [`UserError`] in the chain adds
//! what a chain of sentences cannot: whether the request itself is wrong (exit status 2) or the work failed (exit
//! status 1), and a hint that says what to do.

use std::fmt;

/// Who can fix an error: the caller, or nobody but a later try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong and fails on every try: exit status 2.
    Usage,
    /// The request is right, and the work failed: exit status 1.
    Runtime,
}

/// An error with its kind and, where there is one, a hint.
#[derive(Debug, Clone)]
pub struct UserError {
    /// Decides the exit status.
    pub kind: ErrorKind,
    /// What is wrong; several lines if it shows a snippet of a file.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl UserError {
    /// An error in the request.
    pub fn usage(message: impl Into<String>) -> UserError {
        UserError { kind: ErrorKind::Usage, message: message.into(), hint: None }
    }

    /// An error in the work.
    pub fn runtime(message: impl Into<String>) -> UserError {
        UserError { kind: ErrorKind::Runtime, message: message.into(), hint: None }
    }

    /// Adds a hint.
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

/// The kind of `error`: that of the outermost [`UserError`], [`ErrorKind::Runtime`] if there is none.
pub fn kind_of(error: &anyhow::Error) -> ErrorKind {
    user_errors(error).next().map_or(ErrorKind::Runtime, |problem| problem.kind)
}

/// `error` as it is printed: each cause on a line of its own, then the hint.
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

/// The user errors of a chain. `anyhow` shows one that was added as context by its own `downcast_ref` only, and one
/// that is the source of another error by `chain` only.
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

//! Explains where a path in the image comes from.

use super::Plan;
use crate::{model::GuestPath, overlay::Writer};
use serde::Serialize;

/// What an overlay does at a guest path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The overlay's name.
    pub overlay: String,
    /// What the path is: a file, a directory, a link, a removal.
    pub what: String,
    /// Where its bytes come from, as a path from the project's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Who writes it, and when.
    pub writer: String,
    /// Owner and group, where it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The mode, in octal, where it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The command that checks it before it is put in its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub check: Vec<String>,
}

/// What the plan's overlays do at `path`: nothing, or one thing, or a template and what it becomes.
pub fn explain(plan: &Plan, path: &GuestPath) -> Vec<Explanation> {
    let mut explanations = Vec::new();
    let of_disk = plan.disk.iter().flat_map(|disk| &disk.overlays);
    for overlay in plan.overlays.iter().chain(of_disk) {
        let say = |what: String, writer: Writer| Explanation {
            overlay: overlay.name.clone(),
            what,
            source: None,
            writer: writer.to_string(),
            owner: None,
            mode: None,
            check: Vec::new(),
        };
        for file in overlay.files.iter().filter(|file| file.path == *path || file.installed == *path) {
            let (what, writer) = match file.path == *path {
                true if file.writer == Writer::Image => ("a file".to_owned(), file.writer),
                true => (format!("a file, made from the template {}", file.installed), file.writer),
                false => (format!("the template of {}", file.path), Writer::Image),
            };
            explanations.push(Explanation {
                source: Some(file.origin.clone()),
                owner: Some(format!("{}:{}", file.owner, file.group)),
                mode: Some(format!("{:04o}", file.mode.0)),
                check: file.check.clone(),
                ..say(what, writer)
            });
        }
        if let Some(directory) = overlay.directories.get(path) {
            explanations.push(Explanation {
                owner: Some(format!("{}:{}", directory.owner, directory.group)),
                mode: Some(format!("{:04o}", directory.mode.0)),
                ..say("a directory".to_owned(), Writer::Image)
            });
        }
        if let Some(target) = overlay.links.get(path) {
            explanations.push(say(format!("a symbolic link to {target}"), Writer::Image));
        }
        if overlay.remove.contains(path) {
            explanations.push(say("removed".to_owned(), Writer::Image));
        }
    }
    explanations
}

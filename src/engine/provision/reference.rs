//! What `model` of an engine refers to.

use std::path::{Path, PathBuf};

/// A model reference, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// A repository of the hub, or one file of it.
    Hub(HubReference),
}

/// `hf:org/repo[@rev][/file.gguf]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReference {
    /// `org/repo`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` without one.
    pub revision: String,
    /// One file of it.
    pub file: Option<String>,
}

impl std::fmt::Display for HubReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

impl Reference {
    /// Reads a reference; `folder` is where relative paths start. Whether it is there is another question.
    ///
    /// # Errors
    /// What is wrong with it, and what to write instead.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, (String, String)> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub(text, rest).map(Self::Hub);
        }
        for scheme in ["file:", "local:"] {
            if let Some(path) = text.strip_prefix(scheme) {
                // `file:///abs` is the same as `file:/abs`.
                let path = path.strip_prefix("//").unwrap_or(path);
                if !path.starts_with('/') {
                    return Err((
                        format!("`{text}` is no absolute path"),
                        format!(
                            "write `{scheme}/absolute/path`, or a path relative to the file without `{scheme}`"
                        ),
                    ));
                }
                return Ok(Self::Local(PathBuf::from(path)));
            }
        }
        if text.contains("://") {
            return Err((
                format!("`{text}` is an address, and models are not downloaded from addresses"),
                "write `hf:org/repo`, or download it yourself and name the file".to_owned(),
            ));
        }
        Ok(Self::Local(folder.join(text)))
    }
}

fn hub(whole: &str, rest: &str) -> Result<HubReference, (String, String)> {
    let wrong = |why: &str| {
        (
            format!("`{whole}` is no model of the hub: {why}"),
            "write `hf:org/repo`, `hf:org/repo@revision` or `hf:org/repo/file.gguf`".to_owned(),
        )
    };
    let mut parts = rest.splitn(3, '/');
    let (Some(org), Some(repo)) = (parts.next(), parts.next()) else {
        return Err(wrong("there is no `/` between organisation and repository"));
    };
    let (repo, revision) = match repo.split_once('@') {
        Some((repo, revision)) => (repo, revision),
        None => (repo, "main"),
    };
    let file = parts.next();
    for (part, what) in [
        (org, "an organisation"),
        (repo, "a repository"),
        (revision, "a revision"),
    ] {
        if !is_name(part) {
            return Err(wrong(&format!("`{part}` is no name of {what}")));
        }
    }
    if let Some(file) = file
        && !is_inside(file)
    {
        return Err(wrong(&format!("`{file}` is no file of it")));
    }
    Ok(HubReference {
        repo: format!("{org}/{repo}"),
        revision: revision.to_owned(),
        file: file.map(str::to_owned),
    })
}

/// A name that is one component of a path and of an address.
fn is_name(part: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !part.is_empty() && part.len() <= 200 && !part.starts_with('.') && part.bytes().all(letter)
}

/// True for a relative path that stays below where it starts, and means the same in an address.
pub(in crate::engine) fn is_inside(file: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', '?', '#', '%'])
            && !part.chars().any(char::is_control)
    };
    file.len() <= 1000 && file.split('/').all(plain)
}

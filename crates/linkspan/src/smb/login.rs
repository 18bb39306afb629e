//! Who logs on: from a file, from the environment, or from a question.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use console::Term;
use linkspan_backends::smb::Login;

use super::url::Url;
use crate::exit::{Failure, Status};

/// Whose password, from wherever it is.
pub(super) fn find(url: &Url, credentials: Option<&Path>) -> Result<Login, Failure> {
    let mut login = Login::default();
    let mut password = None;
    if let Some(path) = credentials {
        (login, password) = read(path)?;
    }
    // What the URL says counts.
    for (field, said) in [
        (&mut login.user, &url.user),
        (&mut login.domain, &url.domain),
    ] {
        if !said.is_empty() {
            field.clone_from(said);
        }
    }
    if login.user.is_empty() {
        return Ok(Login::default());
    }
    let password = match password {
        Some(password) => password,
        None => elsewhere(&login.user, &url.host)?,
    };
    Ok(Login { password, ..login })
}

/// What a file says.
pub(super) fn read(path: &Path) -> Result<(Login, Option<String>), Failure> {
    let cannot = || format!("cannot read {}", path.display());
    let text = fs::read_to_string(path).with_context(cannot)?;
    Ok(parse(&text))
}

/// A password from the environment, or from a question.
pub(super) fn elsewhere(user: &str, place: &str) -> Result<String, Failure> {
    match std::env::var("SMB_PASSWORD") {
        Ok(password) => Ok(password),
        Err(_) => ask(user, place),
    }
}

/// As mount.cifs reads it: a key and a value on each line, of which all behind the first
/// `=` counts, blanks included.
fn parse(text: &str) -> (Login, Option<String>) {
    let (mut login, mut password) = (Login::default(), None);
    for line in text.lines() {
        let Some((key, value)) = line.trim_start().split_once('=') else {
            continue;
        };
        let key = key.trim_end().to_ascii_lowercase();
        match key.as_str() {
            "username" | "user" => login.user = value.into(),
            "password" | "pass" => password = Some(value.into()),
            "domain" | "dom" | "workgroup" => login.domain = value.into(),
            _ => {}
        }
    }
    (login, password)
}

fn ask(user: &str, host: &str) -> Result<String, Failure> {
    let terminal = Term::stderr();
    if !terminal.is_term() {
        let error = anyhow!("there is no password for {user}, and no terminal to ask for it");
        return Err(Failure::new(Status::Usage, error).hint("--credentials FILE, or SMB_PASSWORD"));
    }
    eprint!("Password of {user} at {host}: ");
    let answer = terminal.read_secure_line();
    Ok(answer.context("cannot read the password")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_mount_cifs_reads_it() {
        let (login, password) =
            parse("# no key\nusername=me\n  password= a=b \r\nDomain=work\nother=x\n");
        assert_eq!((login.user.as_str(), login.domain.as_str()), ("me", "work"));
        assert_eq!(password.as_deref(), Some(" a=b "));
    }
}

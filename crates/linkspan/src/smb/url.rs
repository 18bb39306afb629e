//! `smb://[[domain;]user@]host[:port]/share[/path]`.

use std::str::FromStr;

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(super) domain: String,
    pub(super) user: String,
    pub(super) host: String,
    /// If it has one.
    pub(super) port: Option<u16>,
    pub(super) share: String,
    /// Without a slash at either end; empty for the share itself.
    pub(crate) path: String,
    /// Whether it ended with a slash.
    pub(super) folder: bool,
}

/// Turns `%20` and the like into what they stand for.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let value = digit()
            .zip(digit())
            .and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        bytes.push(value.ok_or("a % is not followed by two digits (a % itself is %25)")?);
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    if text.contains('\0') {
        return Err("it has a zero in it".into());
    }
    Ok(text)
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("smb://")
            .ok_or("it does not begin with smb://")?;
        let (authority, path) = rest.split_once('/').ok_or("it names no share")?;
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        if login.contains(':') {
            return Err(
                "a password on the command line is seen by others; use --credentials, \
                SMB_PASSWORD, or the question on the terminal"
                    .into(),
            );
        }
        let (domain, user) = login.split_once(';').unwrap_or(("", login));
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or("a [ has no ]")?,
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => Some(port.parse().map_err(|_| format!("{port} is no port"))?),
            None if port.is_empty() => None,
            None => return Err(format!("{port} is no port")),
        };
        let (share, path) = path.split_once('/').unwrap_or((path, ""));
        if host.is_empty() || share.is_empty() {
            return Err("it names no host, or no share".into());
        }
        Ok(Self {
            domain: decoded(domain)?,
            user: decoded(user)?,
            host: host.into(),
            port,
            share: decoded(share)?,
            path: decoded(path.trim_matches('/'))?,
            folder: path.is_empty() || path.ends_with('/'),
        })
    }
}

impl Url {
    /// The last part of the path; the share's name for the share itself.
    pub(super) fn name(&self) -> &str {
        match self.path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => &self.share,
        }
    }
}

/// A path below another one.
pub(super) fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.into(),
        folder => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_found() {
        let url: Url = "smb://work;a%40b@[::1]:4450/share/a%20b/c/"
            .parse()
            .unwrap();
        assert_eq!((url.domain.as_str(), url.user.as_str()), ("work", "a@b"));
        assert_eq!((url.host.as_str(), url.port), ("::1", Some(4450)));
        assert_eq!(
            (url.share.as_str(), url.path.as_str(), url.folder),
            ("share", "a b/c", true)
        );
        assert_eq!(url.name(), "c");
        let url: Url = "smb://host/share".parse().unwrap();
        assert_eq!(
            (url.port, url.path.as_str(), url.name()),
            (None, "", "share")
        );
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, why) in [
            ("http://host/share", "smb://"),
            ("smb://host", "no share"),
            ("smb://host/", "no share"),
            ("smb:///share", "no host"),
            ("smb://me:secret@host/share", "password"),
            ("smb://host:99999/share", "no port"),
            ("smb://[::1/share", "no ]"),
            ("smb://host/share/%2", "two digits"),
            ("smb://host/share/%00", "zero"),
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

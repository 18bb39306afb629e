//! `linkspan man` and `linkspan completions`: what is made of the definition of the command
//! line for those who install the program.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli;
use crate::exit::{Failure, Status};

/// Options of `linkspan man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan man blk | man -l -            # the page of one command\n  \
    linkspan man driver net | man -l -\n  \
    linkspan man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The command whose page is printed; none: that of the program
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    command: Vec<String>,

    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Options of `linkspan completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan completions bash >~/.local/share/bash-completion/completions/linkspan\n  \
    linkspan completions zsh >/usr/local/share/zsh/site-functions/_linkspan\n  \
    linkspan completions fish >~/.config/fish/completions/linkspan.fish")]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints a page, or writes all.
///
/// # Errors
/// With the status that the program is to end with.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let root = built();
    if let Some(folder) = &args.out {
        let made = fs::create_dir_all(folder).and_then(|()| write_all(&root, "", folder));
        let made = made.with_context(|| format!("cannot write pages to {}", folder.display()));
        return made.map_err(Failure::from);
    }
    let (mut command, mut above) = (&root, String::new());
    for word in &args.command {
        above = examples(command).unwrap_or(above);
        command = command.find_subcommand(word).ok_or_else(|| {
            let error = anyhow!("there is no command `{}`", args.command.join(" "));
            Failure::new(Status::Usage, error)
        })?;
    }
    print(&page(command, &above)?)
}

/// Prints what a shell completes the program's command lines with.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), "linkspan", &mut text);
    print(&text)
}

/// The command line, with the names that pages are called by. `help` has no page: it is
/// a way to the others.
fn built() -> Command {
    let mut root = cli::command().disable_help_subcommand(true);
    root.build();
    root
}

/// The page of a command and of those below it.
fn write_all(command: &Command, above: &str, folder: &Path) -> io::Result<()> {
    let file = Man::new(command.clone()).get_filename();
    fs::write(folder.join(file), page(command, above)?)?;
    let own = examples(command);
    let mut below = command.get_subcommands();
    below.try_for_each(|below| write_all(below, own.as_deref().unwrap_or(above), folder))
}

/// The text behind the options, if it has examples.
fn examples(command: &Command) -> Option<String> {
    let text = command.get_after_help()?.to_string();
    text.contains("Example").then_some(text)
}

/// A page: what clap makes of the definition, and the text behind the options with its
/// lines as they are, as most of it is examples. A command without any has those of the one
/// `above`, which use it.
fn page(command: &Command, above: &str) -> io::Result<Vec<u8>> {
    let version = concat!("linkspan ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone());
    let man = man.source(version).manual("Linkspan");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let own = command.get_after_help().map(ToString::to_string);
    for (heading, after) in match (examples(command), own) {
        (Some(own), _) => [("EXAMPLES", Some(own)), ("", None)],
        (None, own) if above.is_empty() => [("NOTES", own), ("", None)],
        (None, own) => [("NOTES", own), ("EXAMPLES", Some(above.to_owned()))],
    } {
        if let Some(after) = after {
            write!(text, ".SH {heading}\n.nf\n{}.fi\n", verbatim(&after))?;
        }
    }
    Ok(text)
}

/// Lines that a formatter of pages shows as they are.
fn verbatim(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        match line.starts_with(['.', '\'']) {
            true => format!("\\&{line}\n"),
            false => line + "\n",
        }
    });
    lines.collect()
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let written = io::stdout().lock().write_all(text);
    written.context("cannot print").map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a formatter is told in pages that clap makes, and in ours.
    const MACROS: [&str; 13] = [
        "SH", "SS", "TH", "TP", "PP", "RS", "RE", "IP", "ie", "el", "br", "nf", "fi",
    ];

    #[test]
    fn every_command_that_does_something_has_a_page_with_examples() {
        let folder = tempfile::tempdir().unwrap();
        write_all(&built(), "", folder.path()).unwrap();
        let mut pages = 0;
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let page = fs::read_to_string(&path).unwrap();
            for section in ["NAME", "SYNOPSIS", "EXAMPLES"] {
                let is_root = path.ends_with("linkspan.1");
                let has = page.contains(&format!("\n.SH {section}\n"));
                assert!(has || is_root, "{}: {section}", path.display());
            }
            for line in page.lines().filter_map(|line| line.strip_prefix('.')) {
                let word = line.split(' ').next().unwrap_or_default();
                assert!(MACROS.contains(&word), "{}: .{line}", path.display());
            }
            pages += 1;
        }
        assert!(pages > 40, "{pages}");
        for name in ["linkspan.1", "linkspan-blk.1", "linkspan-driver-net.1"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn lines_of_examples_stay_as_they_are() {
        let text = "a --b \\\n.c\n'd'\n  -e";
        let shown = "a \\-\\-b \\e\n\\&.c\n\\&'d'\n  \\-e\n";
        assert_eq!(verbatim(text), shown);
    }
}

//! Every command line that pages and `--help` show is one.

use clap::Command;
use clap::error::ErrorKind;

use super::pages;

/// What pages show between fences that people type, as one command a line, each as its words.
pub(crate) struct Block {
    pub(crate) page: String,
    pub(crate) lines: Vec<Line>,
}

/// A command of a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) words: Vec<String>,
    /// The shell does not wait for its end.
    pub(crate) in_background: bool,
}

impl Line {
    /// The arguments of our program, if it is that which is called.
    pub(crate) fn ours(&self) -> Option<&[String]> {
        let words = &self.words[..];
        let words = match words.first()?.as_str() {
            // On one processor.
            "taskset" => words.get(3..)?,
            _ => words,
        };
        let (name, rest) = words.split_first()?;
        if name == "linkspan" || name.ends_with("/linkspan") {
            return Some(rest);
        }
        let is_ours = name == "cargo" && words.iter().any(|word| word == "linkspan");
        let runs = is_ours && words.get(1).is_some_and(|verb| verb == "run");
        let rest = words.iter().position(|word| word == "--")?;
        runs.then(|| &words[rest + 1..])
    }
}

/// The commands of a piece of shell. What is quoted stays together, comments go, what
/// output is sent to goes too, and so does a word of three dots, which stands for more.
pub(crate) fn commands(text: &str) -> Vec<Line> {
    let text = text.replace("\\\n", " ");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut current = Line::default();
        let mut letters = line.chars().peekable();
        let (mut word, mut quote, mut inside) = (String::new(), None, false);
        let mut skip = false;
        let end_of_word = |word: &mut String, line: &mut Line, skip: &mut bool| {
            let word = std::mem::take(word);
            if !std::mem::take(skip) && word != "…" {
                line.words.push(word);
            }
        };
        while let Some(letter) = letters.next() {
            match (quote, letter) {
                (Some(mark), letter) if letter == mark => quote = None,
                (Some(_), letter) => word.push(letter),
                (None, '\'' | '"') => (quote, inside) = (Some(letter), true),
                (None, '#') if !inside => break,
                (None, '>') if !inside || word == "2" => {
                    (word, inside, skip) = (String::new(), false, true)
                }
                (None, ';' | '|' | '&') => {
                    if inside {
                        end_of_word(&mut word, &mut current, &mut skip);
                    }
                    inside = false;
                    current.in_background = letter == '&' && letters.peek() != Some(&'&');
                    letters.next_if_eq(&letter);
                    lines.push(std::mem::take(&mut current));
                }
                (None, letter) if letter.is_whitespace() => {
                    if inside {
                        end_of_word(&mut word, &mut current, &mut skip);
                    }
                    inside = false;
                }
                (None, letter) => {
                    word.push(letter);
                    inside = true;
                }
            }
        }
        if inside {
            end_of_word(&mut word, &mut current, &mut skip);
        }
        lines.push(current);
    }
    lines.retain(|line| !line.words.is_empty());
    lines
}

/// All that pages show between fences of a shell.
pub(crate) fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (page, text) in pages() {
        for fenced in text.split("```").skip(1).step_by(2) {
            let (kind, text) = fenced.split_once('\n').unwrap_or((fenced, ""));
            if kind == "sh" {
                let (page, lines) = (page.clone(), commands(text));
                blocks.push(Block { page, lines });
            }
        }
    }
    blocks
}

#[test]
fn commands_are_cut_as_a_shell_does() {
    let lines = commands(
        "linkspan a 'b c' --d=\"e #\" … &   # words\n# nothing\nx \\\n  y >/tmp/z && w 2>/dev/null; v | u\n",
    );
    let words: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.words.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(
        words,
        [
            vec!["linkspan", "a", "b c", "--d=e #"],
            vec!["x", "y"],
            vec!["w"],
            vec!["v"],
            vec!["u"]
        ]
    );
    assert!(lines[0].in_background && !lines[1].in_background);
}

/// What is wrong with a command line of ours, if anything is.
fn judge(args: &[String]) -> Option<String> {
    // Who reads is no user of the machine that tests run on.
    let words = args.iter().map(|word| match word.as_str() {
        "me" => "root",
        word => word,
    });
    let words = ["linkspan"].into_iter().chain(words);
    let error = linkspan::cli::command().try_get_matches_from(words).err()?;
    let is_answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    (!is_answer).then(|| error.to_string())
}

/// Whole commands of the pages are taken by the program's own parser.
#[test]
fn commands_between_fences_are_taken_by_the_program() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for block in blocks() {
        for args in block.lines.iter().filter_map(Line::ours) {
            seen += 1;
            if let Some(error) = judge(args) {
                wrong.push(format!("{}: {args:?}: {error}", block.page));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "{seen} commands");
}

/// So are those of units.
#[test]
fn commands_of_units_are_taken_by_the_program() {
    let mut seen = 0;
    for (page, text) in pages() {
        for line in text
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart="))
        {
            for args in commands(line).iter().filter_map(Line::ours) {
                seen += 1;
                assert_eq!(judge(args), None, "{page}: {line}");
            }
        }
    }
    assert!(seen > 0);
}

/// What is wrong with a part of a command line: a verb or an option that does not exist.
fn judge_part(words: &[&str]) -> Option<String> {
    let mut root = linkspan::cli::command();
    root.build();
    let mut command: &Command = &root;
    let mut is_verb = true;
    for word in words {
        if let Some(option) = word.strip_prefix("--") {
            let option = option.split('=').next().unwrap_or_default();
            if option.is_empty() {
                return None;
            }
            let mut args = command.get_arguments();
            let known = args.any(|arg| {
                let aliases = arg.get_all_aliases().unwrap_or_default();
                arg.get_long() == Some(option) || aliases.contains(&option)
            });
            if !known && !["help", "version"].contains(&option) {
                return Some(format!("`{}` has no --{option}", command.get_name()));
            }
            is_verb = false;
        } else if let (true, Some(next)) = (is_verb, command.find_subcommand(word)) {
            command = next;
        } else if is_verb && command.has_subcommands() {
            let could_be = word.chars().all(|letter| letter.is_ascii_lowercase());
            let takes_values = command.get_positionals().next().is_some();
            if could_be && !takes_values {
                return Some(format!("`{}` has no verb {word}", command.get_name()));
            }
        }
    }
    None
}

/// Commands in the text may be parts of one; what they name exists.
#[test]
fn verbs_and_options_in_the_text_exist() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for (page, text) in pages() {
        let outside: String = text.split("```").step_by(2).collect();
        for span in outside.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = span.split_whitespace().collect();
            let Some((&"linkspan", words)) = words.split_first() else {
                continue;
            };
            seen += 1;
            if let Some(error) = judge_part(words) {
                wrong.push(format!("{page}: {span}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 100, "{seen} commands");
}

/// What a line of an example has before its explanation, which blanks set apart.
fn example(help: &str) -> String {
    let cut = |line: &str| {
        let line = line.trim();
        line.split("  ").next().unwrap_or_default().to_owned() + "\n"
    };
    help.lines().map(cut).collect()
}

/// The examples of every `--help` are commands of ours, and each verb has some in its own or
/// in that of its noun.
#[test]
fn examples_of_every_help_are_taken_by_the_program() {
    let mut root = linkspan::cli::command();
    root.build();
    let (mut seen, mut wrong, mut without) = (0, Vec::new(), Vec::new());
    let mut left = vec![(String::new(), &root, false)];
    while let Some((path, command, above)) = left.pop() {
        let help = command.get_after_help().map(ToString::to_string);
        let found = commands(&example(&help.unwrap_or_default()));
        let ours: Vec<&[String]> = found.iter().filter_map(Line::ours).collect();
        let has = above || !ours.is_empty();
        if !has && !command.has_subcommands() {
            without.push(path.clone());
        }
        for args in ours {
            seen += 1;
            if let Some(error) = judge(args) {
                wrong.push(format!("{path}: {args:?}: {error}"));
            }
        }
        let verbs = command.get_subcommands();
        let verbs = verbs.filter(|verb| verb.get_name() != "help");
        left.extend(verbs.map(|verb| (format!("{path} {}", verb.get_name()), verb, has)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(without.is_empty(), "no example in --help of {without:?}");
    assert!(seen > 30, "{seen} examples");
}

//! The `wisp --help` page, with the subcommands under headings.

use std::fmt::Write as _;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory};

use super::Cli;

/// Headings with their subcommands, in the order of the page.
const GROUPS: [(&str, &[&str]); 8] = [
    ("Run", &["run", "launch", "exec", "ssh", "cp", "console"]),
    (
        "Instances",
        &[
            "ls",
            "show",
            "start",
            "stop",
            "reboot",
            "fork",
            "terminate",
            "modify",
            "tag",
            "metadata-defaults",
            "template",
        ],
    ),
    ("Images", &["image"]),
    ("Storage", &["volume", "snapshot"]),
    ("Network", &["vpc", "subnet", "gateway", "route-table", "sg", "address", "key"]),
    ("Measure", &["types", "top", "bench", "recommend", "timeline"]),
    ("AWS clients", &["aws", "serve"]),
    ("Host", &["doctor", "completions"]),
];

/// Returns the clap command for `wisp`, with this page as its help.
pub fn command() -> Command {
    let command = Cli::command();
    let header = command.get_styles().get_header();
    let literal = command.get_styles().get_literal();
    let options: Vec<_> = command.get_arguments().map(option_line).collect();
    let names = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len());
    let width = names.chain(options.iter().map(|(option, _)| option.len())).max().unwrap_or_default();
    let mut template = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (heading, names) in GROUPS {
        let _ = writeln!(template, "\n{header}{heading}:{header:#}");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about).map(StyledStr::to_string);
            let _ = writeln!(template, "  {literal}{name:<width$}{literal:#}  {}", about.unwrap_or_default());
        }
    }
    let _ = writeln!(template, "\n{header}{}:{header:#}", super::args::GLOBAL);
    for (option, help) in options {
        let _ = writeln!(template, "  {literal}{option:<width$}{literal:#}  {help}");
    }
    command.help_template(format!("{}{{after-help}}", template.trim_end()))
}

fn option_line(option: &Arg) -> (String, String) {
    let short = option.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let long = option.get_long().unwrap_or_default();
    let values: Vec<_> = option.get_possible_values().iter().map(|value| value.get_name().to_string()).collect();
    let value = if option.get_action().takes_values() { format!(" {}", values.join("|")) } else { String::new() };
    (format!("{short}--{long}{value}"), option.get_help().map(StyledStr::to_string).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pages(command: &mut Command, path: &str, pages: &mut Vec<(String, String)>) {
        pages.push((path.to_string(), command.render_help().to_string()));
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            let sub = command.find_subcommand_mut(name).unwrap();
            self::pages(sub, &format!("{path} {name}"), pages);
        }
    }

    #[test]
    fn every_visible_subcommand_has_one_heading() {
        let command = Cli::command();
        let visible: Vec<_> =
            command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name).collect();
        let grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        assert_eq!(visible.iter().collect::<BTreeSet<_>>(), grouped.iter().collect());
        assert_eq!(visible.len(), grouped.len());
    }

    #[test]
    fn summaries_are_short_and_imperative() {
        let mut command = command();
        command.build();
        let mut stack: Vec<&Command> = command.get_subcommands().collect();
        let mut count = 0;
        while let Some(sub) = stack.pop() {
            stack.extend(sub.get_subcommands());
            let Some(about) = sub.get_about().map(StyledStr::to_string).filter(|_| sub.get_name() != "help") else {
                continue;
            };
            count += 1;
            let first = about.split_whitespace().next().unwrap();
            // A verb in the third person ("Creates") ends with an s, and an imperative does not.
            assert!(first.starts_with(char::is_uppercase) && !first.ends_with('s'), "{}: {about}", sub.get_name());
            assert!(about.len() <= 80, "{}: {about}", sub.get_name());
        }
        assert!(count > 60, "{count}");
    }

    #[test]
    fn global_options_are_last_on_every_page() {
        let mut command = command();
        command.build();
        let mut all = Vec::new();
        pages(&mut command, "wisp", &mut all);
        for (path, page) in all {
            let at = page.find("Global options:").unwrap_or_else(|| panic!("{path}: {page}"));
            for heading in ["\nOptions:", "\nArguments:", "\nNetwork:", "\nStorage:", "\nAdvanced:"] {
                assert!(page.find(heading).is_none_or(|other| other < at), "{path}: {page}");
            }
        }
    }

    #[test]
    fn launch_has_ten_options_outside_headings() {
        let mut command = command();
        command.build();
        let launch = command.find_subcommand("launch").unwrap();
        let options = launch.get_arguments().filter(|arg| !arg.is_positional() && arg.get_help_heading().is_none());
        assert_eq!(options.count(), 10);
    }
}

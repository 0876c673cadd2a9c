//! Runs the commands in README.md and docs/, and compares their output with the pages.
//!
//! A `console` block has commands after "$ " and their output, on standard output and standard error. A `sh` block has
//! commands that must succeed. Each page runs from top to bottom in its own data directory. A comment
//! `<!-- run: COMMAND -->` is a command that readers do not see. Blocks marked `no-test` are not run; the marker says
//! why. In a transcript, IDs, addresses, dates, durations and hashes match any others, a line `...` matches any lines,
//! and lines that start with "Next:" can be omitted.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use common::Wisp;
use regex::Regex;

/// The time limit of a command in seconds.
const TIMEOUT: &str = "300";

/// Defines a test for each page, and their list.
macro_rules! pages {
    ($($name:ident: $file:literal,)*) => {
        const PAGES: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $name() {
                run_page($file);
            }
        )*
    };
}

pages! {
    readme_commands_print_what_it_shows: "README.md",
    architecture_commands_succeed: "docs/architecture.md",
    ec2_commands_print_what_the_page_shows: "docs/ec2.md",
    freeze_commands_succeed: "docs/freeze.md",
    images_commands_succeed: "docs/images.md",
    network_commands_succeed: "docs/network.md",
    performance_commands_succeed: "docs/performance.md",
    security_commands_succeed: "docs/security.md",
    sizes_commands_succeed: "docs/sizes.md",
    what_is_real_commands_succeed: "docs/what-is-real.md",
}

/// A command of a page.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// The line number in the page.
    line: usize,
    command: String,
    /// The lines that the command prints, or `None` if the page does not show them.
    output: Option<Vec<String>>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the commands of a page. Panics at a block with commands of `wisp` that is neither run nor marked `no-test`.
fn steps(page: &str, text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<&str> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let plain = |command: &str| Step { line: number, command: command.to_string(), output: None };
        if let Some(info) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(info.trim()) };
            continue;
        }
        match block {
            None => {
                let hidden = line.strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
                steps.extend(hidden.map(plain));
            }
            Some("console") => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { line: number, command: command.to_string(), output: Some(Vec::new()) });
                }
                (None, Some(Step { output: Some(output), .. })) => output.push(line.to_string()),
                (None, _) => panic!("{page}:{number}: output without a command"),
            },
            Some("sh") => match steps.last_mut().filter(|step| step.command.ends_with('\\')) {
                Some(step) => step.command = format!("{}{line}", step.command.trim_end_matches('\\')),
                None if line.is_empty() || line.starts_with('#') => {}
                None => steps.push(plain(line)),
            },
            Some(info) => {
                let has_command = line.starts_with("wisp ") || line.starts_with("$ ");
                assert!(!has_command || info.contains("no-test"), "{page}:{number}: not run: {line}");
            }
        }
    }
    for Step { output, .. } in &mut steps {
        while output.as_ref().is_some_and(|lines| lines.last().is_some_and(String::is_empty)) {
            output.as_mut().unwrap().pop();
        }
    }
    steps
}

/// Patterns of values that differ between runs, and what stands for them in a comparison.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let patterns = [
        (r"\b(i|r|vol|snap|ami|vpc|subnet|sg|sgr|key|eipalloc|lt)-[0-9a-f]{8,17}\b", "$1-ID"),
        (r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", "ADDRESS"),
        (r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?Z?\b", "DATE"),
        (r"\b[0-9.]+ (µs|ms|s|min)\b", "DURATION"),
        (r"\b[A-Za-z0-9+/]{43}=", "HASH"),
        (r"\b[0-9]+\.[0-9]+\.[0-9]+-wisp\b", "KERNEL"),
        (r"\s+", " "),
    ];
    patterns.into_iter().map(|(pattern, stand_in)| (Regex::new(pattern).unwrap(), stand_in)).collect()
});

fn normalized(line: &str) -> String {
    PATTERNS.iter().fold(line.trim_end().to_string(), |line, (pattern, stand_in)| {
        pattern.replace_all(&line, *stand_in).into_owned()
    })
}

/// Returns true if the lines printed are those expected.
fn is_as_expected(expected: &[String], printed: &[String]) -> bool {
    let normalize = |lines: &[String]| lines.iter().map(|line| normalized(line)).collect::<Vec<_>>();
    matches(&normalize(expected), &normalize(printed))
}

fn matches(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "..." => (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..])),
        Some((first, rest)) => printed.first() == Some(first) && matches(rest, &printed[1..]),
    }
}

fn check(step: &Step, code: Option<i32>, printed: &str) -> Result<(), String> {
    let Some(expected) = &step.output else {
        return if code == Some(0) { Ok(()) } else { Err(format!("exit code {code:?}: {printed}")) };
    };
    let mut lines: Vec<String> = printed.trim_end().lines().map(str::to_string).collect();
    if !expected.iter().any(|line| line.starts_with("Next:")) {
        lines.retain(|line| !line.starts_with("Next:"));
    }
    match is_as_expected(expected, &lines) {
        true => Ok(()),
        false => Err(format!("the page shows:\n{}\nbut it printed:\n{}", expected.join("\n"), lines.join("\n"))),
    }
}

fn run_page(page: &str) {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let steps = steps(page, &text);
    assert!(!steps.is_empty(), "{page} has no commands: remove it from the list");
    let wisp = Wisp::warm();
    let dir = tempfile::tempdir().unwrap();
    let programs = dir.path().join("bin");
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_wisp"), programs.join("wisp")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut failures = Vec::new();
    for step in &steps {
        let mut command = Command::new("timeout");
        command.args([TIMEOUT, "sh", "-c", &format!("exec 2>&1\n{}", step.command)]);
        command.env("PATH", &path).env("WISP_HOME", wisp.home()).env("HOME", dir.path()).env_remove("WISP_LOG");
        let output = command.current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        if let Err(error) = check(step, output.status.code(), &printed) {
            failures.push(format!("{page}:{}: {}: {error}", step.line, step.command));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_page_with_commands_is_run() {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for path in pages.chain([root().join("README.md")]) {
        let page = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let has_commands = !steps(page, &fs::read_to_string(&path).unwrap()).is_empty();
        assert_eq!(PAGES.contains(&page), has_commands, "{page}");
    }
    assert!(PAGES.iter().all(|page| Path::new(page).extension().is_some()));
}

#[test]
fn steps_are_commands_with_their_output() {
    let text =
        "<!-- run: a -->\n```sh\nb # why\n# note\nc \\\n  d\n```\n```console\n$ e\nout\n\n$ f\n```\n```\n$x\n```\n";
    let step = |line, command: &str, output: Option<&[&str]>| Step {
        line,
        command: command.into(),
        output: output.map(|lines| lines.iter().map(|line| (*line).into()).collect()),
    };
    assert_eq!(
        steps("page", text),
        [
            step(1, "a", None),
            step(3, "b # why", None),
            step(5, "c   d", None),
            step(9, "e", Some(&["out"])),
            step(12, "f", Some(&[])),
        ]
    );
}

#[test]
fn output_differs_only_in_ids_times_and_skipped_lines() {
    let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
    let is_same = |expected: &str, printed: &str| is_as_expected(&lines(expected), &lines(printed));
    assert!(is_same("web  i-0123456789abcdef0  took 1.5 ms", "web i-fedcba98765432100   took 700 µs"));
    assert!(!is_same("web  i-0123456789abcdef0", "db  i-0123456789abcdef0"));
    assert!(is_same("a\n...\nd", "a\nb\nc\nd") && is_same("a\n...", "a"));
    assert!(!is_same("a\n...\nd", "a\nb") && !is_same("a", "a\nb"));
}

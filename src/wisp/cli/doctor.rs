//! `wisp doctor`: checks the host and suggests commands that fix problems.

use std::process::ExitCode;

use serde::Serialize;

use super::output::{self, Output, Screen, Tone};
use node::probe::{self, Finding, Severity};

/// The width before a finding: a mark, a space, the finding's name and two spaces.
const INDENT: usize = 19;
/// The maximum line width, except for commands, which are not wrapped.
const LONGEST_LINE: usize = 100;

/// Check whether this host can run guests.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp doctor                  check this host
  wisp doctor && wisp run      start a guest only if this host is ready

The exit code is 0 if this host can run guests, else 1.")]
pub struct Args {}

pub fn run(_args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let findings = probe::examine();
    let guests_run = can_run_guests(&findings);
    match output {
        Output::Json => output::print_json(&Report {
            can_run_guests: guests_run,
            software_kvm: probe::is_software_kvm(),
            findings: &findings,
        })?,
        Output::Table => {
            output::print(&render(&findings, Screen::stdout()))?;
            output::next(if guests_run { "run" } else { "doctor   (after fixing the problems)" });
        }
    }
    Ok(if guests_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The output of `--output json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report<'a> {
    can_run_guests: bool,
    software_kvm: bool,
    findings: &'a [Finding],
}

fn can_run_guests(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.status != Severity::Fail)
}

fn render(findings: &[Finding], screen: Screen) -> String {
    let mut lines: Vec<String> = findings.iter().flat_map(|finding| finding_lines(finding, screen)).collect();
    lines.push(String::new());
    lines.push(summary(findings, screen));
    lines.join("\n")
}

fn finding_lines(finding: &Finding, screen: Screen) -> Vec<String> {
    let (mark, tone) = match finding.status {
        Severity::Ok => ("✓", Tone::Good),
        Severity::Warn => ("!", Tone::Warning),
        Severity::Fail => ("✗", Tone::Bad),
    };
    let width = screen.width.unwrap_or(LONGEST_LINE).min(LONGEST_LINE);
    let wrap = |text: &str| output::wrap(text, width.saturating_sub(INDENT).max(20));

    let mut texts = wrap(&finding.found);
    if let Some(explanation) = &finding.explanation {
        texts.extend(wrap(explanation).iter().map(|line| screen.paint(Tone::Quiet, line)));
    }
    texts.extend(output::fix_lines(&finding.fixes, screen));

    let name = format!("{:1$}", finding.name, INDENT - 2);
    let first = format!("{} {}", screen.paint(tone, mark), screen.paint(Tone::Strong, &name));
    let left = std::iter::once(first).chain(std::iter::repeat(" ".repeat(INDENT)));
    left.zip(texts).map(|(left, text)| left + &text).collect()
}

fn summary(findings: &[Finding], screen: Screen) -> String {
    let number = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (problems, warnings) = (number(Severity::Fail), number(Severity::Warn));
    let verdict = match problems {
        0 => screen.paint(Tone::Good, "Ready"),
        _ => screen.paint(Tone::Bad, &format!("Not ready: {}", output::count(problems, "problem"))),
    };
    match (problems, warnings) {
        (_, 0) => verdict + ".",
        (0, _) => format!("{verdict}: {}.", output::count(warnings, "warning")),
        _ => format!("{verdict}, {}.", output::count(warnings, "warning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::probe::Fix;

    fn finding(name: &'static str, status: Severity) -> Finding {
        Finding { name, status, found: "found".into(), explanation: None, fixes: Vec::new() }
    }

    fn fix(purpose: &'static str, command: &str) -> Fix {
        Fix { purpose, command: command.to_owned() }
    }

    #[test]
    fn host_without_problems_is_ready() {
        let text = render(&[finding("CPU", Severity::Ok)], Screen::PLAIN);
        assert_eq!(text, "✓ CPU              found\n\nReady.");
    }

    #[test]
    fn fix_commands_are_below_their_finding() {
        let mut missing = finding("/dev/kvm", Severity::Fail);
        missing.fixes = vec![fix("for good", "sudo one"), fix("for now", "sudo two")];
        let text = render(&[missing, finding("passt", Severity::Warn)], Screen::PLAIN);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "✗ /dev/kvm         found",
                "                   → for good:",
                "                       sudo one",
                "                   → for now:",
                "                       sudo two",
                "! passt            found",
                "",
                "Not ready: 1 problem, 1 warning.",
            ]
        );
    }

    #[test]
    fn explanations_are_wrapped_and_commands_are_not() {
        let mut missing = finding("Memory", Severity::Warn);
        missing.explanation = Some("word ".repeat(40));
        missing.fixes = vec![fix("for good", &"x".repeat(90))];
        let lines = finding_lines(&missing, Screen { width: Some(60), color: false });
        let (command, others) = lines.split_last().expect("several lines");
        assert!(others.iter().all(|line| line.chars().count() <= 60), "{others:?}");
        assert!(command.ends_with(&"x".repeat(90)));
    }

    #[test]
    fn only_failed_checks_prevent_guests() {
        assert!(can_run_guests(&[finding("a", Severity::Ok), finding("b", Severity::Warn)]));
        assert!(!can_run_guests(&[finding("a", Severity::Ok), finding("b", Severity::Fail)]));
    }

    #[test]
    fn json_report_has_documented_fields() {
        let findings = [finding("CPU", Severity::Ok)];
        let report = Report { can_run_guests: true, software_kvm: false, findings: &findings };
        assert_eq!(
            serde_json::to_value(&report).expect("plain data"),
            serde_json::json!({
                "CanRunGuests": true,
                "SoftwareKvm": false,
                "Findings": [{ "Name": "CPU", "Status": "ok", "Found": "found" }],
            })
        );
    }
}

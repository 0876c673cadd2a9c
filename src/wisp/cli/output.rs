//! Output of all subcommands: tables, JSON, errors with hints, and the suggested next command.
//!
//! Results go to standard output and messages to standard error, so that a pipe carries only results. Colors are used
//! only on terminals, unless `NO_COLOR` is set or `TERM` is `dumb`.
//!
//! Control characters in names, paths and messages are [escaped](super::escape), even in pipes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Attribute, CellAlignment, Color, ContentArrangement, LineStyle, TableStyle};
use serde::Serialize;

use super::escape::{escape, escape_json, escape_line, escape_output};
use super::query;
use cloud::CloudError;
use ec2::Ec2Error;
pub use ec2::size::approximate_bytes as bytes;
use node::instance::MachineError;
use node::probe::{Fix, KvmAccessError};
use node::shell;

/// The kind of output that a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people, as tables and text.
    Table,
    /// For programs, the responses of the EC2 API, [rendered](query::render) as the user chose.
    Json,
}

/// The properties of an output stream that affect formatting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// The width in columns; `None` if the stream is not a terminal.
    pub width: Option<usize>,
    /// True if colors are shown.
    pub color: bool,
}

impl Screen {
    /// The properties of a pipe or a file.
    pub const PLAIN: Screen = Screen { width: None, color: false };

    /// Returns the properties of standard output.
    pub fn stdout() -> Self {
        Screen::of(&io::stdout())
    }

    /// Returns the properties of standard error.
    pub fn stderr() -> Self {
        Screen::of(&io::stderr())
    }

    fn of(stream: &(impl IsTerminal + rustix::fd::AsFd)) -> Self {
        if !stream.is_terminal() {
            return Screen::PLAIN;
        }
        let columns = rustix::termios::tcgetwinsize(stream).map_or(0, |size| size.ws_col);
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Screen { width: Some(if columns == 0 { 80 } else { columns.into() }), color: !is_set("NO_COLOR") && !is_dumb }
    }

    /// Styles `text` for a tone if colors are shown. Control characters are escaped in any case.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let text = escape_line(text);
        let code = match tone {
            Tone::Plain => return text.into_owned(),
            Tone::Strong => "1",
            Tone::Quiet => "2",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into_owned() }
    }
}

/// The meaning of a text style. Output must be understandable without styles, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// No emphasis.
    #[default]
    Plain,
    /// Emphasis.
    Strong,
    /// De-emphasis.
    Quiet,
    /// Success.
    Good,
    /// A warning.
    Warning,
    /// A failure.
    Bad,
}

/// A cell of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Creates a cell in a tone; control characters are escaped.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Cell { text: escape_line(&text.into()).into_owned(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(text, Tone::Plain)
    }
}

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// A table without rules or wrapping. Two spaces separate its columns, so that `grep` and `awk` can process it.
pub struct Table {
    table: comfy_table::Table,
    columns: Vec<Align>,
}

impl Table {
    /// Creates an empty table with these columns.
    pub fn new(screen: Screen, columns: &[(&str, Align)]) -> Self {
        let mut table = comfy_table::Table::new();
        let nothing = LineStyle::none();
        let style = TableStyle::new().header_separator(nothing).row_separator(nothing);
        table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
        if screen.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let mut table = Table { table, columns: columns.iter().map(|(_, align)| *align).collect() };
        let titles = columns.iter().map(|(title, _)| Cell::new(*title, Tone::Quiet)).collect();
        let titles = table.styled(titles);
        table.table.set_header(titles);
        for column in table.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    /// Adds a row with one cell per column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        let cells = self.styled(cells);
        self.table.add_row(cells);
    }

    /// Returns the title line and one line per row.
    pub fn lines(&self) -> Vec<String> {
        self.table.trim_fmt().lines().map(str::to_owned).collect()
    }

    fn styled(&self, cells: Vec<Cell>) -> Vec<comfy_table::Cell> {
        let columns = self.columns.iter();
        cells.into_iter().zip(columns).map(|(cell, align)| styled(cell, *align)).collect()
    }
}

fn styled(cell: Cell, align: Align) -> comfy_table::Cell {
    let styled = comfy_table::Cell::new_owned(cell.text).set_alignment(match align {
        Align::Left => CellAlignment::Left,
        Align::Right => CellAlignment::Right,
    });
    match cell.tone {
        Tone::Plain => styled,
        Tone::Strong => styled.add_attribute(Attribute::Bold),
        Tone::Quiet => styled.add_attribute(Attribute::Dim),
        Tone::Good => styled.fg(Color::DarkGreen),
        Tone::Warning => styled.fg(Color::DarkYellow),
        Tone::Bad => styled.fg(Color::DarkRed),
    }
}

/// Prints results as a table.
pub fn print_table(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<Cell>>) -> io::Result<()> {
    let mut table = Table::new(Screen::stdout(), columns);
    rows.into_iter().for_each(|cells| table.row(cells));
    print(&table.lines().join("\n"))
}

/// Prints results. Succeeds if the reader, such as `head`, closes the pipe early.
pub fn print(text: &str) -> io::Result<()> {
    print_raw(&escape_output(text))
}

/// Clears the terminal.
pub fn clear_screen() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(b"\x1b[H\x1b[2J").and_then(|()| stdout.flush())
}

fn print_raw(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| match text.ends_with('\n') {
        true => Ok(()),
        false => stdout.write_all(b"\n"),
    });
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a response for programs: all of it as JSON, unless the user chose text or a part of it.
pub fn print_json(response: &impl Serialize) -> anyhow::Result<()> {
    let rendered = query::render(response)?;
    // Text that a user or a guest chose can contain control characters; JSON has escapes for them.
    match query::is_text() {
        true => print(&rendered)?,
        false => print_raw(&escape_json(&rendered))?,
    }
    Ok(())
}

/// Returns a JSON object with one member.
pub fn member(name: &str, value: impl Serialize) -> impl Serialize {
    BTreeMap::from([(name, value)])
}

/// Suggests the next useful command, given as words without `wisp`.
pub fn next_command<'a>(words: impl IntoIterator<Item = &'a str>) {
    next(&shell::command(words));
}

/// Suggests the next useful command, without `wisp`. Use [`next_command`] for words that a user or a guest has chosen,
/// because it quotes them.
pub fn next(command: &str) {
    let label = Screen::stderr().paint(Tone::Quiet, "Next:");
    say(&format!("{label} wisp {command}"));
}

/// Prints a message to standard error and ignores failures.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", escape_output(text));
}

/// Prints an error with its hint.
pub fn print_error(error: &anyhow::Error) {
    say(&error_text(error, Screen::stderr()));
}

/// Formats an error with its causes, without repetitions.
fn explain(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .map(ToString::to_string)
        .fold(error.to_string(), |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}

fn error_text(error: &anyhow::Error, screen: Screen) -> String {
    let mut text = format!("{} {}", screen.paint(Tone::Bad, "error:"), escape(&explain(error)));
    for cause in error.chain() {
        // If a transparent cloud error contains another error, the chain does not include the other error.
        let of_cloud = cause.downcast_ref::<CloudError>().and_then(CloudError::hint);
        let of_machine = cause.downcast_ref::<MachineError>().and_then(MachineError::hint);
        let of_ec2 = cause.downcast_ref::<Ec2Error>().and_then(Ec2Error::hint).map(str::to_owned);
        if let Some(hint) = of_ec2.or(of_cloud).or(of_machine) {
            let label = screen.paint(Tone::Quiet, "hint:");
            let _ = write!(text, "\n{label}  {}", escape(&hint));
        }
        if let Some(access) = cause.downcast_ref::<KvmAccessError>() {
            for line in fix_lines(&access.fixes(), screen) {
                let _ = write!(text, "\n  {line}");
            }
        }
    }
    text
}

/// Formats commands that fix a problem. If there are several, each is below its purpose. Commands are never wrapped, so
/// that they can be copied.
pub fn fix_lines(fixes: &[Fix], screen: Screen) -> Vec<String> {
    let command = |fix: &Fix| screen.paint(Tone::Strong, &fix.command);
    match fixes {
        [only] => vec![format!("→ {}", command(only))],
        several => {
            several.iter().flat_map(|fix| [format!("→ {}:", fix.purpose), format!("    {}", command(fix))]).collect()
        }
    }
}

/// Wraps text at spaces to lines of up to `width` characters. A longer word gets its own line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let needed = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && needed > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// Formats a duration in suitable units: `85 µs`, `9.1 ms`, `1.25 s`, `2 min 5 s`, `3 h 4 min`, `2 d 3 h`.
pub fn duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        small => format!("{large} {large_unit} {small} {small_unit}"),
    };
    let micros = duration.as_micros();
    let seconds = duration.as_secs();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{}.{} ms", micros / 1_000, micros / 100 % 10),
        100_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..60_000_000 => format!("{}.{:02} s", seconds, micros / 10_000 % 100),
        _ if seconds < HOUR => pair(seconds / MINUTE, "min", seconds % MINUTE, "s"),
        _ if seconds < DAY => pair(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min"),
        _ => pair(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
    }
}

/// Formats a count with its noun: `1 volume`, `2 volumes`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::{ErrorCode, catalog};
    use machine::control::ClientError;
    use node::instance::Failure;

    const COLOR: Screen = Screen { width: Some(80), color: true };

    fn table(screen: Screen) -> Vec<String> {
        let mut table = Table::new(screen, &[("NAME", Align::Left), ("vCPUs", Align::Right)]);
        table.row(vec![Cell::new("web", Tone::Strong), "2".into()]);
        table.row(vec!["database".into(), "16".into()]);
        table.lines()
    }

    #[test]
    fn table_columns_are_aligned_without_rules() {
        assert_eq!(table(Screen::PLAIN), ["NAME      vCPUs", "web           2", "database     16"]);
    }

    #[test]
    fn table_is_colored_only_on_color_screen() {
        assert!(table(COLOR)[1].contains("\x1b[1m"));
        assert!(table(Screen::PLAIN).iter().all(|line| !line.contains('\x1b')));
    }

    const HOSTILE: &str = "web\x1b]0;title\x07\u{9b}2J\u{202e}\nState running";
    const ESCAPED: &str = "web\\x1b]0;title\\x07\\u{9b}2J\\u{202e}\\nState running";

    #[test]
    fn hostile_text_in_cell_and_style_is_escaped() {
        for tone in [Tone::Plain, Tone::Strong, Tone::Quiet, Tone::Good, Tone::Warning, Tone::Bad] {
            for screen in [Screen::PLAIN, COLOR] {
                let mut table = Table::new(screen, &[("NAME", Align::Left)]);
                table.row(vec![Cell::new(HOSTILE, tone)]);
                for text in [table.lines()[1].clone(), screen.paint(tone, HOSTILE)] {
                    assert!(text.contains(ESCAPED), "{text:?}");
                    // Wisp's own styles reach the terminal.
                    assert_eq!(escape_output(&text), text);
                }
            }
        }
    }

    #[test]
    fn hostile_text_in_error_and_hint_is_escaped() {
        let text = error_text(&anyhow::anyhow!("{HOSTILE}").context("\x1b[31mred"), COLOR);
        assert!(text.contains(&ESCAPED.replace("\\n", "\n")) && text.contains("\\x1b[31mred"), "{text:?}");
        let error = Ec2Error::refused(ErrorCode::InvalidParameterValue, "x", Some(HOSTILE.into()));
        let text = error_text(&anyhow::Error::new(error), Screen::PLAIN);
        assert!(text.contains(&ESCAPED.replace("\\n", "\n")), "{text:?}");
    }

    #[test]
    fn error_with_context_keeps_hint() {
        let unknown = catalog::find("t3.micr0").expect_err("unknown");
        let error = anyhow::Error::new(unknown).context("nothing was launched");
        assert_eq!(
            error_text(&error, Screen::PLAIN),
            "error: nothing was launched: InvalidParameterValue: \
             Invalid value 't3.micr0' for InstanceType.\nhint:  Did you mean t3.micro?"
        );
        let of_cloud = anyhow::Error::new(CloudError::from(catalog::find("t3.micr0").expect_err("unknown")));
        assert!(error_text(&of_cloud, Screen::PLAIN).ends_with("\nhint:  Did you mean t3.micro?"));
    }

    #[test]
    fn error_of_machine_keeps_hint() {
        let failure = Failure::Control(ClientError::Io(io::ErrorKind::TimedOut.into()));
        let error = MachineError { instance: "i-0123456789abcdef0".parse().ok(), failure };
        let text = error_text(&anyhow::Error::new(error), Screen::PLAIN);
        assert!(text.ends_with("Kill it with `wisp stop --force i-0123456789abcdef0`."), "{text}");
    }

    #[test]
    fn kvm_access_error_shows_fix_command() {
        let error = anyhow::Error::new(KvmAccessError::NodeMissing);
        let text = error_text(&error, Screen::PLAIN);
        assert!(text.ends_with("\n  → sudo mknod -m 0660 /dev/kvm c 10 232"), "{text}");
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable no", 4), ["unbreakable", "no"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn duration_uses_suitable_units() {
        let shown = |micros| duration(Duration::from_micros(micros));
        assert_eq!(shown(85), "85 µs");
        assert_eq!(shown(9_150), "9.1 ms");
        assert_eq!(shown(380_000), "380 ms");
        assert_eq!(shown(1_259_999), "1.25 s");
        assert_eq!(shown(125_000_000), "2 min 5 s");
        assert_eq!(shown(3_600_000_000), "1 h");
        assert_eq!(shown(183_600_000_000), "2 d 3 h");
        assert!(duration(Duration::MAX).ends_with(" h"));
    }
}

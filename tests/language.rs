//! A lint for plain English: doc comments that start with a question word, and phrases that avoid a term of the field.
//!
//! The budget of each area of the repository may only decrease: rewrite a line instead of raising a number.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that a doc comment must not start with: it starts with a verb or a noun phrase.
const QUESTION_WORDS: [&str; 8] = ["What", "Who", "Whose", "Which", "Where", "How", "Whether", "Why"];

/// Phrases that avoid a term of the field, such as "restore", "fix", "backing file" or "uplink".
const BANNED: [&str; 16] = [
    "go on from",
    "goes on from",
    "gone on",
    "nobody",
    "somebody",
    "whoever",
    "is told",
    "that is had",
    "is to be",
    "let nobody",
    "lets nobody",
    "way out",
    "beneath",
    "of one's own",
    "may begin",
    "for a while",
];

/// Areas of the repository, each with its budgets: doc comments that start with a question word, and banned phrases.
const BUDGETS: [(&str, usize, usize); 14] = [
    ("src/cloud", 0, 0),
    ("src/disk", 0, 0),
    ("src/ec2", 0, 0),
    ("src/machine", 0, 0),
    ("src/netstack", 0, 0),
    ("src/node", 0, 10),
    ("src/store", 0, 0),
    ("src/vmm", 0, 0),
    ("src/wisp", 0, 0),
    ("images", 0, 2),
    ("tests", 0, 17),
    ("docs", 0, 2),
    ("benches", 0, 0),
    ("fuzz", 0, 0),
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    questions: usize,
    banned: usize,
}

/// Adds the Rust and Markdown files below `directory` to `found`.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&name) {
                files(&path, found);
            }
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            found.push(path);
        }
    }
}

fn count(text: &str) -> Count {
    let mut count = Count::default();
    let mut in_comment = false;
    for line in text.lines() {
        let comment = line.trim_start().strip_prefix("///").or_else(|| line.trim_start().strip_prefix("//!"));
        if let Some(comment) = comment.filter(|_| !in_comment) {
            let first = comment.trim_start().split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
            count.questions += usize::from(QUESTION_WORDS.contains(&first));
        }
        in_comment = comment.is_some();
        let line = line.to_lowercase();
        count.banned += BANNED.iter().map(|phrase| occurrences(&line, phrase)).sum::<usize>();
    }
    count
}

/// Counts the occurrences of a phrase as whole words.
fn occurrences(line: &str, phrase: &str) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: usize| {
        let before = line[..at].chars().next_back();
        let after = line[at + phrase.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    line.match_indices(phrase).filter(|(at, _)| whole(*at)).count()
}

#[test]
fn count_finds_question_words_and_banned_phrases() {
    let text = "/// Which disk.\n/// Where it continues.\nstruct A;\n// Nobody is told, for a while.\n/// A disk. Which one.\n";
    assert_eq!(count(text), Count { questions: 1, banned: 3 });
    assert_eq!(count("/// Whichever disk.\n// nobody_waits\n"), Count::default());
}

#[test]
fn text_stays_within_its_budget() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&root, &mut found);
    assert!(found.len() > 300, "only {} files were found", found.len());
    let area = |path: &Path| {
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
        // If areas are nested, the innermost one applies.
        let areas = BUDGETS.iter().filter(|(area, ..)| path.starts_with(area));
        areas.max_by_key(|(area, ..)| area.len()).map(|(area, ..)| *area)
    };
    let mut over = Vec::new();
    for (name, questions, banned) in BUDGETS {
        let paths = found.iter().filter(|path| area(path) == Some(name));
        let mut sum = Count::default();
        for path in paths {
            // This file contains the phrases as data.
            if path.ends_with("tests/language.rs") {
                continue;
            }
            let Count { questions, banned } = count(&fs::read_to_string(path).unwrap());
            sum.questions += questions;
            sum.banned += banned;
        }
        if sum.questions > questions || sum.banned > banned {
            over.push(format!("{name}: {sum:?}, but the budget is {questions} and {banned}"));
        }
    }
    for path in &found {
        let Count { questions, banned } =
            if area(path).is_none() { count(&fs::read_to_string(path).unwrap()) } else { Count::default() };
        if questions + banned > 0 {
            over.push(format!(
                "{}: {questions} doc comments start with a question word, {banned} banned phrases",
                path.display()
            ));
        }
    }
    assert!(over.is_empty(), "rewrite these texts in plain English:\n{}", over.join("\n"));
}

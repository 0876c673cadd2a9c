//! The operations that nouns share: list, show and remove resources.

use std::fmt::Display;

use serde::Serialize;

use super::output::{self, Align, Cell, Output};
use cloud::CloudError;

/// A resource that commands list and show.
pub trait Resource: Sized + 'static {
    /// The name of the list in EC2's response.
    const LIST: &'static str;
    const COLUMNS: &'static [Column<Self>];

    /// Returns the shape of EC2's API.
    fn shape(&self) -> impl Serialize;

    /// Returns EC2's response to a change of the resource.
    fn response(&self) -> impl Serialize {
        self.shape()
    }

    /// Returns EC2's response to a request that describes resources.
    fn list_response(resources: &[Self]) -> impl Serialize {
        output::member(Self::LIST, resources.iter().map(Self::shape).collect::<Vec<_>>())
    }
}

/// A column of a table of resources.
pub struct Column<R> {
    title: &'static str,
    align: Align,
    cell: fn(&R) -> Cell,
}

impl<R> Column<R> {
    pub const fn left(title: &'static str, cell: fn(&R) -> Cell) -> Self {
        Column { title, align: Align::Left, cell }
    }

    pub const fn right(title: &'static str, cell: fn(&R) -> Cell) -> Self {
        Column { title, align: Align::Right, cell }
    }
}

/// Prints resources.
pub fn list<R: Resource>(resources: &[R], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&R::list_response(resources));
    }
    let titles: Vec<_> = R::COLUMNS.iter().map(|column| (column.title, column.align)).collect();
    let row = |resource| R::COLUMNS.iter().map(|column| (column.cell)(resource)).collect();
    Ok(output::print_table(&titles, resources.iter().map(row))?)
}

/// Prints a resource after a change, as JSON or as `summary`. Then suggests the next useful command, if `next` has words.
pub fn show<R: Resource>(resource: &R, summary: &str, next: &[&str], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        return output::print_json(&resource.response());
    }
    output::print(summary)?;
    if !next.is_empty() {
        output::next_command(next.iter().copied());
    }
    Ok(())
}

/// Removes the referenced resources and prints a line for each. `remove` returns the text that identifies a resource.
pub fn remove<I: Display>(
    references: &[String],
    done: &str,
    output: Output,
    mut remove: impl FnMut(&str) -> Result<I, CloudError>,
) -> anyhow::Result<()> {
    for reference in references {
        let removed = remove(reference)?;
        if output == Output::Table {
            output::print(&format!("{removed}  {done}"))?;
        }
    }
    Ok(())
}

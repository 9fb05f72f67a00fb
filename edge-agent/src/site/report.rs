//! Collects errors with their places and adds what the source line itself tells about paste damage.

use edge_api::agent::ValidationError;

use super::damage;
use super::syntax;
use super::tree::{Node, Place};

/// More would not help anybody, and a hostile file could ask for millions.
const MAX_ERRORS: usize = 100;

/// The errors found so far in one text.
pub struct Report<'t> {
    lines: Vec<&'t str>,
    errors: Vec<ValidationError>,
    dropped: usize,
    /// Paste damage of the line that was looked at last: a line may be long, and hold many errors.
    damage: (u32, Option<String>),
}

impl<'t> Report<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { lines: syntax::lines(text).collect(), errors: Vec::new(), dropped: 0, damage: (0, None) }
    }

    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// True where nothing more would be kept; finding out more about an error is then a waste.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// The source line at a place, without its line break.
    pub fn line(&self, line: u32) -> &'t str {
        (line as usize).checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or_default()
    }

    /// Adds an error at a node's place.
    pub fn at(&mut self, node: &Node, found: impl Into<String>, expected: impl Into<String>, hint: Option<&str>) {
        self.add(node.place, node.path.clone(), found, expected, hint);
    }

    /// Adds an error. Where it comes without a hint, the source line is searched for paste damage.
    pub fn add(
        &mut self,
        place: Place,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: Option<&str>,
    ) {
        if self.is_full() {
            self.dropped += 1;
            return;
        }
        // Damage explains more than any hint about the field, which would be about a symptom.
        if self.damage.0 != place.line {
            self.damage = (place.line, damage::hint(self.line(place.line)));
        }
        let hint = self.damage.1.clone().or_else(|| hint.map(str::to_owned));
        self.errors.push(ValidationError {
            line: place.line,
            column: place.column,
            field: field.into(),
            found: found.into(),
            expected: expected.into(),
            hint,
        });
    }

    /// Adds an error that has no place.
    pub fn unplaced(&mut self, found: &str, expected: &str) {
        self.add(Place { line: 0, column: 0 }, "", found, expected, None);
    }

    /// All errors by place; the same place and field is reported once.
    pub fn finish(&mut self) -> Vec<ValidationError> {
        let mut errors = std::mem::take(&mut self.errors);
        errors.sort_by_key(|error| (error.line, error.column));
        errors.dedup_by(|later, earlier| {
            (later.line, later.column, &later.field, &later.expected)
                == (earlier.line, earlier.column, &earlier.field, &earlier.expected)
        });
        if self.dropped > 0 {
            errors.push(ValidationError {
                line: 0,
                column: 0,
                field: String::new(),
                found: format!("{} more errors", self.dropped),
                expected: "a file without errors".to_owned(),
                hint: Some("correct the first ones, then check again".to_owned()),
            });
        }
        errors
    }
}

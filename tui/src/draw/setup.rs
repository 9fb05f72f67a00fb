//! What a person sees in front of a box that waits for its site file.

use edge_api::agent::SiteFileState;
use ratatui::text::Line;

use super::overview::Row;
use super::theme;
use crate::state::State;
use crate::text::{clean, wrap};

/// What to do, above the errors of the file.
pub fn rows(state: &State, columns: usize) -> Vec<Row> {
    let Some(status) = &state.status else { return Vec::new() };
    let file = &status.site_file;
    let path = clean(&file.path);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut rows = vec![Row::text("")];
    let mut paragraph = |text: &str, style| {
        rows.extend(wrap(text, columns).into_iter().map(|line| Row::text(Line::styled(line, style))));
    };
    paragraph("This appliance waits for its site file:", theme::PLAIN);
    paragraph(&path, theme::STRONG);
    paragraph("", theme::PLAIN);
    match file.state {
        SiteFileState::Invalid => {
            paragraph(
                "The file is there, and is refused. Correct the errors below; it is read again by itself.",
                theme::BAD,
            );
            paragraph(&format!("`edgectl validate {path}` shows them with their lines."), theme::HINT);
        }
        SiteFileState::Absent | SiteFileState::Applied => {
            paragraph(&format!("A commented template lies beside it: {folder}/unattended.template.yaml"), theme::PLAIN);
            paragraph(
                "As root, here or over SSH: copy the template, edit the copy, and put it there under that name. \
                 The installation starts by itself.",
                theme::PLAIN,
            );
            paragraph("`edgectl validate FILE` checks a file before, `edgectl apply FILE` puts it there.", theme::HINT);
        }
    }
    paragraph("", theme::PLAIN);
    rows
}

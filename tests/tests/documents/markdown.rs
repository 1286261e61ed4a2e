//! What is looked at of a document: its links, its blocks of code, and the names in single quotes.

use std::path::{Path, PathBuf};

/// One document.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// Its path from the root.
    pub(crate) name: String,
    /// Where its links lead.
    pub(crate) links: Vec<String>,
    /// Lines of blocks of code, without indentation.
    pub(crate) code: Vec<String>,
    /// Texts between backquotes.
    pub(crate) names: Vec<String>,
}

impl Document {
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut document = Self { name: name.to_owned(), ..Self::default() };
        let mut fenced = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced || line.starts_with("    ") {
                document.code.push(line.trim().to_owned());
            } else {
                document.read(line);
            }
        }
        document
    }

    fn read(&mut self, line: &str) {
        for (index, part) in line.split('`').enumerate() {
            if index % 2 == 1 {
                self.names.push(part.to_owned());
            }
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let (link, more) = after.split_once(')').unwrap();
            self.links.push(link.to_owned());
            rest = more;
        }
    }
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All documents that are written by hand.
pub(crate) fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    collect(&root(), &mut paths);
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        Document::parse(&name, &std::fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, out);
        } else if name.ends_with(".md") {
            out.push(path);
        }
    }
}

/// The anchors of the headings of a text, as GitHub makes them.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len() && title.starts_with(' ')).then(|| title.trim().to_lowercase())
    };
    let slug = |title: String| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines().filter_map(heading).map(slug).collect()
}

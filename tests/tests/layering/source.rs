//! Reads the workspace's source. For each file: its module, the paths it names, its `unsafe` lines, its length.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// A path that a file names.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) line: usize,
    /// The path, starting with the crate's name.
    pub(crate) path: String,
    /// Whether it stands in a module compiled for tests only.
    pub(crate) in_test: bool,
    /// Whether this module re-exports it with `pub use`.
    pub(crate) exported: bool,
}

/// One source file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    /// The path, starting with the crate's name. Binaries, examples and integration tests are `crate.bin`,
    /// `crate.tests`.
    pub(crate) module: String,
    pub(crate) names: Vec<Name>,
    /// Paths that may be relative to this module, starting with the crate's name.
    pub(crate) below: Vec<Name>,
    pub(crate) unsafe_lines: Vec<usize>,
    /// Lines outside of modules compiled for tests only.
    pub(crate) lines: usize,
    /// Modules in files of their own that are compiled for tests only.
    test_modules: Vec<String>,
}

/// All source files of the workspace.
pub(crate) fn files() -> Vec<File> {
    let root = root();
    let mut paths = Vec::new();
    collect(&root, ".rs", &mut paths);
    let mut files: Vec<File> = paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let shown = path.strip_prefix(&root).unwrap().display().to_string();
            File::parse(&shown, &module_of(&root, path), &text)
        })
        .collect();
    // Modules that a file declares for tests only lie in other files.
    let tests: BTreeSet<String> = files.iter().flat_map(|file| file.test_modules.clone()).collect();
    for file in &mut files {
        if tests.iter().any(|test| super::covers(test, &file.module)) {
            file.names.iter_mut().chain(&mut file.below).for_each(|name| name.in_test = true);
            file.lines = 0;
        }
    }
    files
}

/// The settings of the release profile of a manifest.
pub(crate) fn release_profile(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != "[profile.release]").skip(1);
    lines.take_while(|line| line.contains('=')).map(String::from).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Collects files below a folder whose names end with `end`, in order.
fn collect(folder: &Path, end: &str, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().to_string();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, end, out);
            }
        } else if name.ends_with(end) {
            out.push(path);
        }
    }
}

/// Returns the module of a file, with its crate under the name that the law uses.
fn module_of(root: &Path, path: &Path) -> String {
    let package = path.ancestors().find(|folder| folder.join("Cargo.toml").is_file()).unwrap();
    let inside = path.strip_prefix(package).unwrap().with_extension("");
    let mut steps: Vec<String> =
        inside.iter().map(|step| step.to_string_lossy().to_string()).collect();
    if matches!(steps.last().unwrap().as_str(), "mod" | "lib" | "main") {
        steps.pop();
    }
    let folder = package.strip_prefix(root).unwrap().display().to_string();
    let name = match folder.as_str() {
        "drivers/client" => "iommu_client".to_string(),
        "drivers/redox-dma" => "redox_dma".to_string(),
        _ if folder.starts_with("drivers/") => "drivers".to_string(),
        _ if folder.starts_with("tests/vm/") => "guests".to_string(),
        _ => package_name(package),
    };
    // Binaries and integration tests are crates of their own.
    match steps.first().map(String::as_str) {
        Some("src") if steps.get(1).is_some_and(|step| step == "bin") => format!("{name}.bin"),
        Some("src") => {
            steps[0] = name;
            steps.join("::")
        }
        Some("build") | None => name,
        Some(other) => format!("{name}.{other}"),
    }
}

fn package_name(package: &Path) -> String {
    let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
    let line = manifest.lines().find(|line| line.starts_with("name = ")).unwrap();
    line.trim_start_matches("name = ").trim_matches('"').replace('-', "_")
}

impl File {
    pub(crate) fn parse(path: &str, module: &str, text: &str) -> Self {
        let mut file = Self {
            path: path.to_string(),
            module: module.to_string(),
            names: Vec::new(),
            below: Vec::new(),
            unsafe_lines: Vec::new(),
            lines: text.lines().count(),
            test_modules: Vec::new(),
        };
        let tokens = TokenStream::from_str(text).expect(path);
        file.walk(tokens, module, false);
        file
    }

    fn walk(&mut self, tokens: TokenStream, module: &str, in_test: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut test_attribute = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    let text = tokens.get(at + 1).map(ToString::to_string).unwrap_or_default();
                    test_attribute |= text.replace(' ', "") == "[cfg(test)]";
                    at += 1;
                }
                TokenTree::Ident(ident) if ident == "pub" => {
                    // Skips the visibility, which names no dependency.
                    at += 1 + usize::from(is_parenthesis(tokens.get(at + 1)));
                    if tokens.get(at).is_some_and(|token| token.to_string() == "use") {
                        let (names, below) = (self.names.len(), self.below.len());
                        at = self.walk_path(&tokens, at + 1, &[], module, in_test);
                        let new = self.names.iter_mut().skip(names);
                        new.chain(self.below.iter_mut().skip(below))
                            .for_each(|name| name.exported = true);
                    }
                }
                TokenTree::Ident(ident) if ident == "mod" => {
                    at = self.walk_module(&tokens, at, module, in_test, test_attribute);
                    test_attribute = false;
                }
                TokenTree::Ident(ident) => {
                    if ident == "unsafe" {
                        self.unsafe_lines.push(ident.span().start().line);
                    }
                    if !matches!(ident.to_string().as_str(), "pub" | "crate") {
                        test_attribute = false;
                    }
                    at = self.walk_path(&tokens, at, &[], module, in_test);
                }
                TokenTree::Group(group) => {
                    let attribute = group.delimiter() == Delimiter::Bracket;
                    self.walk(group.stream(), module, in_test);
                    test_attribute &= attribute || group.delimiter() == Delimiter::Parenthesis;
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Handles `mod name;` or `mod name { .. }`. Returns the index behind it.
    fn walk_module(
        &mut self,
        tokens: &[TokenTree],
        at: usize,
        module: &str,
        in_test: bool,
        test_attribute: bool,
    ) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else { return at + 1 };
        let inner = format!("{module}::{name}");
        match tokens.get(at + 2) {
            Some(TokenTree::Group(group)) => {
                if test_attribute {
                    let lines = group.span_close().end().line - group.span_open().start().line;
                    self.lines -= lines;
                }
                self.walk(group.stream(), &inner, in_test || test_attribute);
            }
            _ if test_attribute => self.test_modules.push(inner),
            _ => {}
        }
        at + 3
    }

    /// Reads a path that starts at `at`, or continues there after `before`. Returns the index behind it.
    fn walk_path(
        &mut self,
        tokens: &[TokenTree],
        mut at: usize,
        before: &[String],
        module: &str,
        in_test: bool,
    ) -> usize {
        let mut steps = before.to_vec();
        let line = tokens[at].span().start().line;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => {
                    steps.push(ident.to_string().trim_start_matches("r#").to_string());
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.walk_group(group.stream(), &steps, module, in_test);
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            if !is_path_separator(tokens, at) {
                break;
            }
            at += 2;
        }
        let name = |path| Name { line, path, in_test, exported: false };
        if let Some(path) = resolve(&steps, module, before.is_empty()) {
            self.names.push(name(path));
        } else if steps.len() > 1 {
            self.below.push(name(format!("{module}::{}", steps.join("::"))));
        }
        at
    }

    /// Reads the branches of `prefix::{..}`.
    fn walk_group(&mut self, tokens: TokenStream, prefix: &[String], module: &str, in_test: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = match &tokens[at] {
                TokenTree::Ident(ident) if ident == "as" => at + 2,
                TokenTree::Ident(_) => self.walk_path(&tokens, at, prefix, module, in_test),
                _ => at + 1,
            };
        }
    }
}

fn is_parenthesis(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis)
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at: usize, spacing: Option<Spacing>| match tokens.get(at) {
        Some(TokenTree::Punct(punct)) => {
            punct.as_char() == ':' && spacing.is_none_or(|spacing| punct.spacing() == spacing)
        }
        _ => false,
    };
    colon(at, Some(Spacing::Joint)) && colon(at + 1, None)
}

/// Crates that a path may start with: every dependency of every manifest, and the language's own.
fn crates() -> &'static BTreeSet<String> {
    static CRATES: OnceLock<BTreeSet<String>> = OnceLock::new();
    CRATES.get_or_init(|| {
        let mut manifests = Vec::new();
        collect(&root(), "Cargo.toml", &mut manifests);
        let mut names: BTreeSet<String> =
            ["core", "alloc", "std", "iommud_tests"].map(String::from).into();
        for manifest in manifests {
            let text = fs::read_to_string(manifest).unwrap();
            let mut inside = false;
            for line in text.lines() {
                if line.starts_with('[') {
                    inside = line.contains("dependencies");
                } else if inside && !line.is_empty() && !line.starts_with('#') {
                    let end = line.find(['=', '.', ' ']).unwrap_or(line.len());
                    names.insert(line[..end].replace('-', "_"));
                }
            }
        }
        names
    })
}

/// Returns the absolute path, starting with the crate's name. `None` for a path relative to the module, and for
/// single words.
fn resolve(steps: &[String], module: &str, whole: bool) -> Option<String> {
    if whole && steps.len() < 2 {
        return None;
    }
    let mut from: Vec<&str> = module.split("::").collect();
    let mut rest = steps.iter().map(String::as_str).peekable();
    match *rest.peek()? {
        "crate" => {
            rest.next();
            from.truncate(1);
        }
        "self" => {
            rest.next();
        }
        "super" => {
            while rest.next_if_eq(&"super").is_some() {
                from.pop();
            }
        }
        first if crates().contains(first) => from.clear(),
        _ => return None,
    }
    from.extend(rest.filter(|step| *step != "self"));
    Some(from.join("::"))
}

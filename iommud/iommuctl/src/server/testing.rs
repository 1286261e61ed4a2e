//! A server that is a list of texts.

use std::collections::BTreeMap;

use iommu_client::{Error, Refusal};

use super::Texts;

/// Texts by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fixed(BTreeMap<String, String>);

impl Fixed {
    pub(crate) fn new(texts: &[(&str, &str)]) -> Self {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        Self(texts.iter().map(own).collect())
    }
}

impl Texts for Fixed {
    fn text(&self, path: &str) -> Result<String, Error> {
        self.0.get(path).cloned().ok_or_else(|| Refusal::NotFound.into())
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        let below = |name: &&String| {
            name.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')).is_some()
        };
        let last = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(self.0.keys().filter(below).map(last).collect())
    }
}

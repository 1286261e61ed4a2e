//! The backends over which the shipped server is explored. Their units respond at once, because the explorer examines
//! order, not time.

use super::scene::Scene;
use crate::conformance::{UnderTest, amdvi, vtd};

/// A backend on the units of a scene.
pub trait Backend: UnderTest {
    /// Creates the backend with the units of the scene.
    fn of(scene: &Scene) -> Self;
}

impl Backend for vtd::Subject {
    fn of(scene: &Scene) -> Self {
        let config = crate::vtd::Config {
            levels: if scene.deep { vec![3, 4] } else { vec![3] },
            guest_width: if scene.deep { 48 } else { 39 },
            host_width: if scene.deep { 42 } else { 36 },
            command_time: 0,
            descriptor_time: 0,
            caching_mode: scene.caching_mode,
            coherent: !scene.caching_mode,
            ..crate::vtd::Config::default()
        };
        Self { name: scene.name, config }
    }
}

impl Backend for amdvi::Subject {
    fn of(scene: &Scene) -> Self {
        let config = crate::amdvi::Config {
            levels: 4,
            guest_width: 48,
            host_width: if scene.deep { 42 } else { 36 },
            command_time: 0,
            switch_time: 0,
            entry_time: 0,
            caches_absent: scene.caching_mode,
            coherent: !scene.caching_mode,
            ..crate::amdvi::Config::default()
        };
        Self { name: scene.name, config, entries: Vec::new(), flags: 0 }
    }
}

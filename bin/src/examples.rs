//! The example fleet, carried inside the binary so that `muster dev` works anywhere.

/// Name and text of every file of `examples/`.
pub(crate) const FILES: [(&str, &str); 3] = [
    ("examples/site.toml", include_str!("../../examples/site.toml")),
    ("examples/training.toml", include_str!("../../examples/training.toml")),
    ("examples/simulation.toml", include_str!("../../examples/simulation.toml")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use muster_core::journal::key::{Dimension, Scope};
    use std::collections::BTreeSet;

    #[test]
    fn the_example_fleet_uses_every_dimension_and_has_exceptions() {
        let fleet = Fleet::parse(FILES).unwrap();
        assert_eq!((fleet.vclusters.len(), fleet.nodes()), (2, 290));
        let keys = fleet.scopes.values().flat_map(|settings| settings.keys());
        let dimensions: BTreeSet<_> = keys.filter_map(muster_core::journal::key::Key::dimension).collect();
        assert_eq!(dimensions.len(), Dimension::ALL.len());
        let exceptions = fleet.scopes.keys().filter(|scope| matches!(scope, Scope::Node(_))).count();
        assert_eq!(exceptions, 46);
    }

    #[test]
    fn an_agent_accepts_every_value_of_the_example_fleet_as_it_is() {
        let fleet = Fleet::parse(FILES).unwrap();
        for (key, said) in fleet.scopes.values().flatten() {
            let checked = muster_core::agent::value::check_setting(key, &said.what);
            assert_eq!(checked.as_ref(), Ok(&said.what), "{key} at {}", said.place);
        }
    }

    #[test]
    fn every_part_of_the_fleet_in_the_folder_is_carried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let there = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut there: Vec<_> = there.filter(|name| !["README.md", "boot.sh"].contains(&name.as_str())).collect();
        there.sort();
        let mut carried: Vec<_> =
            FILES.iter().map(|(name, _)| name.trim_start_matches("examples/").to_owned()).collect();
        carried.sort();
        assert_eq!(there, carried);
    }
}

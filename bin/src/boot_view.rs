//! What a booting node makes of its two phases: the overlay unpacked, the delta laid over it.
//!
//! This is the node's side of the boot protocol, done here so that an operator sees exactly what a node would get.

use crate::exit::Failure;
use crate::{json, text};
use muster_core::journal::document::{self, Document};
use muster_core::journal::key::{Key, Setting};
use muster_core::journal::overlay::BootOverlay;
use muster_net::client::Boot;
use serde_json::{Value, json as object};
use std::collections::BTreeMap;

/// A boot, put together.
pub(crate) struct Assembled {
    /// What the delta says, for programs.
    pub(crate) delta: Value,
    /// What counts on the node, for programs.
    pub(crate) settings: Value,
    /// What the delta says, in a word.
    pub(crate) delta_summary: String,
    /// What counts on the node, and where it comes from.
    pub(crate) table: String,
    /// What counts on the node.
    pub(crate) effective: BTreeMap<Key, Setting>,
}

/// Puts a boot together. Without an overlay (the node holds it) only the delta is there.
pub(crate) fn assemble(boot: &Boot) -> Result<Assembled, Failure> {
    let overlay = boot.overlay.as_ref().map(unpack).transpose()?;
    let delta = read(&boot.delta)?;
    let mut settings: BTreeMap<Key, (Setting, &str)> = BTreeMap::new();
    for (key, setting) in overlay.iter().flat_map(|overlay| &overlay.settings) {
        settings.insert(key.clone(), (setting.clone(), "overlay"));
    }
    for (key, setting) in &delta.settings {
        match setting {
            Setting::Unset => settings.remove(key),
            Setting::Absent | Setting::Value(_) => settings.insert(key.clone(), (setting.clone(), "delta")),
        };
    }
    let rows: Vec<_> = settings
        .iter()
        .map(|(key, (setting, from))| vec![key.to_string(), text::short(&setting.to_string()), (*from).to_owned()])
        .collect();
    let table = if rows.is_empty() { String::new() } else { text::table(&["KEY", "SETTING", "FROM"], &rows) };
    let policy = if delta.policy.is_some() { " and a newer policy" } else { "" };
    let list = settings.iter().map(
        |(key, (setting, from))| object!({ "key": key.as_str(), "setting": json::setting(setting), "from": from }),
    );
    Ok(Assembled {
        delta: delta
            .settings
            .iter()
            .map(|(k, s)| object!({ "key": k.as_str(), "setting": json::setting(s) }))
            .collect(),
        settings: list.collect(),
        delta_summary: format!("{} settings{policy}", delta.settings.len()),
        table,
        effective: settings.iter().map(|(key, (setting, _))| (key.clone(), setting.clone())).collect(),
    })
}

fn unpack(overlay: &BootOverlay) -> Result<Document, Failure> {
    muster_core::overlay::open(overlay).map_err(|error| {
        Failure::error(format!("the overlay does not read: {error}"), "ask another replica with --server")
    })
}

fn read(delta: &[u8]) -> Result<Document, Failure> {
    let wrong = |problem: String| {
        Failure::error(
            format!("the delta does not read: {problem}"),
            "compare `muster --version` here and on the server",
        )
    };
    let text = std::str::from_utf8(delta).map_err(|error| wrong(error.to_string()))?;
    document::parse(text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_core::ids::{Digest, NodeId, Seq, VClusterId};
    use muster_core::journal::document::Kind;

    #[test]
    fn the_delta_overrides_and_takes_back_what_the_overlay_says() {
        let vcluster = VClusterId::new("v").unwrap();
        let node = NodeId::new("n1").unwrap();
        let key = |name: &str| Key::new(name).unwrap();
        let value = |text: &str| Setting::Value(text.into());
        let document = |kind, settings| Document {
            kind,
            vcluster: vcluster.clone(),
            version: Seq(3),
            policy: None,
            settings: BTreeMap::from_iter(settings),
        };
        let overlay = document::write(&document(
            Kind::Overlay,
            vec![(key("kernel:a"), value("1")), (key("kernel:b"), value("1")), (key("kernel:c"), value("1"))],
        ));
        let delta = document::write(&document(
            Kind::Delta { sequence: Seq(5), node: node.clone() },
            vec![(key("kernel:a"), value("2")), (key("kernel:b"), Setting::Unset), (key("kernel:d"), Setting::Absent)],
        ));
        let data = zstd::bulk::compress(overlay.as_bytes(), 3).unwrap();
        let checksum = Digest::of(&data);
        let boot = Boot {
            node,
            vcluster: vcluster.clone(),
            overlay_version: Seq(3),
            overlay_checksum: checksum,
            overlay: Some(BootOverlay {
                version: Seq(3),
                checksum,
                data: data.into(),
                content_bytes: overlay.len() as u64,
            }),
            delta: delta.into(),
            sequence: Seq(5),
            served_by: String::new(),
        };
        let effective = assemble(&boot).unwrap().effective;
        let expected =
            [(key("kernel:a"), value("2")), (key("kernel:c"), value("1")), (key("kernel:d"), Setting::Absent)];
        assert_eq!(effective, BTreeMap::from(expected));
    }
}

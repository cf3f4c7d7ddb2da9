//! Settings of GPUs, where a driver shows them: NVIDIA's by `nvidia-smi`, others by the files of the kernel's drm class.
//!
//! They are only observed. What has no driver, or a driver that does not show a setting, is unseen.

use super::command::{SHORT, run};
use super::root::Root;
use muster_core::agent::host::Observed;
use muster_core::agent::value;
use muster_core::agent::value::gpu::{What, Which, split};
use muster_core::journal::key::Key;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(super) const ONLY_OBSERVED: &str = "settings of GPUs are observed, not set; set them with the driver's own tool";

/// The fields that `nvidia-smi` is asked for, after the number.
const FIELDS: [(What, &str); 5] = [
    (What::PowerLimit, "power.limit"),
    (What::PersistenceMode, "persistence_mode"),
    (What::Ecc, "ecc.mode.current"),
    (What::Mig, "mig.mode.current"),
    (What::ComputeMode, "compute_mode"),
];

/// What each GPU's driver says.
pub(super) type Gpus = BTreeMap<u32, BTreeMap<What, String>>;

pub(super) fn read(root: &Root) -> Result<Gpus, String> {
    if root.is_confined() {
        return Err("GPUs belong to the machine; they are not seen under --root".to_owned());
    }
    let mut gpus = Gpus::new();
    if Path::new("/proc/driver/nvidia/version").exists() {
        let fields: Vec<&str> = FIELDS.iter().map(|(_, field)| *field).collect();
        let query = format!("--query-gpu=index,{}", fields.join(","));
        for line in run("nvidia-smi", &[&query, "--format=csv,noheader,nounits"], SHORT)?.lines() {
            let mut words = line.split(',').map(str::trim);
            let Some(number) = words.next().and_then(|word| word.parse().ok()) else { continue };
            gpus.insert(number, FIELDS.iter().zip(words).map(|((what, _), word)| (*what, word.to_owned())).collect());
        }
    }
    let cards = fs::read_dir("/sys/class/drm").into_iter().flatten().flatten();
    for card in cards {
        let level = fs::read_to_string(card.path().join("device/power_dpm_force_performance_level"));
        let number = card.file_name().to_str().and_then(|name| name.strip_prefix("card")?.parse().ok());
        if let (Some(number), Ok(level)) = (number, level) {
            gpus.entry(number).or_default().insert(What::PerformanceLevel, level.trim().to_owned());
        }
    }
    if gpus.is_empty() { Err("no GPU with a driver that shows settings is here".to_owned()) } else { Ok(gpus) }
}

pub(super) fn observe(gpus: &Result<Gpus, String>, name: &str) -> Observed {
    let look = || -> Result<String, String> {
        let gpus = gpus.as_ref().map_err(Clone::clone)?;
        let (which, what) = split(name).map_err(|unfit| unfit.to_string())?;
        let of = |number: &u32| -> Result<String, String> {
            let gpu = gpus.get(number).ok_or_else(|| format!("there is no GPU {number} here"))?;
            let said = gpu.get(&what).ok_or_else(|| format!("the driver of GPU {number} does not show it"))?;
            spelled(name, what, said).ok_or_else(|| format!("the driver of GPU {number} says {said:?}"))
        };
        match which {
            Which::One(number) => of(&number),
            Which::All => {
                let all: Vec<(u32, String)> =
                    gpus.keys().map(|number| Ok((*number, of(number)?))).collect::<Result<_, String>>()?;
                let same = all.windows(2).all(|pair| pair[0].1 == pair[1].1);
                let each =
                    || all.iter().map(|(number, value)| format!("{number}={value}")).collect::<Vec<_>>().join(",");
                Ok(if same { all.first().map(|(_, value)| value.clone()).unwrap_or_default() } else { each() })
            }
        }
    };
    look().map_or_else(|why| Observed::Unseen(why.into()), |value| Observed::Value(value.into()))
}

/// A driver's words as values are spelled.
fn spelled(name: &str, what: What, said: &str) -> Option<String> {
    let said = if what == What::PowerLimit { said.split('.').next()? } else { said };
    let key = Key::new(&format!("gpu:{name}")).ok()?;
    value::check(&key, said).ok().map(|value| value.to_string())
}

//! `fleet.proto`.

use super::{Malformed, Wire, known, need, text};
use crate::proto::v1 as wire;
use muster_core::agent::drift::DriftVector;
use muster_core::agent::fleet::{Heard, NodeReport, WindowBrief};
use muster_core::agent::operator::Phase;
use muster_core::ids::Seq;
use muster_core::journal::policy::Mode;

impl Wire for Phase {
    type Wire = i32;
    fn to_wire(&self) -> i32 {
        match self {
            Self::Booting => wire::Phase::Booting,
            Self::Committed => wire::Phase::Committed,
            Self::Drifted => wire::Phase::Drifted,
            Self::Emergency => wire::Phase::Emergency,
            Self::RollingBack => wire::Phase::RollingBack,
            Self::Blocked => wire::Phase::Blocked,
        }
        .into()
    }
    fn from_wire(wire: i32) -> Result<Self, Malformed> {
        let want = "one of the six phases";
        Ok(match known("", wire, want)? {
            wire::Phase::Unspecified => return Err(Malformed::new("", format!("expected {want}"))),
            wire::Phase::Booting => Self::Booting,
            wire::Phase::Committed => Self::Committed,
            wire::Phase::Drifted => Self::Drifted,
            wire::Phase::Emergency => Self::Emergency,
            wire::Phase::RollingBack => Self::RollingBack,
            wire::Phase::Blocked => Self::Blocked,
        })
    }
}

impl Wire for DriftVector {
    type Wire = Vec<u32>;
    fn to_wire(&self) -> Vec<u32> {
        self.0.to_vec()
    }
    fn from_wire(wire: Vec<u32>) -> Result<Self, Malformed> {
        let count = wire.len();
        wire.try_into().map(Self).map_err(|_| {
            Malformed::new("", format!("there are {count} counts: expected one for each of the seven dimensions"))
        })
    }
}

impl Wire for Mode {
    type Wire = i32;
    fn to_wire(&self) -> i32 {
        match self {
            Self::Observe => wire::Mode::Observe,
            Self::Warn => wire::Mode::Warn,
            Self::Enforce => wire::Mode::Enforce,
        }
        .into()
    }
    fn from_wire(wire: i32) -> Result<Self, Malformed> {
        let want = "OBSERVE, WARN or ENFORCE";
        Ok(match known("", wire, want)? {
            wire::Mode::Unspecified => return Err(Malformed::new("", format!("expected {want}"))),
            wire::Mode::Observe => Self::Observe,
            wire::Mode::Warn => Self::Warn,
            wire::Mode::Enforce => Self::Enforce,
        })
    }
}

impl Wire for NodeReport {
    type Wire = wire::NodeReport;
    fn to_wire(&self) -> Self::Wire {
        wire::NodeReport {
            node: self.node.to_string(),
            address: self.address.to_string(),
            run: self.word.0,
            count: self.word.1,
            vcluster: self.vcluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            phase: self.phase.to_wire(),
            mode: self.mode.to_wire(),
            sequence: self.sequence.0,
            drift: self.drift.to_wire(),
            window: self.window.map(|window| wire::WindowBrief {
                number: window.number,
                seconds_left: window.seconds_left,
                is_frozen: window.is_frozen,
            }),
            emergency: self.emergency.as_ref().map(|(seconds_left, reason)| wire::EmergencyBrief {
                seconds_left: *seconds_left,
                reason: reason.to_string(),
            }),
            spooled: self.spooled,
            blocked: self.blocked,
        }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        let short = |field: &str, text: &str, bytes_max: usize| {
            if text.len() <= bytes_max {
                Ok(())
            } else {
                Err(Malformed::new(field, format!("longer than {bytes_max} bytes")))
            }
        };
        short("address", &wire.address, muster_core::limits::ADDRESS_BYTES_MAX)?;
        let emergency = wire.emergency.map(|emergency| (emergency.seconds_left, emergency.reason));
        short(
            "emergency.reason",
            emergency.as_ref().map_or("", |(_, reason)| reason),
            muster_core::limits::REASON_BYTES_MAX,
        )?;
        Ok(Self {
            node: text("node", &wire.node)?,
            address: wire.address.into(),
            word: (wire.run, wire.count),
            vcluster: super::agent::optional_text("vcluster", &wire.vcluster)?,
            phase: need("phase", Some(wire.phase))?,
            mode: need::<Mode>("mode", Some(wire.mode))?,
            sequence: Seq(wire.sequence),
            drift: need("drift", Some(wire.drift))?,
            window: wire.window.map(|window| WindowBrief {
                number: window.number,
                seconds_left: window.seconds_left,
                is_frozen: window.is_frozen,
            }),
            emergency: emergency.map(|(seconds, reason)| (seconds, reason.into())),
            spooled: wire.spooled,
            blocked: wire.blocked,
        })
    }
}

impl Wire for Heard {
    type Wire = wire::HeardNode;
    fn to_wire(&self) -> Self::Wire {
        wire::HeardNode { report: Some(self.report.to_wire()), seconds_ago: self.seconds_ago }
    }
    fn from_wire(wire: Self::Wire) -> Result<Self, Malformed> {
        Ok(Self { report: need("report", wire.report)?, seconds_ago: wire.seconds_ago })
    }
}

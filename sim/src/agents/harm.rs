//! What breaks around agents: carried out and taken back by `fault`, which knows when.

use super::event::{AgentEvent, AgentId};
use super::{AgentPoint, kill, reboot, start, tell};
use crate::disk::Point;
use crate::draw::Draw;
use crate::event::Ending;
use crate::network::End;
use crate::scenario::{AgentFault, AgentPick, Harm};
use crate::world::World;
use muster_core::journal::key::Key;
use std::sync::Arc;

/// Whom a fault is about: the same whenever it is asked.
fn victims(world: &World, id: &str, who: &AgentPick) -> Vec<AgentId> {
    let all = world.fleet.agents();
    match who {
        AgentPick::All => all,
        AgentPick::These(agents) => all.into_iter().filter(|agent| agents.contains(agent)).collect(),
        AgentPick::One if all.is_empty() => all,
        AgentPick::One => vec![all[Draw::of(world.seed, id, 0).place(all.len())]],
    }
}

/// Whom a fault is about, in words.
pub(crate) fn names(world: &World, id: &str, fault: &AgentFault) -> String {
    let names: Vec<String> = victims(world, id, &fault.who).iter().map(|agent| format!("a{agent}")).collect();
    names.join(" ")
}

/// Makes nodes as a fault wants them, or as they were. Whether a crash came to its point, when it ends.
pub(crate) fn set(world: &Arc<World>, id: &Arc<str>, fault: &AgentFault, on: bool) {
    for agent in victims(world, id, &fault.who) {
        match &fault.harm {
            Harm::Crash { point, nth, power, .. } => crash(world, id, agent, on, *point, *nth, *power),
            Harm::Reboot => {
                if on {
                    hold(world, id, agent);
                    kill(world, agent, &Ending::Killed);
                    reboot(world, agent);
                } else {
                    release(world, id, agent);
                }
            }
            Harm::Cut => {
                let (me, all) = (End::Agent(agent), world.replicas());
                let mut wire = world.wire();
                for replica in all.into_iter().map(End::Replica) {
                    if on {
                        wire.cut(me, replica, false);
                    } else {
                        wire.mend(me, replica, false);
                    }
                }
            }
            Harm::Clock { step_ms, drift_ppm } => {
                if let Some(node) = world.fleet.nodes().get(&agent) {
                    node.oscillator.step(if on { *step_ms } else { -step_ms });
                    node.oscillator.drift(if on { *drift_ppm } else { 0 });
                }
            }
            Harm::Host { refuse_percent, slow } => {
                if let Some(hardware) = world.fleet.hardware(agent) {
                    hardware.behave(|percent, nanos| {
                        (*percent, *nanos) = if on { (*refuse_percent, *slow) } else { (0, 0) };
                    });
                }
            }
            Harm::Hold { key } => use_key(world, agent, key, on),
        }
    }
}

/// Somebody begins to use a key, or everybody on the node lets go.
fn use_key(world: &World, agent: AgentId, key: &Key, on: bool) {
    let Some(hardware) = world.fleet.hardware(agent) else { return };
    if on {
        hardware.hold(key);
        tell(world, agent, AgentEvent::Held { key: key.clone(), begins: true });
    } else {
        for key in hardware.let_all_go() {
            tell(world, agent, AgentEvent::Held { key, begins: false });
        }
    }
}

fn hold(world: &World, id: &Arc<str>, agent: AgentId) {
    if let Some(node) = world.fleet.nodes().get_mut(&agent) {
        node.held_down.insert(id.clone());
    }
}

fn release(world: &Arc<World>, id: &Arc<str>, agent: AgentId) {
    if let Some(node) = world.fleet.nodes().get_mut(&agent) {
        node.held_down.remove(id);
    }
    start(world, agent);
}

fn crash(
    world: &Arc<World>,
    id: &Arc<str>,
    agent: AgentId,
    on: bool,
    point: Option<AgentPoint>,
    nth: u64,
    power: bool,
) {
    let ending = if power { Ending::PowerLost } else { Ending::Killed };
    match (on, point) {
        (true, None) => {
            hold(world, id, agent);
            kill(world, agent, &ending);
        }
        (true, Some(AgentPoint::AnyWrite)) => {
            let store = world.fleet.nodes().get(&agent).map(|node| node.store.clone());
            if let Some(store) = store {
                store.set_trap(id, Point::AnyWrite, nth, ending);
            }
        }
        (true, Some(point)) => {
            if let Some(node) = world.fleet.nodes().get_mut(&agent) {
                node.trap = Some(super::Trap { owner: id.clone(), point, left: nth.max(1), ending });
            }
        }
        (false, _) => {
            let store = {
                let mut nodes = world.fleet.nodes();
                let Some(node) = nodes.get_mut(&agent) else { return };
                node.trap.take_if(|trap| trap.owner == *id);
                node.store.clone()
            };
            if point == Some(AgentPoint::AnyWrite) && store.clear_trap(id) {
                world.note_reached_point(id);
            }
            release(world, id, agent);
        }
    }
}

/// Nothing is wrong with a node any more, and nobody uses it.
pub(crate) fn forget(world: &World, agent: AgentId) {
    if let Some(node) = world.fleet.nodes().get_mut(&agent) {
        node.held_down.clear();
        node.trap = None;
    }
    let Some(hardware) = world.fleet.hardware(agent) else { return };
    hardware.behave(|percent, nanos| (*percent, *nanos) = (0, 0));
    for key in hardware.let_all_go() {
        tell(world, agent, AgentEvent::Held { key, begins: false });
    }
}

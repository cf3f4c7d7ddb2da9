//! What the code under test says: warnings and errors become events, marks become coverage.
//!
//! Core marks a place with `tracing::trace!(target: "mark", NAME)`, which costs nothing in production.

use crate::event::Event;
use crate::world::World;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber, span};

/// Listens for one run, on its thread.
pub struct Listener {
    world: Arc<Mutex<Option<Arc<World>>>>,
}

impl Listener {
    /// A listener, and where to put the world once there is one.
    #[must_use]
    pub fn new() -> (Self, Arc<Mutex<Option<Arc<World>>>>) {
        let world = Arc::default();
        (Self { world: Arc::clone(&world) }, world)
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _cannot_fail = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && (metadata.target() == "mark"
                || (*metadata.level() <= Level::WARN && metadata.target().starts_with("muster")))
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let world = self.world.lock().expect("nobody panics holding it").clone();
        let Some(world) = world else { return };
        let metadata = event.metadata();
        if metadata.target() == "mark" {
            // The name is the callsite's only, static, field: `trace!(target: "mark", name_of_the_place = true)`.
            if let Some(field) = metadata.fields().iter().next() {
                world.mark(field.name());
            }
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let error = *metadata.level() == Level::ERROR;
        world.emit(&Event::Log { error, line: format!("{}{}", line.message, line.fields).into() });
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

//! Marks: places in the code that a simulated story wants to have been at. In production they are trace lines nobody listens to.

/// Says that this place was reached. The name is a word of its own, the same wherever the same thing happens.
macro_rules! mark {
    ($name:ident) => {
        tracing::trace!(target: "mark", $name = true)
    };
}

pub(crate) use mark;

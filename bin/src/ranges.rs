//! Node ranges: `gpu[001-064,070]` stands for many names, as operators of large fleets write them.
//!
//! Several groups multiply (`rack[1-4]-n[01-32]`); the width of a range's first number is kept. The number of names is bounded
//! before anything is expanded.

use muster_core::ids::NodeId;

/// The most names one expression may stand for.
pub(crate) const NAMES_MAX: usize = 100_000;

/// Expands one expression into node names, in order.
pub(crate) fn expand(text: &str) -> Result<Vec<NodeId>, String> {
    let mut names = vec![String::new()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let (group, tail) = after
            .split_once(']')
            .ok_or_else(|| format!("{text:?} has a '[' without its ']': expected node[001-128]"))?;
        let numbers = group.split(',').map(|part| bounds(text, part)).collect::<Result<Vec<_>, _>>()?;
        let count: u64 = numbers.iter().map(|range| range.last - range.first + 1).fold(0, u64::saturating_add);
        if usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(names.len()) > NAMES_MAX {
            return Err(format!("{text:?} stands for more than {NAMES_MAX} names: expected smaller ranges"));
        }
        let mut longer = Vec::with_capacity(names.len() * numbers.len());
        for name in &names {
            for range in &numbers {
                let width = range.width;
                longer.extend((range.first..=range.last).map(|number| format!("{name}{before}{number:0width$}")));
            }
        }
        names = longer;
        rest = tail;
    }
    names
        .into_iter()
        .map(|name| {
            NodeId::new(&format!("{name}{rest}")).map_err(|error| format!("{error}, or a range such as node[001-128]"))
        })
        .collect()
}

struct Bounds {
    first: u64,
    last: u64,
    width: usize,
}

fn bounds(text: &str, part: &str) -> Result<Bounds, String> {
    let part = part.trim();
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let number = |digits: &str| {
        let good = !digits.is_empty() && digits.len() <= 12 && digits.bytes().all(|b| b.is_ascii_digit());
        good.then(|| digits.parse::<u64>().expect("at most twelve digits"))
    };
    let width = first.len();
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Bounds { first, last, width }),
        (Some(_), Some(_)) => Err(format!("{text:?}: the range {part:?} runs backwards: expected [{last}-{first}]")),
        _ => Err(format!("{text:?}: {part:?} is not a range of numbers: expected node[001-128] or node[1,5-9]")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        expand(text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_range_keeps_the_width_of_its_first_number() {
        assert_eq!(names("n[08-11]"), ["n08", "n09", "n10", "n11"]);
        assert_eq!(names("n[8-11]"), ["n8", "n9", "n10", "n11"]);
    }

    #[test]
    fn groups_multiply_and_lists_add() {
        assert_eq!(names("r[1-2]n[1,3]"), ["r1n1", "r1n3", "r2n1", "r2n3"]);
        assert_eq!(names("login1"), ["login1"]);
    }

    #[test]
    fn what_is_not_a_range_is_told_with_an_example() {
        for (text, part) in [
            ("n[1-", "without its"),
            ("n[9-1]", "runs backwards: expected [1-9]"),
            ("n[a-b]", "is not a range"),
            ("n[]", "is not a range"),
            ("n[0-999999999999]", "more than 100000"),
            ("n 1", "is not a node name"),
        ] {
            let problem = expand(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}

//! The value of a `network:` key: a setting of a network link, `network:LINK.SETTING`.
//!
//! | setting | value |
//! |---|---|
//! | `state` | `up` or `down` |
//! | `mtu` | bytes, 68 to 65535 |
//! | `txqueuelen` | packets |
//! | `mac` | six pairs of hexadecimal digits |
//! | `address` | every address of the link but link-local ones, `ADDRESS/PREFIX`, separated by commas; *absent* for none |

use super::Unfit;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

/// What of a link is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Whether it is up.
    State,
    /// Its largest packet.
    Mtu,
    /// How many packets may wait.
    TxQueueLen,
    /// Its hardware address.
    Mac,
    /// Its addresses.
    Address,
}

const WHATS: [(&str, What); 5] = [
    ("state", What::State),
    ("mtu", What::Mtu),
    ("txqueuelen", What::TxQueueLen),
    ("mac", What::Mac),
    ("address", What::Address),
];

/// The link's name, and which of its settings.
///
/// # Errors
/// [`Unfit`] lists the settings.
pub fn split(name: &str) -> Result<(&str, What), Unfit> {
    let found = name.rsplit_once('.').and_then(|(link, word)| {
        let what = WHATS.iter().find(|(known, _)| *known == word)?.1;
        // The kernel's own rule for names of links.
        let good = !link.is_empty() && link.len() <= 15 && !link.contains(['/', ':']) && link != "." && link != "..";
        good.then_some((link, what))
    });
    found.ok_or_else(|| {
        Unfit::new(
            format!("{name:?} is no setting of a link"),
            "LINK.SETTING with one of state, mtu, txqueuelen, mac, address, such as eth0.mtu",
        )
    })
}

pub(super) fn check(what: What, value: &str) -> Result<String, Unfit> {
    let value = value.trim();
    let wrong = |want: &str| Unfit::new(format!("{value:?} does not fit"), want);
    match what {
        What::State if matches!(value, "up" | "down") => Ok(value.to_string()),
        What::State => Err(wrong("up or down")),
        What::Mtu => number(value, 68, 65_535).ok_or_else(|| wrong("a number of bytes from 68 to 65535")),
        What::TxQueueLen => number(value, 0, u32::MAX).ok_or_else(|| wrong("a number of packets")),
        What::Mac => {
            let lower = value.to_ascii_lowercase();
            let good = lower.split(':').count() == 6
                && lower.split(':').all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
            if good { Ok(lower) } else { Err(wrong("a hardware address such as 02:00:00:00:00:01")) }
        }
        What::Address => {
            let list = addresses(value).ok_or_else(|| {
                wrong("addresses with their prefix lengths, separated by commas, such as 10.0.0.2/24,fd00::2/64; absent for none")
            })?;
            Ok(addresses_text(&list))
        }
    }
}

fn number(value: &str, least: u32, most: u32) -> Option<String> {
    let good = value.bytes().all(|b| b.is_ascii_digit());
    good.then(|| value.parse::<u32>().ok()).flatten().filter(|n| (least..=most).contains(n)).map(|n| n.to_string())
}

/// A list of addresses, sorted, each once; none if it is empty or wrong.
#[must_use]
pub fn addresses(value: &str) -> Option<Vec<(IpAddr, u8)>> {
    let mut list = Vec::new();
    for item in value.split(',').map(str::trim) {
        let (address, prefix) = item.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        list.push((address, prefix.parse().ok().filter(|prefix| *prefix <= most)?));
    }
    list.sort_unstable();
    list.dedup();
    Some(list)
}

/// A list of addresses as a value.
#[must_use]
pub fn addresses_text(list: &[(IpAddr, u8)]) -> String {
    let items: Vec<String> = list.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect();
    items.join(",")
}

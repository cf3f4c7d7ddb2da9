//! Settings of network links.
//!
//! They belong to the machine: a host confined to a directory sees none of them. Addresses with a lifetime are somebody else's (a
//! DHCP client's, a router's), and link-local IPv6 ones the kernel's: neither is shown or touched.

use super::netlink::{self, Address, Link, Setting};
use super::root::Root;
use muster_core::agent::host::Observed;
use muster_core::agent::value::link::{What, addresses, addresses_text, split};
use rustix::io::Errno;
use std::net::IpAddr;

/// The network as it is now.
pub(super) struct Network {
    links: Vec<Link>,
    addresses: Vec<Address>,
}

const CONFINED: &str = "network settings belong to the machine; they are not managed under --root";

pub(super) fn read(root: &Root) -> Result<Network, String> {
    if root.is_confined() {
        return Err(CONFINED.to_owned());
    }
    let read = || Ok::<_, Errno>(Network { links: netlink::links()?, addresses: netlink::addresses()? });
    read().map_err(|error| format!("the kernel does not tell its network links: {error}"))
}

impl Network {
    fn link(&self, name: &str) -> Result<&Link, String> {
        self.links.iter().find(|link| link.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.links.iter().map(|link| link.name.as_str()).collect();
            format!("there is no link {name}; there are {}", known.join(", "))
        })
    }

    fn of(&self, link: &Link) -> Vec<(IpAddr, u8)> {
        let lasting =
            |address: &&Address| address.link == link.index && address.permanent && !is_link_local(address.ip);
        let mut list: Vec<_> =
            self.addresses.iter().filter(lasting).map(|address| (address.ip, address.prefix)).collect();
        list.sort_unstable();
        list
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

fn mac_text(mac: &[u8]) -> String {
    let pairs: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

pub(super) fn observe(network: &Result<Network, String>, name: &str) -> Observed {
    let look = || -> Result<Observed, String> {
        let network = network.as_ref().map_err(Clone::clone)?;
        let (name, what) = split(name).map_err(|unfit| unfit.to_string())?;
        let link = network.link(name)?;
        let value = match what {
            What::State => if link.up { "up" } else { "down" }.to_owned(),
            What::Mtu => link.mtu.to_string(),
            What::TxQueueLen => link.queue.to_string(),
            What::Mac if link.mac.is_empty() => return Err(format!("{name} has no hardware address")),
            What::Mac => mac_text(&link.mac),
            What::Address => match network.of(link) {
                list if list.is_empty() => return Ok(Observed::Absent),
                list => addresses_text(&list),
            },
        };
        Ok(Observed::Value(value.into()))
    };
    look().unwrap_or_else(|why| Observed::Unseen(why.into()))
}

pub(super) fn check(root: &Root, name: &str) -> Result<(), String> {
    let (name, _) = split(name).map_err(|unfit| unfit.to_string())?;
    read(root)?.link(name).map(drop)
}

/// Sets one thing of a link; `None` takes its addresses away.
pub(super) fn change(name: &str, wanted: Option<&str>) -> Result<(), String> {
    let (name, what) = split(name).map_err(|unfit| unfit.to_string())?;
    let links = netlink::links().map_err(|error| error.to_string())?;
    let addresses_now = netlink::addresses().map_err(|error| error.to_string())?;
    let network = Network { links, addresses: addresses_now };
    let link = network.link(name)?;
    let wanted = wanted.unwrap_or_default();
    let number = || wanted.parse::<u32>().map_err(|error| format!("{wanted}: {error}"));
    let setting = match what {
        What::State => Setting::Up(wanted == "up"),
        What::Mtu => Setting::Mtu(number()?),
        What::TxQueueLen => Setting::Queue(number()?),
        What::Mac => {
            let bytes: Option<Vec<u8>> = wanted.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
            Setting::Mac(bytes.ok_or_else(|| format!("{wanted} is not a hardware address"))?)
        }
        What::Address => return change_addresses(&network, link, wanted),
    };
    netlink::set(link, &setting).map_err(|error| format!("the kernel refuses {wanted:?} for {name}: {}", said(error)))
}

/// What is missing is added before what is too much goes, so that the link is never without an address; what was done is undone
/// when a step fails.
fn change_addresses(network: &Network, link: &Link, wanted: &str) -> Result<(), String> {
    let wanted = if wanted.is_empty() { Vec::new() } else { addresses(wanted).unwrap_or_default() };
    let now = network.of(link);
    let add = wanted.iter().filter(|address| !now.contains(address)).map(|address| (*address, true));
    let remove = now.iter().filter(|address| !wanted.contains(address)).map(|address| (*address, false));
    let mut done: Vec<((IpAddr, u8), bool)> = Vec::new();
    for ((address, prefix), there) in add.chain(remove) {
        match netlink::set_address(link, address, prefix, there) {
            // With its primary address the kernel may have taken others of the same network along.
            Err(Errno::ADDRNOTAVAIL) if !there => {}
            Err(error) => {
                for ((address, prefix), there) in done.into_iter().rev() {
                    let _ = netlink::set_address(link, address, prefix, !there);
                }
                let verb = if there { "take" } else { "give up" };
                return Err(format!("{} does not {verb} {address}/{prefix}: {}", link.name, said(error)));
            }
            Ok(()) => done.push(((address, prefix), there)),
        }
    }
    // Those that went along with another come back.
    let left =
        Network { links: Vec::new(), addresses: netlink::addresses().map_err(|error| error.to_string())? }.of(link);
    for (address, prefix) in wanted.into_iter().filter(|address| !left.contains(address)) {
        netlink::set_address(link, address, prefix, true)
            .map_err(|error| format!("{} does not take {address}/{prefix}: {}", link.name, said(error)))?;
    }
    Ok(())
}

fn said(error: Errno) -> String {
    match error {
        Errno::PERM | Errno::ACCESS => format!("{error}; this needs the right CAP_NET_ADMIN: run the agent as root"),
        error => error.to_string(),
    }
}

//! Route netlink, as far as settings of links need it: dumps of links and addresses, changes with an acknowledgement, and a
//! socket that becomes readable when something changed.
//!
//! ```text
//! message    length u32 | type u16 | flags u16 | sequence u32 | port u32 | header | attributes
//! link       family u8 | - u8 | type u16 | index i32 | flags u32 | change u32
//! address    family u8 | prefix u8 | flags u8 | scope u8 | index u32
//! attribute  length u16 | type u16 | bytes, padded to 4
//! ```
//! All numbers are in the machine's own order.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with};
use std::net::IpAddr;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_NEW: u16 = 0x400 | 0x200;

const LINK_MAC: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_QUEUE: u16 = 13;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;

const INET: u8 = 2;
const INET6: u8 = 10;
const UP: u32 = 1;
const PERMANENT: u32 = 0x80;

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// Multicast groups: links, IPv4 addresses, IPv6 addresses.
const CHANGES: u32 = 1 | 1 << 4 | 1 << 8;

/// A link and its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
    pub(super) queue: u32,
    pub(super) mac: Vec<u8>,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    /// Whether it stays until it is taken away; others are a DHCP client's or a router's.
    pub(super) permanent: bool,
}

/// One setting of a link.
pub(super) enum Setting {
    Up(bool),
    Mtu(u32),
    Queue(u32),
    Mac(Vec<u8>),
}

fn open(groups: u32, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    // The protocol that is named by no number is the route protocol.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags | SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A socket that is told of every change of links and addresses.
pub(super) fn listen() -> Result<OwnedFd, Errno> {
    open(CHANGES, SocketFlags::NONBLOCK)
}

/// Reads what it was told; whether there was anything, or too much to keep.
pub(super) fn heard(socket: &OwnedFd) -> bool {
    let mut any = false;
    let mut buffer = vec![0_u8; 32 * 1024];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok(_) | Err(Errno::NOBUFS) => any = true,
            Err(Errno::INTR) => {}
            Err(_) => return any,
        }
    }
}

/// Every link of this network namespace.
pub(super) fn links() -> Result<Vec<Link>, Errno> {
    let mut links = Vec::new();
    dump(GET_LINK, LINK_HEADER, NEW_LINK, |body| {
        let mut link = Link { index: u32_at(body, 4)?, up: u32_at(body, 8)? & UP != 0, ..Link::default() };
        for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
            match kind {
                LINK_NAME => String::from_utf8_lossy(value).trim_end_matches('\0').clone_into(&mut link.name),
                LINK_MTU => link.mtu = u32_at(value, 0)?,
                LINK_QUEUE => link.queue = u32_at(value, 0)?,
                LINK_MAC => link.mac = value.to_vec(),
                _ => {}
            }
        }
        links.push(link);
        Some(())
    })?;
    Ok(links)
}

/// Every address of this network namespace.
pub(super) fn addresses() -> Result<Vec<Address>, Errno> {
    let mut found = Vec::new();
    dump(GET_ADDRESS, ADDRESS_HEADER, NEW_ADDRESS, |body| {
        let mut flags = u32::from(*body.get(2)?);
        let (mut local, mut peer) = (None, None);
        for (kind, value) in attributes(body.get(ADDRESS_HEADER..)?) {
            match kind {
                ADDRESS => peer = ip(value),
                ADDRESS_LOCAL => local = ip(value),
                ADDRESS_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let link = u32_at(body, 4)?;
        found.push(Address { link, ip: local.or(peer)?, prefix: *body.get(1)?, permanent: flags & PERMANENT != 0 });
        Some(())
    })?;
    Ok(found)
}

/// Sets one thing of a link.
pub(super) fn set(link: &Link, setting: &Setting) -> Result<(), Errno> {
    let (flags, change) = match setting {
        Setting::Up(up) => (u32::from(*up) * UP, UP),
        Setting::Mtu(_) | Setting::Queue(_) | Setting::Mac(_) => (0, 0),
    };
    let mut body = vec![0_u8; 4];
    body.extend(link.index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    match setting {
        Setting::Up(_) => {}
        Setting::Mtu(mtu) => attribute(&mut body, LINK_MTU, &mtu.to_ne_bytes()),
        Setting::Queue(queue) => attribute(&mut body, LINK_QUEUE, &queue.to_ne_bytes()),
        Setting::Mac(mac) => attribute(&mut body, LINK_MAC, mac),
    }
    ask(SET_LINK, 0, &body)
}

/// Gives a link an address, or takes one away.
pub(super) fn set_address(link: &Link, address: IpAddr, prefix: u8, there: bool) -> Result<(), Errno> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (INET, address.octets().to_vec()),
        IpAddr::V6(address) => (INET6, address.octets().to_vec()),
    };
    let mut body = vec![family, prefix, 0, 0];
    body.extend(link.index.to_ne_bytes());
    attribute(&mut body, ADDRESS_LOCAL, &bytes);
    attribute(&mut body, ADDRESS, &bytes);
    if there { ask(NEW_ADDRESS, CREATE_NEW, &body) } else { ask(DELETE_ADDRESS, 0, &body) }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // One question at a time over a socket of its own: any sequence will do.
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

fn ask(kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
    let socket = open(0, SocketFlags::empty())?;
    let message = message(kind, flags | REQUEST | ACKNOWLEDGE, body);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0_u8; 8 * 1024];
    let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    for (kind, body) in messages(&buffer[..length.min(buffer.len())]) {
        if kind == ERROR {
            return outcome(body);
        }
    }
    Err(Errno::BADMSG)
}

/// An error of 0 is an acknowledgement.
fn outcome(body: &[u8]) -> Result<(), Errno> {
    let code = u32_at(body, 0).ok_or(Errno::BADMSG)?.cast_signed();
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code.saturating_neg())) }
}

/// What a dump of this kind answers, one by one. One that changed while it was read is read again.
fn dump(kind: u16, header: usize, answer: u16, mut each: impl FnMut(&[u8]) -> Option<()>) -> Result<(), Errno> {
    let socket = open(0, SocketFlags::empty())?;
    let message = message(kind, REQUEST | DUMP, &vec![0_u8; header]);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length.min(buffer.len())]) {
            if kind == DONE {
                return Ok(());
            }
            if kind == ERROR {
                return outcome(body);
            }
            if kind == answer {
                // What cannot be read is left out.
                let _ = each(body);
            }
        }
    }
}

fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(length) = u32_at(bytes, 0).map(|length| length as usize) {
        let Some(body) = bytes.get(HEADER..length) else { break };
        found.push((u16_at(bytes, 4).unwrap_or_default(), body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(length) = u16_at(bytes, 0).map(usize::from) {
        let Some(value) = bytes.get(4..length) else { break };
        // The two highest bits say how the bytes are laid out.
        found.push((u16_at(bytes, 2).unwrap_or_default() & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

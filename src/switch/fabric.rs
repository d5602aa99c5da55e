//! The switch itself: which frame goes to which ports, and the faults of links. It has no sockets and no clock.

use crate::model::Mac;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// The place of a port in the switch.
pub(super) type Port = usize;

/// How long an address is remembered that says nothing (IEEE 802.1D, 7.9.2).
const AGE: Duration = Duration::from_secs(300);
/// More addresses than this are not remembered; frames to them go everywhere.
const MOST: usize = 4096;
/// More frames than this are not held back; they are lost, as in a full queue.
const MOST_DELAYED: usize = 16 << 10;
const HEADER: usize = 14;

/// What is wrong with a link between two ports, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkFault {
    /// Nothing gets through.
    pub cut: bool,
    /// How many of a hundred frames are lost.
    pub loss: f64,
    /// How much later frames come, in milliseconds.
    pub delay: u64,
}

impl LinkFault {
    /// Nothing gets through.
    pub const CUT: LinkFault = LinkFault { cut: true, loss: 0.0, delay: 0 };

    /// Whether nothing is wrong.
    pub fn is_none(&self) -> bool {
        *self == LinkFault::default()
    }
}

/// What a port has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Frames that came from it.
    pub received: u64,
    /// Frames that went to it.
    pub sent: u64,
    /// Frames that faults kept from it.
    pub lost: u64,
}

/// A learning switch.
#[derive(Debug)]
pub(super) struct Fabric {
    counters: Vec<Counters>,
    learned: HashMap<Mac, (Port, Instant)>,
    faults: BTreeMap<(Port, Port), LinkFault>,
    /// Frames that come later, by their time and the order in which they came.
    delayed: BTreeMap<(Instant, u64), (Port, Vec<u8>)>,
    order: u64,
    random: u64,
}

/// Where frames go that leave the switch.
pub(super) type Out<'a> = &'a mut dyn FnMut(Port, &[u8]);

impl Fabric {
    /// A switch without ports; `seed` decides which frames are lost.
    pub(super) fn new(seed: u64) -> Fabric {
        Fabric {
            counters: Vec::new(),
            learned: HashMap::new(),
            faults: BTreeMap::new(),
            delayed: BTreeMap::new(),
            order: 0,
            random: seed,
        }
    }

    /// Adds a port with the next number.
    pub(super) fn add_port(&mut self) {
        self.counters.push(Counters::default());
    }

    /// Forgets all about a port; its place stays.
    pub(super) fn remove_port(&mut self, port: Port) {
        self.forget(port);
        self.faults.retain(|(a, b), _| *a != port && *b != port);
    }

    /// Takes a frame that came from `from`.
    pub(super) fn receive(&mut self, now: Instant, from: Port, frame: &[u8], out: Out<'_>) {
        let Some((destination, source)) = addresses(frame) else { return };
        self.counters[from].received += 1;
        if !is_group(source) && (self.learned.len() < MOST || self.learned.contains_key(&source)) {
            self.learned.insert(source, (from, now));
        }
        let known = self.learned.get(&destination).filter(|(_, seen)| now.duration_since(*seen) < AGE);
        match known.filter(|_| !is_group(destination)).map(|(port, _)| *port) {
            Some(port) if port == from => {}
            Some(port) => self.pass(now, from, port, frame, out),
            None => {
                for port in (0..self.counters.len()).filter(|port| *port != from) {
                    self.pass(now, from, port, frame, out);
                }
            }
        }
    }

    /// Lets a frame over the link between two ports, as far as its faults do.
    fn pass(&mut self, now: Instant, from: Port, to: Port, frame: &[u8], out: Out<'_>) {
        let fault = self.faults.get(&link(from, to)).copied().unwrap_or_default();
        if fault.cut || fault.loss > 0.0 && self.percent() < fault.loss {
            self.counters[to].lost += 1;
        } else if fault.delay == 0 {
            self.counters[to].sent += 1;
            out(to, frame);
        } else if self.delayed.len() < MOST_DELAYED {
            self.order += 1;
            let at = now + Duration::from_millis(fault.delay);
            self.delayed.insert((at, self.order), (to, frame.to_vec()));
        } else {
            self.counters[to].lost += 1;
        }
    }

    /// Lets out what was held back until `now`.
    pub(super) fn release(&mut self, now: Instant, out: Out<'_>) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, frame) = entry.remove();
            self.counters[to].sent += 1;
            out(to, &frame);
        }
    }

    /// When [`Fabric::release`] has something to do next.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.delayed.keys().next().map(|(at, _)| *at)
    }

    /// Puts a fault on a link, or removes it.
    pub(super) fn set_fault(&mut self, a: Port, b: Port, fault: LinkFault) {
        if fault.is_none() {
            self.faults.remove(&link(a, b));
        } else {
            self.faults.insert(link(a, b), fault);
        }
    }

    /// Takes all faults away. What was held back goes out at its time.
    pub(super) fn heal(&mut self) {
        self.faults.clear();
    }

    /// The links that have faults.
    pub(super) fn faults(&self) -> impl Iterator<Item = (Port, Port, LinkFault)> {
        self.faults.iter().map(|((a, b), fault)| (*a, *b, *fault))
    }

    /// What a port has seen.
    pub(super) fn counters(&self, port: Port) -> Counters {
        self.counters[port]
    }

    /// Forgets the addresses behind a port whose machine has gone.
    pub(super) fn forget(&mut self, port: Port) {
        self.learned.retain(|_, (learned, _)| *learned != port);
    }

    /// A number from 0 to 100 (SplitMix64).
    fn percent(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        (word >> 11) as f64 / (1u64 << 53) as f64 * 100.0
    }
}

fn link(a: Port, b: Port) -> (Port, Port) {
    (a.min(b), a.max(b))
}

/// Destination and source of a frame.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if frame.len() < HEADER {
        return None;
    }
    Some((Mac(frame[..6].try_into().ok()?), Mac(frame[6..12].try_into().ok()?)))
}

fn is_group(address: Mac) -> bool {
    address.0[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROADCAST: Mac = Mac([0xff; 6]);

    fn mac(port: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, port])
    }

    fn frame(to: Mac, from: Mac, text: &str) -> Vec<u8> {
        [&to.0[..], &from.0, &[0x88, 0xb5], text.as_bytes()].concat()
    }

    fn fabric(ports: usize, seed: u64) -> Fabric {
        let mut fabric = Fabric::new(seed);
        (0..ports).for_each(|_| fabric.add_port());
        fabric
    }

    /// Sends a frame and returns the ports it went to.
    fn send(fabric: &mut Fabric, now: Instant, from: Port, frame: &[u8]) -> Vec<Port> {
        let mut ports = Vec::new();
        fabric.receive(now, from, frame, &mut |port, sent| {
            assert_eq!(sent, frame);
            ports.push(port);
        });
        ports
    }

    #[test]
    fn frames_go_everywhere_until_their_port_is_known() {
        let now = Instant::now();
        let mut fabric = fabric(3, 0);
        assert_eq!(send(&mut fabric, now, 0, &frame(mac(1), mac(0), "?")), [1, 2]);
        assert_eq!(send(&mut fabric, now, 1, &frame(mac(0), mac(1), "!")), [0]);
        assert_eq!(send(&mut fabric, now, 0, &frame(mac(1), mac(0), "?")), [1]);
        assert_eq!(send(&mut fabric, now, 0, &frame(BROADCAST, mac(0), "all")), [1, 2]);
        assert_eq!(send(&mut fabric, now, 0, &frame(mac(0), mac(0), "self")), [0usize; 0]);
        assert_eq!(send(&mut fabric, now, 0, b"short"), [0usize; 0]);
        // A machine that moved is known at its new port from its first frame on.
        send(&mut fabric, now, 2, &frame(BROADCAST, mac(1), "here"));
        assert_eq!(send(&mut fabric, now, 0, &frame(mac(1), mac(0), "?")), [2]);
        assert_eq!(send(&mut fabric, now + AGE, 0, &frame(mac(1), mac(0), "?")), [1, 2]);
        send(&mut fabric, now + AGE, 2, &frame(BROADCAST, mac(1), "here"));
        fabric.forget(2);
        assert_eq!(send(&mut fabric, now + AGE, 0, &frame(mac(1), mac(0), "?")), [1, 2]);
        assert_eq!(fabric.counters(0), Counters { received: 7, sent: 3, lost: 0 });
    }

    #[test]
    fn a_cut_link_lets_nothing_through_until_it_is_healed() {
        let now = Instant::now();
        let mut fabric = fabric(3, 0);
        fabric.set_fault(2, 0, LinkFault::CUT);
        assert_eq!(send(&mut fabric, now, 0, &frame(BROADCAST, mac(0), "all")), [1]);
        assert_eq!(send(&mut fabric, now, 2, &frame(mac(0), mac(2), "to 0")), [0usize; 0]);
        assert_eq!(send(&mut fabric, now, 1, &frame(mac(0), mac(1), "to 0")), [0]);
        assert_eq!(fabric.faults().collect::<Vec<_>>(), [(0, 2, LinkFault::CUT)]);
        assert_eq!((fabric.counters(0).lost, fabric.counters(2).lost), (1, 1));
        fabric.heal();
        assert_eq!(send(&mut fabric, now, 2, &frame(mac(0), mac(2), "to 0")), [0]);
    }

    #[test]
    fn frames_are_lost_as_often_as_said() {
        let now = Instant::now();
        let mut fabric = fabric(2, 7);
        fabric.set_fault(0, 1, LinkFault { loss: 25.0, ..LinkFault::default() });
        let frame = frame(BROADCAST, mac(0), "");
        let through = (0..10_000).filter(|_| !send(&mut fabric, now, 0, &frame).is_empty()).count();
        assert!((7300..7700).contains(&through), "{through}");
        fabric.set_fault(0, 1, LinkFault { loss: 100.0, ..LinkFault::default() });
        assert!((0..1000).all(|_| send(&mut fabric, now, 0, &frame).is_empty()));
    }

    #[test]
    fn delayed_frames_come_later_and_in_order() {
        let now = Instant::now();
        let after = |milliseconds| now + Duration::from_millis(milliseconds);
        let mut fabric = fabric(2, 0);
        fabric.set_fault(0, 1, LinkFault { delay: 50, ..LinkFault::default() });
        for (at, text) in [(0, "a"), (0, "b"), (10, "c")] {
            assert_eq!(send(&mut fabric, after(at), 0, &frame(BROADCAST, mac(0), text)), [0usize; 0]);
        }
        assert_eq!(fabric.next_release(), Some(after(50)));
        let mut come = String::new();
        let mut out = |_: Port, frame: &[u8]| come.push_str(std::str::from_utf8(&frame[HEADER..]).unwrap());
        fabric.release(after(49), &mut out);
        fabric.release(after(50), &mut out);
        assert_eq!(come, "ab");
        assert_eq!(fabric.next_release(), Some(after(60)));
    }
}

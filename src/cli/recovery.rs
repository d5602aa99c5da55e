//! The recovery times of a cluster, as people read them.

use crate::model::{ClusterSpec, Time};
use std::fmt::Write as _;

/// What follows from the document's timers.
pub(super) fn text(spec: &ClusterSpec) -> String {
    let timing = spec.timing.timing();
    let recovery = timing.recovery();
    let mut text = format!("cluster {}: {} members", spec.cluster, spec.members.len());
    if let Some(vip) = &spec.vip {
        let _ = write!(text, ", virtual address {}", vip.address);
    }
    let _ = writeln!(text, ", timing {}", spec.timing.preset);
    let _ = writeln!(text, "\n{:<46} {:>8} {:>8} {:>8}", "writes stop for", "best", "mean", "worst");
    for (what, estimate) in [
        ("PostgreSQL crashes on the primary", recovery.crash),
        ("the primary's node is lost", recovery.loss),
        ("the same, and it led etcd", recovery.loss_with_etcd_leader),
        ("switchover", recovery.switchover),
        ("the node with the virtual address is lost", recovery.vip),
        ("HAProxy hangs on it", recovery.vip_hung),
    ] {
        let _ = writeln!(
            text,
            "  {what:<44} {:>8} {:>8} {:>8}",
            seconds(estimate.best),
            seconds(estimate.mean),
            seconds(estimate.worst)
        );
    }
    let patroni = &timing.patroni;
    let _ = writeln!(
        text,
        "\ntimers: ttl {}, loop-wait {}, retry-timeout {}, etcd-election {}, vrrp-advert {}",
        patroni.ttl, patroni.loop_wait, patroni.retry_timeout, timing.etcd.election, timing.vrrp.advert
    );
    text
}

fn seconds(time: Time) -> String {
    format!("{:.1} s", time.0.as_secs_f64())
}

//! Decides whether nodes may be removed with their disks: never with the last good copy of the data.
//!
//! [`next`] is a pure function over what all nodes say: it names one step, which the caller carries out before it looks
//! and asks again. A copy is good if its server is the primary, or streams from the primary on the same timeline. A node
//! that is switched off, does not answer, or does anything else has no good copy, and may have the only one: silence
//! says nothing.

use super::{driver::PowerState, view::View};
use crate::model::{
    Synchronous, SynchronousMode,
    status::{EtcdStatus, NodeStatus, PostgresqlStatus},
};

/// How far behind a replica may be that the primary hands over to, in bytes: as `maximum_lag_on_failover` has it
/// (`overlays/patroni`). What is missing then comes before the primary has stopped.
const CAUGHT_UP: u64 = 1 << 20;

/// What to do next so that nodes can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove this node: what it has, others have.
    Remove(String),
    /// Make `to` the primary instead of `from`.
    HandOver {
        /// The primary, which is to go.
        from: String,
        /// A replica that stays and has caught up.
        to: String,
    },
    /// Nothing now, for this reason, which may pass by itself.
    Wait(String),
    /// Nothing, for this reason, which does not pass by itself.
    Refuse(String),
    /// All are gone.
    Done,
}

/// The next step to remove `going` from the nodes that `views` show, so that the data of all of them stay with the
/// others, and the others can go on. `synchronous` is how commits wait for replicas when they are gone.
pub fn next(going: &[&str], views: &[View], synchronous: &Synchronous) -> Step {
    let present = |view: &&View| view.power != PowerState::Absent;
    let goes = |view: &View| going.contains(&view.node.as_str());
    let leaving: Vec<&View> = views.iter().filter(|view| goes(view)).filter(present).collect();
    let staying: Vec<&View> = views.iter().filter(|view| !goes(view)).collect();
    if let Some(absent) = views.iter().find(|view| goes(view) && view.power == PowerState::Absent) {
        // There is nothing to lose.
        return Step::Remove(absent.node.clone());
    }
    let Some(first) = leaving.first() else { return Step::Done };
    let (successor, primary) = match settled(&leaving, &staying, synchronous) {
        Ok(found) => found,
        Err(reason) if may_pass(&leaving, &staying, synchronous) => return Step::Wait(reason),
        Err(reason) => return Step::Refuse(reason),
    };
    match successor {
        // The primary stays.
        None => Step::Remove(first.node.clone()),
        Some(to) if to.is_synchronous() || !views.iter().any(View::is_synchronous) => {
            Step::HandOver { from: primary.node.clone(), to: to.node.clone() }
        }
        // Patroni hands over to a synchronous replica alone. It chooses one that stays when the others are gone.
        Some(_) => match leaving.iter().find(|view| view.is_synchronous()) {
            Some(view) => Step::Remove(view.node.clone()),
            None => Step::Wait("Patroni hands over to a synchronous replica, and none has caught up".to_owned()),
        },
    }
}

/// The replica to hand over to, if the primary goes, and the primary; or what is missing.
fn settled<'a>(
    leaving: &[&'a View],
    staying: &[&'a View],
    synchronous: &Synchronous,
) -> Result<(Option<&'a View>, &'a View), String> {
    if staying.is_empty() {
        return Err("no other node would be left to have the data".to_owned());
    }
    let everyone = || staying.iter().chain(leaving).copied();
    let primaries: Vec<&View> = everyone().filter(|view| view.is_primary()).collect();
    let primary = match primaries[..] {
        [primary] => primary,
        [] => {
            return Err(format!(
                "no node is the primary, so nobody knows whose data are the newest: {}",
                words(everyone())
            ));
        }
        _ => return Err(format!("more than one node says that it is the primary: {}", words(primaries.into_iter()))),
    };
    let streaming: Vec<&View> = staying.iter().copied().filter(|view| follows(view, primary)).collect();
    let goes = leaving.iter().any(|view| view.node == primary.node);
    let successor = streaming
        .iter()
        .filter(|view| view.lag().is_some_and(|lag| lag <= CAUGHT_UP))
        .min_by_key(|view| (!view.is_synchronous(), view.lag()));
    if goes && successor.is_none() {
        return Err(format!(
            "{} is the primary, and no other node has caught up with it: {}",
            primary.node,
            words(staying.iter().copied())
        ));
    }
    // Two copies stay where there are two nodes for them: the next disk may break at any time.
    let good = streaming.len() + usize::from(!goes);
    let unknown = leaving.iter().find(|view| view.node != primary.node && !follows(view, primary));
    let wanted = if unknown.is_some() { staying.len() } else { staying.len().min(2) };
    if good < wanted {
        let why = match unknown {
            Some(view) => {
                format!("nobody knows what {} has ({}), and not all others have everything", view.node, word(view))
            }
            None => "only one good copy of the data would be left".to_owned(),
        };
        return Err(format!("{why}: {}", words(staying.iter().copied())));
    }
    strict(&streaming, successor.filter(|_| goes).copied(), synchronous)?;
    majority(leaving, staying)?;
    Ok((successor.filter(|_| goes).copied(), primary))
}

/// Strict commits wait for as many replicas as the document says, however many there are.
fn strict(streaming: &[&View], successor: Option<&View>, synchronous: &Synchronous) -> Result<(), String> {
    if !synchronous.strict || synchronous.mode == SynchronousMode::Off {
        return Ok(());
    }
    let left = streaming.len() - usize::from(successor.is_some());
    if left < synchronous.nodes as usize {
        return Err(format!(
            "commits are strictly synchronous with {} replicas, and {left} would be left (`synchronous` in the document)",
            synchronous.nodes
        ));
    }
    Ok(())
}

/// etcd goes on with a majority of its members. Those that leave while they answer are taken out of it; others stay in it
/// as members that do not answer.
fn majority(leaving: &[&View], staying: &[&View]) -> Result<(), String> {
    let answering = |views: &[&View]| views.iter().filter(|view| view.etcd_leader().is_some()).count();
    let nodes = leaving.len() + staying.len();
    let told = leaving.iter().chain(staying).filter_map(|view| view.etcd_members()).max();
    let members = told.filter(|told| *told > 0).unwrap_or(nodes).max(answering(leaving) + answering(staying))
        - answering(leaving);
    let left = answering(staying);
    if 2 * left > members {
        return Ok(());
    }
    Err(format!(
        "etcd would have {left} of {members} members that answer, which is not a majority: {}",
        words(staying.iter().copied())
    ))
}

/// Whether the node streams from `primary`, as far as both know.
fn follows(view: &View, primary: &View) -> bool {
    view.is_streaming() && view.timeline().is_some() && view.timeline() == primary.timeline()
}

/// Whether it may become possible by itself: it would be if all nodes that run were as well as can be.
fn may_pass(leaving: &[&View], staying: &[&View], synchronous: &Synchronous) -> bool {
    let runs = |view: &&&View| view.power == PowerState::On;
    let primaries = || staying.iter().chain(leaving).filter(|view| view.is_primary());
    let Some(primary) = primaries().chain(staying.iter().filter(runs)).next() else { return false };
    if primaries().count() > 1 {
        return true;
    }
    let hope = |views: &[&View]| -> Vec<View> {
        views.iter().map(|view| at_best(view, view.node == primary.node, primary.timeline())).collect()
    };
    let (leaving, staying) = (hope(leaving), hope(staying));
    settled(&leaving.iter().collect::<Vec<_>>(), &staying.iter().collect::<Vec<_>>(), synchronous).is_ok()
}

/// The view of a node when all is well with it; the same if it does not run.
fn at_best(view: &View, primary: bool, timeline: Option<u64>) -> View {
    if view.power != PowerState::On {
        return view.clone();
    }
    let (role, state) = if primary { ("primary", "running") } else { ("replica", "streaming") };
    let postgresql = PostgresqlStatus {
        role: role.to_owned(),
        state: state.to_owned(),
        synchronous: !primary,
        lag: (!primary).then_some(0),
        timeline: timeline.or(Some(0)),
        pending_restart: false,
    };
    let told = view.status.clone().unwrap_or_default();
    let members = told.etcd.map_or((0, 0), |etcd| etcd.members);
    let etcd = Some(EtcdStatus { leader: Some(view.node.clone()), members, alarms: Vec::new() });
    View { status: Some(NodeStatus { postgresql: Some(postgresql), etcd, ..told }), ..view.clone() }
}

fn words<'a>(views: impl Iterator<Item = &'a View>) -> String {
    views.map(|view| format!("{} {}", view.node, word(view))).collect::<Vec<_>>().join(", ")
}

/// How a node's copy stands, after the node's name.
fn word(view: &View) -> String {
    match (view.power, view.status.as_ref().map(|status| &status.postgresql)) {
        (PowerState::Absent, _) => "does not exist".to_owned(),
        (PowerState::Off, _) => "is switched off".to_owned(),
        (PowerState::Paused, _) => "is paused".to_owned(),
        (PowerState::On, None) => "does not answer".to_owned(),
        (PowerState::On, Some(None)) => "has no database that answers".to_owned(),
        (PowerState::On, Some(Some(postgresql))) => told(postgresql),
    }
}

fn told(postgresql: &PostgresqlStatus) -> String {
    let PostgresqlStatus { role, state, timeline, .. } = postgresql;
    let timeline = timeline.map_or_else(|| "an unknown timeline".to_owned(), |timeline| format!("timeline {timeline}"));
    let lag = match postgresql.lag {
        Some(lag) if lag > CAUGHT_UP => format!(", {lag} bytes behind"),
        _ => String::new(),
    };
    format!("is a {role} ({state}, {timeline}{lag})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Synchronous as Rules;

    /// How a node can stand.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Stand {
        Absent,
        Off,
        Paused,
        Silent,
        NoDatabase,
        Primary,
        Synchronous,
        Streaming,
        FarBehind,
        UnknownLag,
        OtherTimeline,
        UnknownTimeline,
        Starting,
    }

    use Stand::*;

    const STANDS: [Stand; 13] = [
        Absent,
        Off,
        Paused,
        Silent,
        NoDatabase,
        Primary,
        Synchronous,
        Streaming,
        FarBehind,
        UnknownLag,
        OtherTimeline,
        UnknownTimeline,
        Starting,
    ];

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn view(index: usize, stand: Stand, etcd: bool, members: usize) -> View {
        let power = match stand {
            Absent => PowerState::Absent,
            Off => PowerState::Off,
            Paused => PowerState::Paused,
            _ => PowerState::On,
        };
        let postgresql = |role: &str, state: &str, lag, timeline| {
            Some(PostgresqlStatus {
                role: role.to_owned(),
                state: state.to_owned(),
                synchronous: stand == Synchronous,
                lag,
                timeline,
                pending_restart: false,
            })
        };
        let postgresql = match stand {
            Absent | Off | Paused | Silent | NoDatabase => None,
            Primary => postgresql("primary", "running", None, Some(3)),
            Synchronous | Streaming => postgresql("replica", "streaming", Some(0), Some(3)),
            FarBehind => postgresql("replica", "streaming", Some(CAUGHT_UP + 1), Some(3)),
            UnknownLag => postgresql("replica", "streaming", None, Some(3)),
            OtherTimeline => postgresql("replica", "streaming", Some(0), Some(2)),
            UnknownTimeline => postgresql("replica", "streaming", Some(0), None),
            Starting => postgresql("replica", "starting", Some(0), Some(3)),
        };
        let etcd =
            etcd.then(|| EtcdStatus { leader: Some("a".to_owned()), members: (members, members), alarms: Vec::new() });
        let speaks = power == PowerState::On && stand != Silent;
        let status = speaks.then(|| NodeStatus { postgresql, etcd, ..NodeStatus::default() });
        View { node: NAMES[index].to_owned(), address: String::new(), power, status }
    }

    fn views(stands: &[(Stand, bool)]) -> Vec<View> {
        stands.iter().enumerate().map(|(index, (stand, etcd))| view(index, *stand, *etcd, stands.len())).collect()
    }

    fn well(stands: &[Stand]) -> Vec<View> {
        views(&stands.iter().map(|stand| (*stand, true)).collect::<Vec<_>>())
    }

    fn rules(strict: bool, nodes: u32) -> Rules {
        Rules { mode: SynchronousMode::On, nodes, strict }
    }

    fn lazy() -> Rules {
        Rules::default()
    }

    /// Every set of `count` nodes: how each stands, and whether its etcd answers.
    fn sets(count: usize, kinds: &[(Stand, bool)]) -> Vec<Vec<(Stand, bool)>> {
        let mut sets = vec![Vec::new()];
        for _ in 0..count {
            sets = sets
                .into_iter()
                .flat_map(|set: Vec<(Stand, bool)>| kinds.iter().map(move |kind| [&set[..], &[*kind]].concat()))
                .collect();
        }
        sets
    }

    fn kinds() -> Vec<(Stand, bool)> {
        STANDS.iter().flat_map(|stand| [(*stand, true), (*stand, false)]).collect()
    }

    /// Written from the promise alone, not as the function is.
    fn assert_safe(stands: &[(Stand, bool)], going: &[&str], rules: &Rules, step: &Step) {
        let at = |name: &str| stands[NAMES.iter().position(|known| *known == name).unwrap()].0;
        let staying: Vec<(Stand, bool)> =
            stands.iter().zip(NAMES).filter(|(_, name)| !going.contains(name)).map(|(stand, _)| *stand).collect();
        let primaries = stands.iter().filter(|stand| stand.0 == Primary).count();
        let caught_up = |stand: Stand| matches!(stand, Synchronous | Streaming);
        let good = |stand: Stand| stand == Primary || matches!(stand, Synchronous | Streaming | FarBehind | UnknownLag);
        let shown = || format!("{stands:?} without {going:?}: {step:?}");
        let gone = match step {
            Step::Remove(node) if at(node) == Absent => return,
            Step::Remove(node) => {
                assert!(going.contains(&node.as_str()), "{}", shown());
                assert_ne!(at(node), Primary, "{}", shown());
                at(node)
            }
            Step::HandOver { from, to } => {
                assert!(at(from) == Primary && going.contains(&from.as_str()), "{}", shown());
                assert!(caught_up(at(to)) && !going.contains(&to.as_str()), "{}", shown());
                at(from)
            }
            _ => return,
        };
        // Whoever has taken the newest writes is known, and is not lost before another has everything.
        assert_eq!(primaries, 1, "{}", shown());
        let copies = staying.iter().filter(|(stand, _)| good(*stand)).count();
        let stays = staying.iter().any(|(stand, _)| *stand == Primary);
        assert!(stays || staying.iter().any(|(stand, _)| caught_up(*stand)), "{}", shown());
        assert!(copies >= staying.len().min(2), "{}", shown());
        // Nobody knows what a silent node has: then all others are whole.
        let unknown = stands.iter().zip(NAMES).any(|((stand, _), name)| going.contains(&name) && !good(*stand));
        assert!(!unknown || copies == staying.len(), "{} {gone:?}", shown());
        let replicas = copies - 1;
        assert!(!rules.strict || replicas >= rules.nodes as usize, "{}", shown());
        let answers = |(stand, etcd): &(Stand, bool)| *etcd && !matches!(stand, Absent | Off | Paused | Silent);
        let left = staying.iter().filter(|node| answers(node)).count();
        let dead = stands.iter().filter(|node| !answers(node)).count();
        assert!(left > dead, "{}", shown());
    }

    #[test]
    fn no_step_takes_the_last_good_copy() {
        let mut seen = 0;
        let mut steps = [0; 5];
        for set in sets(3, &kinds()) {
            let views = views(&set);
            for bits in 1..8u32 {
                let going: Vec<&str> =
                    (0..3).filter(|bit| bits & (1 << bit) != 0).map(|index| NAMES[index as usize]).collect();
                for rules in [lazy(), rules(true, 1), rules(true, 2)] {
                    let step = next(&going, &views, &rules);
                    assert_safe(&set, &going, &rules, &step);
                    seen += 1;
                    steps[match step {
                        Step::Remove(_) => 0,
                        Step::HandOver { .. } => 1,
                        Step::Wait(_) => 2,
                        Step::Refuse(_) => 3,
                        Step::Done => 4,
                    }] += 1;
                }
            }
        }
        assert_eq!(seen, 26usize.pow(3) * 7 * 3);
        assert!(steps[..4].iter().all(|count| *count > 0) && steps[4] == 0, "{steps:?}");
    }

    #[test]
    fn four_nodes_are_as_safe_as_three() {
        let kinds =
            [(Off, false), (Silent, false), (Primary, true), (Synchronous, true), (Streaming, true), (Starting, true)];
        for set in sets(4, &kinds) {
            let views = views(&set);
            for bits in 1..16u32 {
                let going: Vec<&str> =
                    (0..4).filter(|bit| bits & (1 << bit) != 0).map(|index| NAMES[index as usize]).collect();
                for rules in [lazy(), rules(true, 1)] {
                    assert_safe(&set, &going, &rules, &next(&going, &views, &rules));
                }
            }
        }
    }

    #[test]
    fn knowing_less_never_allows_more() {
        for set in sets(3, &kinds()) {
            for going in [vec!["a"], vec!["a", "b"]] {
                if matches!(next(&going, &views(&set), &lazy()), Step::Remove(_) | Step::HandOver { .. }) {
                    continue;
                }
                for index in going.len()..3 {
                    for less in [Off, Paused, Silent] {
                        let mut blind = set.clone();
                        blind[index] = (less, false);
                        // A second primary that falls silent is the exception: who speaks is believed then.
                        if set.iter().filter(|(stand, _)| *stand == Primary).count() > 1 {
                            continue;
                        }
                        let step = next(&going, &views(&blind), &lazy());
                        assert!(
                            !matches!(step, Step::Remove(_) | Step::HandOver { .. }),
                            "{set:?} refused, {blind:?}: {step:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_whole_cluster_lets_any_node_go() {
        let whole = well(&[Primary, Synchronous, Streaming]);
        assert_eq!(next(&["b"], &whole, &lazy()), Step::Remove("b".to_owned()));
        assert_eq!(next(&["c"], &whole, &lazy()), Step::Remove("c".to_owned()));
        let hand_over = Step::HandOver { from: "a".to_owned(), to: "b".to_owned() };
        assert_eq!(next(&["a"], &whole, &lazy()), hand_over);
        assert_eq!(next(&["a"], &whole, &rules(true, 1)), hand_over);
        assert_eq!(next(&["a"], &well(&[Primary, Streaming]), &lazy()), hand_over);
        // The synchronous replica goes first: Patroni hands over to no other.
        assert_eq!(next(&["a", "b"], &whole, &lazy()), Step::Remove("b".to_owned()));
        assert!(matches!(next(&["a"], &well(&[Primary, Streaming, Off]), &lazy()), Step::Refuse(_)));
        assert_eq!(next(&[], &whole, &lazy()), Step::Done);
        // What does not exist can go at any time.
        assert_eq!(next(&["b"], &well(&[Off, Absent, Off]), &lazy()), Step::Remove("b".to_owned()));
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let refused = |going: &[&str], stands: &[Stand], rules: &Rules| match next(going, &well(stands), rules) {
            Step::Wait(why) => format!("wait: {why}"),
            Step::Refuse(why) => format!("refuse: {why}"),
            other => panic!("{other:?}"),
        };
        insta::assert_snapshot!(
            [
                refused(&["a"], &[Primary], &lazy()),
                refused(&["b", "c"], &[Off, Off, Off], &lazy()),
                refused(&["a"], &[Primary, Starting, Off], &lazy()),
                refused(&["b"], &[Primary, Silent, Starting], &lazy()),
                refused(&["b"], &[Primary, Streaming, NoDatabase], &lazy()),
                refused(&["b"], &[Primary, Synchronous], &rules(true, 1)),
                refused(&["c"], &[Primary, Primary, Streaming], &lazy()),
                refused(&["a"], &[Primary, FarBehind, OtherTimeline], &lazy()),
            ]
            .join("\n")
        );
    }
}

//! What neighbours hear of each other, and links that the coordinator relays.

use std::net::SocketAddr;

use qmesh_net::{LinkWay, Passage, PeerWays, RelayGrant, RelaySecret};

use super::*;
use crate::{
    mesh::{
        config::Relaying,
        status::{LinkPassage, LinkStatus},
    },
    plan::End,
};

/// A world of two workers that are about to link, and what is sent for it.
fn linking(relaying: Relaying) -> (World, Vec<Action>) {
    let mut world = World::with(Formation { relaying, ..Formation::new(Workers::Exactly(2)) });
    world.join("a", GB);
    world.join("b", GB);
    world.tick();
    world.ready(1);
    let actions = world.ready(2);
    (world, actions)
}

fn ways(action: &Action) -> Option<PeerWays> {
    if let Action::Send(_, Message::Route(route)) = action { PeerWays::find(&route.sections).ok() } else { None }
}

fn grant(action: &Action) -> Option<&RelayGrant> {
    if let Action::Relay(grant) = action { Some(grant) } else { None }
}

#[test]
fn both_neighbours_hear_of_each_other_and_of_the_grant_that_was_made_for_them() {
    let (_, actions) = linking(Relaying::On(RelaySecret::random()));
    let told: Vec<PeerWays> = actions.iter().filter_map(ways).collect();
    let (last, first) = (&told[0].peers[0], &told[1].peers[0]);
    assert_eq!((last.peer, first.peer), (PeerId([1; 32]), PeerId([2; 32])));
    assert_eq!(last.addresses, ["127.0.0.1:9"]);
    let grants: Vec<&RelayGrant> = actions.iter().filter_map(grant).collect();
    let tags = grants[0].ends.each_ref().map(|end| end.tag);
    assert_eq!((grants.len(), grants[0].epoch), (1, PlanEpoch(1)));
    assert_eq!([first, last].map(|way| way.relay.as_ref().unwrap().tag), tags);

    let (_, actions) = linking(Relaying::Off);
    assert!(actions.iter().filter_map(grant).next().is_none());
    assert!(actions.iter().filter_map(ways).all(|told| told.peers.iter().all(|way| way.relay.is_none())));
}

#[test]
fn who_moves_is_told_to_others_from_its_new_address_and_relayed_from_there() {
    let mut early = World::new(Workers::Exactly(2));
    early.join("a", GB);
    assert!(early.roster.moved(early.now, WorkerId(1), "203.0.113.9:9".parse().unwrap(), Vec::new()).is_empty());
    assert!(early.tick().is_empty(), "the other one is still to come");

    let (mut world, _) = linking(Relaying::On(RelaySecret::random()));
    world.linked(1);
    world.linked(2);
    let address: SocketAddr = "203.0.113.9:9".parse().unwrap();
    let actions = world.roster.moved(world.now, WorkerId(2), address, vec![address]);
    let grants: Vec<&RelayGrant> = actions.iter().filter_map(grant).collect();
    assert_eq!((grants.len(), &grants[0].ends[1].hosts[..]), (1, &[address.ip()][..]));
    assert_eq!((actions.len(), world.roster.state()), (1, MeshState::Ready), "what stands goes on");
    // Its link from the first worker ends with its old address; the next plan has the new one.
    let actions = world.roster.link_broken(world.now, WorkerId(2), PlanEpoch(1), "gone");
    assert!(matches!(actions[..], [Action::Down(PlanEpoch(1), _)]), "{actions:?}");
    assert_eq!(world.tick().iter().filter_map(sent_load).count(), 2, "both, at once");
    world.ready(1);
    let actions = world.ready(2);
    let told: Vec<PeerWays> = actions.iter().filter_map(ways).collect();
    assert_eq!(told[1].peers[0].addresses, ["203.0.113.9:9"]);
}

#[test]
fn a_relayed_link_is_shown_and_counts_in_plans_until_it_is_direct() {
    let (mut world, _) = linking(Relaying::On(RelaySecret::random()));
    let way = LinkWay { passage: Passage::Relayed, rtt_us: 40_000 };
    world.roster.linked(WorkerId(1), PlanEpoch(1), Some(way)).unwrap();
    world.roster.linked(WorkerId(2), PlanEpoch(1), None).unwrap();
    let stages = world.roster.stage_status();
    assert_eq!(stages[0].link, Some(LinkStatus { passage: LinkPassage::Relayed, rtt_ms: 40.0 }));
    assert_eq!(stages[1].link, None);
    let between = |world: &World| {
        let chooser = world.roster.chooser(world.now);
        let links = chooser.input(&[WorkerId(1), WorkerId(2)]).unwrap().links;
        [(0, 1), (1, 0)].map(|(from, to)| links.between(End::Worker(from), End::Worker(to)).unwrap().rtt_ms)
    };
    assert_eq!(between(&world), [40.0, 0.0]);
    world.roster.remember_way(PlanEpoch(1), 0, LinkWay { passage: Passage::Direct, rtt_us: 1_000 });
    assert_eq!(between(&world), [0.0, 0.0]);
}

#[test]
fn plans_go_by_the_shortest_round_trip_so_far() {
    let (mut world, _) = linking(Relaying::Off);
    world.roster.timed(WorkerId(2), Duration::from_micros(300));
    world.roster.timed(WorkerId(9), Duration::from_secs(1));
    let chooser = world.roster.chooser(world.now);
    let links = chooser.input(&[WorkerId(1), WorkerId(2)]).unwrap().links;
    assert_eq!([0, 1].map(|worker| links.between(End::Coordinator, End::Worker(worker)).unwrap().rtt_ms), [0.0, 0.3]);
}

//! Workers without a ticket: who may ask, what both ends show, and what the answer is.

use std::collections::HashSet;

use super::*;

fn named(name: &str) -> Introduction {
    Introduction { name: name.into(), ..Introduction::default() }
}

async fn refused(gate: &Gate, claim: Claim<'_>, name: &str) -> (RejectCode, String) {
    let (coordinator, worker) = pair(&Network::new(31));
    gate.known.judge(HashSet::new(), HashSet::new());
    refused_at((&coordinator, &worker), gate, claim, name).await
}

async fn refused_at(
    (coordinator, worker): (&Endpoint, &Endpoint),
    gate: &Gate,
    claim: Claim<'_>,
    name: &str,
) -> (RejectCode, String) {
    let (near, far) = knock(coordinator, worker).await;
    let (joined, welcomed) = tokio::join!(join(&near, claim, named(name)), welcome(&far, gate));
    assert!(matches!(welcomed.unwrap_err(), NetError::Rejected { .. }));
    let NetError::Rejected { code, text } = joined.unwrap_err() else { panic!("not a rejection") };
    (code, text)
}

#[test]
fn nobody_may_ask_unless_the_mesh_is_open() {
    simulate(async {
        let (code, text) = refused(&gate(), Claim::Key, "attic").await;
        assert!(code == RejectCode::Secret && text.contains("--open"), "{text}");
        let open = Gate { strangers: Strangers::MayAsk, ..gate() };
        for name in ["", "attic; reboot", "-y", ".x", "аttic", &"a".repeat(65)] {
            assert_eq!(refused(&open, Claim::Key, name).await.0, RejectCode::Malformed, "{name}");
        }
        // A ticket of elsewhere is refused as ever: who shows one does not ask.
        assert_eq!(refused(&open, Claim::Ticket(&JoinSecret::random()), "attic").await.0, RejectCode::Secret);
    });
}

#[test]
fn who_asks_waits_at_the_door_and_both_ends_show_one_code() {
    simulate(async {
        let gate = Gate { strangers: Strangers::MayAsk, ..gate() };
        let (coordinator, worker) = pair(&Network::new(32));
        let mut codes = Vec::new();
        for _ in 0..2 {
            let (near, far) = knock(&coordinator, &worker).await;
            let deciding = async {
                let applicant = welcome(&far, &gate).await.unwrap();
                assert_eq!(applicant.right(), Right::Asks);
                // A person needs longer than a program does; meanwhile the worker may open nothing else.
                tokio::time::sleep(ASKING_TIME / 2).await;
                assert!(matches!(near.open_frames(PlanEpoch(1)).await, Err(NetError::Deadline { .. })));
                assert_eq!(applicant.code(), near.own_join_code());
                codes.push(applicant.code());
                applicant.admit(Welcome::default()).await.unwrap()
            };
            let (joined, _streams) = tokio::join!(join(&near, Claim::Key, named("attic")), deciding);
            joined.unwrap();
            near.open_frames(PlanEpoch(1)).await.unwrap();
        }
        assert_ne!(codes[0], codes[1], "another connection has another code");
    });
}

#[test]
fn a_key_that_was_admitted_needs_no_more_and_a_revoked_one_is_refused_with_any_ticket() {
    simulate(async {
        let gate = gate();
        let (coordinator, worker) = pair(&Network::new(33));
        let peers = (&coordinator, &worker);
        gate.known.judge(HashSet::from([worker.peer_id()]), HashSet::new());
        let (near, far) = knock(&coordinator, &worker).await;
        let (joined, _admitted) = tokio::join!(join(&near, Claim::Key, named("attic")), async {
            let applicant = welcome(&far, &gate).await.unwrap();
            assert_eq!(applicant.right(), Right::Key);
            applicant.admit(Welcome::default()).await.unwrap()
        });
        joined.unwrap();
        gate.known.judge(HashSet::new(), HashSet::from([worker.peer_id()]));
        for claim in [Claim::Key, Claim::Ticket(&gate.secret)] {
            let (code, text) = refused_at(peers, &gate, claim, "attic").await;
            assert!(code == RejectCode::Secret && text.contains("revoked"), "{text}");
        }
    });
}

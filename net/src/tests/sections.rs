//! Peers that say more than this version knows: what may be skipped is, and what may not is refused by name.

use super::*;

/// An empty section for each of the tags.
pub(super) fn sections(tags: &[u16]) -> Sections {
    let mut sections = Sections::default();
    tags.iter().for_each(|tag| sections.set(*tag, Bytes::new()));
    sections
}

#[test]
fn a_hello_with_more_than_is_known_is_skipped_or_refused() {
    simulate(async {
        let gate = gate();
        let me = Introduction { sections: sections(&[8]), ..Introduction::default() };
        let (coordinator, worker) = pair(&Network::new(16));
        let (near, far) = knock(&coordinator, &worker).await;
        let (joined, hello) = tokio::join!(join(&near, Claim::Ticket(&gate.secret), me), async {
            let (hello, ..) = welcome(&far, &gate).await?.admit(Welcome::default()).await?;
            Ok::<_, NetError>(hello)
        });
        assert!(joined.is_ok());
        assert_eq!(hello.unwrap().sections, sections(&[8]));

        let me = Introduction { sections: sections(&[8, 9]), ..Introduction::default() };
        let (near, far) = knock(&coordinator, &worker).await;
        let (joined, welcomed) = tokio::join!(join(&near, Claim::Ticket(&gate.secret), me), welcome(&far, &gate));
        assert!(matches!(welcomed, Err(NetError::Rejected { code: RejectCode::Version, .. })), "{welcomed:?}");
        let NetError::Rejected { code: RejectCode::Version, text } = joined.unwrap_err() else { panic!("let in") };
        let worker = worker.peer_id().short();
        assert!(text.starts_with(&format!("the hello of peer {worker}: section 9 must be understood")), "{text}");
    });
}

#[test]
fn a_welcome_with_more_than_is_known_is_skipped_or_refused() {
    simulate(async {
        let gate = gate();
        let (coordinator, worker) = pair(&Network::new(17));
        for (tags, understood) in [(&[8][..], true), (&[8, 9], false)] {
            let (near, far) = knock(&coordinator, &worker).await;
            let answer = Welcome { sections: sections(tags), ..Welcome::default() };
            let joining = join(&near, Claim::Ticket(&gate.secret), Introduction::default());
            let (joined, admitted) =
                tokio::join!(joining, async { welcome(&far, &gate).await?.admit(answer.clone()).await });
            admitted.unwrap();
            match joined {
                Ok((welcome, ..)) => assert_eq!((welcome, understood), (answer, true)),
                Err(error) => {
                    assert!(matches!(error, NetError::Section { source: SectionError::Unknown { tag: 9 }, .. }));
                    let expected = format!("the welcome of peer {} cannot be taken", coordinator.peer_id().short());
                    assert!(error.to_string().starts_with(&expected) && !understood, "{error}");
                    assert!(matches!(far.closed().await, NetError::Closed { code: CloseCode::Version, .. }));
                }
            }
        }
    });
}

#[test]
fn a_message_with_more_than_is_known_is_skipped_or_refused() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(18));
        let (near, far) = connect(&coordinator, &worker).await;
        let (mut sender, _receiver) = near.open_control().await.unwrap();
        let (_back, mut forth) = far.accept_control().await.unwrap();
        let drain = crate::encode(&Message::Drain).unwrap();
        sender.send_bytes(&[&drain[..], &[8, 0, 1, 0, 0, 0, 42]].concat()).await.unwrap();
        assert_eq!(forth.recv().await.unwrap(), Message::Drain);
        sender.send_bytes(&[&drain[..], &[9, 0, 0, 0, 0, 0]].concat()).await.unwrap();
        let error = forth.recv().await.unwrap_err().to_string();
        let peer = worker.peer_id().short();
        assert!(error.starts_with(&format!("peer {peer} sent a bad message")), "{error}");
        assert!(error.contains("section 9 must be understood"), "{error}");
        let NetError::Closed { code: CloseCode::Malformed, text, .. } = near.closed().await else { panic!("open") };
        assert_eq!(text, error);
    });
}

#[test]
fn a_frame_with_more_than_is_known_is_skipped_or_refused() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(19));
        let (near, far) = connect(&coordinator, &worker).await;
        let mut there = near.open_frames(PlanEpoch(1)).await.unwrap();
        let mut frames = next_link(&far).await;
        let mut sent = Frame { sections: sections(&[8]), ..frame(1, 3) };
        there.send(&sent).await.unwrap();
        assert_eq!(frames.recv().await.unwrap(), Some(sent.clone()));
        sent.sections.set(9, Bytes::from_static(b"mask"));
        there.send(&sent).await.unwrap();
        let error = frames.recv().await.unwrap_err().to_string();
        let expected = format!("peer {} sent a bad frame: section 9 must be understood", worker.peer_id().short());
        assert!(error.starts_with(&expected), "{error}");
        assert!(matches!(near.closed().await, NetError::Closed { code: CloseCode::Malformed, .. }));
    });
}

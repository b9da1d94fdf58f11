//! Which workers of a plan have its tensors from which others, so that the coordinator sends each tensor once: those that
//! have one give it to those that lack it, and of several that all lack it one gets it first and gives it on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use qmesh_net::{
    PeerId, PeerWay, PeerWays, SectionContentError, Sections, Stock, TensorSources, WeightAskers, WeightPeer,
    WeightSource, WeightSources,
    limits::{SOURCE_PEERS, SOURCE_TENSORS, SOURCES_OF_TENSOR},
};

use super::{planned::PlannedModel, ways, worker::Joined};

/// A worker that gets a stage.
#[derive(Clone, Debug)]
pub(super) struct Recipient<'a> {
    pub(super) joined: &'a Joined,
    pub(super) layers: Range<usize>,
    /// Layers whose tensors it has.
    pub(super) stocks: &'a [Range<usize>],
}

/// What a worker is told about the tensors of its stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Dealt {
    pub(super) sources: WeightSources,
    pub(super) askers: WeightAskers,
    /// Where those who may ask are, so that their packets can come in.
    pub(super) ways: PeerWays,
}

impl Dealt {
    /// As sections of its `Load`.
    pub(super) fn sections(&self) -> Sections {
        let mut sections = Sections::default();
        let put = |sections: &mut Sections| -> Result<(), SectionContentError> {
            self.sources.put(sections)?;
            self.askers.put(sections)?;
            self.ways.put(sections)
        };
        match put(&mut sections) {
            Ok(()) => sections,
            Err(error) => {
                // A bug, and no harm: the coordinator has every tensor.
                tracing::error!("workers are not told of each other's tensors: {error}");
                Sections::default()
            }
        }
    }
}

/// Deals with every tensor of the model; the answer has one entry for each recipient.
pub(super) fn deal(model: &PlannedModel, recipients: &[Recipient<'_>]) -> Vec<Dealt> {
    let mut table = Table::new(recipients);
    let mut shared = 0;
    for (hash, tensors) in contents(model) {
        let holds =
            |layers: &Range<usize>| tensors.iter().any(|&t| model.spec.holds(layers, model.spec.tensors[t].role));
        let has = |r: &Recipient<'_>| r.stocks.iter().any(&holds);
        let all = || recipients.iter().enumerate();
        let holders: Vec<usize> = all().filter(|(_, r)| has(r)).map(|(i, _)| i).collect();
        let lacking: Vec<usize> = all().filter(|(_, r)| holds(&r.layers) && !has(r)).map(|(i, _)| i).collect();
        match (holders.len(), lacking.len()) {
            (_, 0) | (0, 1) => continue,
            (0, _) => {
                // Every tensor has another who gets it first, so that all of them share the work.
                let first = lacking[shared % lacking.len()];
                for &asker in lacking.iter().filter(|&&asker| asker != first) {
                    table.ask(asker, hash, first, Stock::Coming);
                }
            }
            (count, _) => {
                for (turn, &asker) in lacking.iter().enumerate() {
                    let others = (0..count.min(SOURCES_OF_TENSOR)).map(|i| holders[(shared + turn + i) % count]);
                    for holder in others {
                        table.ask(asker, hash, holder, Stock::Held);
                    }
                }
            }
        }
        shared += 1;
    }
    table.finish(model)
}

/// The model's contents, in the order of their first tensor, each with its tensors: equal ones travel once.
fn contents(model: &PlannedModel) -> Vec<([u8; 32], Vec<usize>)> {
    let mut places: HashMap<[u8; 32], usize> = HashMap::new();
    let mut contents: Vec<([u8; 32], Vec<usize>)> = Vec::new();
    for (tensor, &hash) in model.hashes.iter().enumerate() {
        let place = *places.entry(hash).or_insert(contents.len());
        match contents.get_mut(place) {
            Some((_, tensors)) => tensors.push(tensor),
            None => contents.push((hash, vec![tensor])),
        }
    }
    contents
}

/// Who asks whom for what, as it is being dealt.
struct Table<'a> {
    recipients: &'a [Recipient<'a>],
    rows: Vec<Row>,
}

/// One recipient's part of it, by recipients' places.
#[derive(Clone, Default)]
struct Row {
    peers: Vec<usize>,
    tensors: BTreeMap<[u8; 32], Vec<WeightSource>>,
    askers: BTreeSet<PeerId>,
    awaited: BTreeSet<[u8; 32]>,
}

impl<'a> Table<'a> {
    fn new(recipients: &'a [Recipient<'a>]) -> Self {
        Self { recipients, rows: vec![Row::default(); recipients.len()] }
    }

    /// Lets one ask the other, as far as a `Load` has room to say so: what is left out comes from the coordinator.
    fn ask(&mut self, asker: usize, hash: [u8; 32], giver: usize, stock: Stock) {
        let key = self.recipients[asker].joined.peer;
        let given = &self.rows[giver];
        let may_come = given.askers.contains(&key) || given.askers.len() < SOURCE_PEERS;
        let may_await = given.awaited.len() < SOURCE_TENSORS;
        let row = &mut self.rows[asker];
        let known = row.peers.iter().position(|&peer| peer == giver);
        let may_name = known.is_some() || row.peers.len() < SOURCE_PEERS;
        let may_list = row.tensors.contains_key(&hash) || row.tensors.len() < SOURCE_TENSORS;
        if !(may_come && may_await && may_name && may_list) {
            return;
        }
        let place = known.unwrap_or_else(|| {
            row.peers.push(giver);
            row.peers.len() - 1
        });
        // There are at most `SOURCE_PEERS` of them.
        let peer = u16::try_from(place).unwrap_or(u16::MAX);
        row.tensors.entry(hash).or_default().push(WeightSource { peer, stock });
        let given = &mut self.rows[giver];
        given.askers.insert(key);
        match stock {
            Stock::Coming => drop(given.awaited.insert(hash)),
            Stock::Held => {}
        }
    }

    fn finish(self, model: &PlannedModel) -> Vec<Dealt> {
        let recipients = self.recipients;
        let named = |recipient: &Recipient<'_>, place: usize| {
            let giver = recipients[place].joined;
            let addresses = ways::addresses(recipient.joined, giver);
            WeightPeer { peer: giver.peer, name: giver.name.clone(), addresses }
        };
        let way = |recipient: &Recipient<'_>, asker: &PeerId| {
            let asker = recipients.iter().find(|other| other.joined.peer == *asker)?.joined;
            Some(PeerWay { peer: asker.peer, addresses: ways::addresses(recipient.joined, asker), relay: None })
        };
        let dealt = |(row, recipient): (Row, &Recipient<'_>)| {
            let places = places(model, &recipient.layers);
            let at = |hash: &[u8; 32]| places.get(hash).copied();
            let tensors = row.tensors.into_iter();
            let tensors = tensors.filter_map(|(hash, sources)| Some(TensorSources { tensor: at(&hash)?, sources }));
            let mut tensors: Vec<_> = tensors.collect();
            tensors.sort_by_key(|of| of.tensor);
            let mut first: Vec<u32> = row.awaited.iter().filter_map(at).collect();
            first.sort_unstable();
            Dealt {
                sources: WeightSources {
                    peers: row.peers.iter().map(|&place| named(recipient, place)).collect(),
                    tensors,
                },
                ways: PeerWays { peers: row.askers.iter().filter_map(|asker| way(recipient, asker)).collect() },
                askers: WeightAskers { peers: row.askers.into_iter().collect(), first },
            }
        };
        self.rows.into_iter().zip(recipients).map(dealt).collect()
    }
}

/// Where the contents stand among the tensors of the `Load` for these layers.
fn places(model: &PlannedModel, layers: &Range<usize>) -> HashMap<[u8; 32], u32> {
    let held = model.spec.tensors.iter().zip(&model.hashes).filter(|(tensor, _)| model.spec.holds(layers, tensor.role));
    // What comes twice is found at its first place.
    let mut places = HashMap::new();
    for ((_, &hash), place) in held.zip(0..) {
        places.entry(hash).or_insert(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::Path};

    use qmesh_models::weights::ModelFile;

    use super::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");

    fn model(name: &str) -> PlannedModel {
        let file = ModelFile::open(Path::new(TINY).join(name)).unwrap();
        let hashes = file.hashes(&file.spec().tensors).unwrap();
        let spec = file.spec().clone();
        PlannedModel { name: "tiny".into(), id: [7; 32], spec, hashes, context: 8, kv_positions: 64, chunk_rows: 8 }
    }

    fn joined(names: &[&str]) -> Vec<Joined> {
        let one = |(i, name): (u8, &&str)| {
            let address = SocketAddr::from(([127, 0, 0, 1], i.into()));
            Joined::new((*name).to_owned(), PeerId([i; 32]), address, 1 << 30, 1)
        };
        (1..).zip(names).map(one).collect()
    }

    /// All layers of the tiny model.
    const WHOLE: Range<usize> = 0..3;

    /// Bytes that the coordinator has to send where everybody asks as told.
    fn coordinator_bytes(model: &PlannedModel, recipients: &[Recipient<'_>], dealt: &[Dealt]) -> u64 {
        let one = |(recipient, dealt): (&Recipient<'_>, &Dealt)| {
            let own = model.spec.tensors.iter().zip(&model.hashes);
            let own = own.filter(|(t, _)| model.spec.holds(&recipient.layers, t.role));
            let from_others: Vec<u32> = dealt.sources.tensors.iter().map(|of| of.tensor).collect();
            let lacks = |t: &qmesh_models::spec::TensorSpec| {
                !recipient.stocks.iter().any(|stock| model.spec.holds(stock, t.role))
            };
            // Equal contents travel once, under the place of the first.
            let mut seen = BTreeSet::new();
            let asked = own.zip(0..).filter(|&((_, hash), _)| seen.insert(*hash));
            asked.filter(|((t, _), i)| lacks(t) && !from_others.contains(i)).map(|((t, _), _)| t.bytes).sum::<u64>()
        };
        recipients.iter().zip(dealt).map(one).sum()
    }

    fn distinct_bytes(model: &PlannedModel, layers: &Range<usize>) -> u64 {
        let held = model.spec.tensors.iter().zip(&model.hashes).filter(|(t, _)| model.spec.holds(layers, t.role));
        held.map(|(t, hash)| (hash, t.bytes)).collect::<BTreeMap<_, _>>().values().sum()
    }

    #[test]
    fn what_three_lack_alike_is_sent_once_and_each_gets_a_part_of_it_first() {
        let (model, joined) = (model("llama.gguf"), joined(&["a", "b", "c"]));
        let recipient = |joined| Recipient { joined, layers: 0..3, stocks: &[] };
        let recipients: Vec<_> = joined.iter().map(recipient).collect();
        let dealt = deal(&model, &recipients);
        assert_eq!(coordinator_bytes(&model, &recipients, &dealt), distinct_bytes(&model, &(0..3)));
        for (i, one) in dealt.iter().enumerate() {
            assert_eq!((one.sources.peers.len(), one.askers.peers.len()), (2, 2), "{i}");
            assert!(!one.askers.first.is_empty());
            // What a worker gets first it asks nobody for: nobody waits for somebody who waits.
            let asked: Vec<_> = one.sources.tensors.iter().map(|of| of.tensor).collect();
            assert!(one.askers.first.iter().all(|first| !asked.contains(first)), "{i}");
            assert!(one.sources.tensors.iter().all(|of| of.sources[0].stock == Stock::Coming));
        }
    }

    #[test]
    fn what_somebody_has_the_coordinator_does_not_send() {
        let (model, joined) = (model("llama.gguf"), joined(&["old", "new"]));
        let (all, none) = (vec![WHOLE], []);
        let recipients = [
            Recipient { joined: &joined[0], layers: 0..1, stocks: &all },
            Recipient { joined: &joined[1], layers: 1..3, stocks: &none },
        ];
        let dealt = deal(&model, &recipients);
        assert_eq!(coordinator_bytes(&model, &recipients, &dealt), 0);
        assert_eq!(dealt[0].sources, WeightSources::default(), "it lacks nothing");
        assert_eq!(dealt[0].askers, WeightAskers { peers: vec![joined[1].peer], first: Vec::new() });
        let peer = WeightPeer { peer: joined[0].peer, name: "old".into(), addresses: vec!["127.0.0.1:1".into()] };
        assert_eq!(dealt[1].sources.peers, [peer]);
        assert!(dealt[1].sources.tensors.iter().all(|of| of.sources == [WeightSource { peer: 0, stock: Stock::Held }]));
        // And a worker that has all it is given asks nobody.
        let again = [Recipient { layers: 0..3, ..recipients[0].clone() }];
        assert_eq!(deal(&model, &again), [Dealt::default()]);
    }

    #[test]
    fn a_first_plan_sends_once_what_two_of_its_stages_hold() {
        for name in ["mistral-tied.gguf", "llama3-rope.gguf"] {
            let (model, joined) = (model(name), joined(&["a", "b", "c"]));
            let stages = [0..1, 1..2, 2..model.spec.layers.len()];
            let recipients: Vec<_> = joined
                .iter()
                .zip(&stages)
                .map(|(joined, layers)| Recipient { joined, layers: layers.clone(), stocks: &[] })
                .collect();
            let dealt = deal(&model, &recipients);
            let bytes = coordinator_bytes(&model, &recipients, &dealt);
            assert_eq!(bytes, distinct_bytes(&model, &(0..model.spec.layers.len())), "{name}");
            let apart = recipients.iter().map(|r| distinct_bytes(&model, &r.layers)).sum::<u64>();
            assert!(apart > bytes, "{name}: the stages have something in common");
            for one in &dealt {
                let mut sections = one.sections();
                assert!(WeightSources::find(&sections, 1000).is_ok_and(|found| found == one.sources));
                sections.set(WeightSources::TAG, Vec::new());
                assert!(WeightSources::find(&sections, 1000).is_err());
            }
        }
    }

    #[test]
    fn more_workers_than_a_load_can_name_are_left_to_the_coordinator() {
        let model = model("llama.gguf");
        let names: Vec<String> = (0..SOURCE_PEERS + 3).map(|i| format!("w{i}")).collect();
        let joined = joined(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let all = [WHOLE];
        let stocks = |i: usize| if i == 0 { &all[..] } else { &[] };
        let recipients: Vec<_> = joined
            .iter()
            .enumerate()
            .map(|(i, joined)| Recipient { joined, layers: 0..3, stocks: stocks(i) })
            .collect();
        let dealt = deal(&model, &recipients);
        assert_eq!(dealt[0].askers.peers.len(), SOURCE_PEERS);
        assert!(dealt.iter().all(|one| !one.sections().is_empty() || one == &Dealt::default()));
        assert_eq!(dealt.iter().filter(|one| one == &&Dealt::default()).count(), 2);
    }
}

//! What holds whatever happens, for two families at once.

use super::*;
use dunlin_protocol::command::Shadow;
use dunlin_protocol::report::ShadowReport;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn version() -> impl Strategy<Value = u64> {
    prop_oneof![1_u64..4, 101_u64..104]
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(Slot::A), Just(Slot::B)]
}

/// What a server asks for: one family, both or none; what was asked before, it may say again.
fn desired_of_both() -> impl Strategy<Value = Event> {
    let one = |versions| proptest::option::of((versions, proptest::option::of(1_u64..40)));
    (1_u64..40, one(1_u64..4), one(101_u64..104)).prop_map(|(generation, digits, faces)| {
        let epoch = 1;
        let bundle = |(version, asked): (u64, Option<u64>)| DesiredBundle {
            asked: asked.map(|generation| Revision { epoch, generation }),
            ..in_shadow(version, version % 2 == 1)
        };
        Event::Desired(Desired {
            revision: Revision { epoch, generation },
            bundles: digits.into_iter().chain(faces).map(bundle).collect(),
        })
    })
}

fn in_shadow(version: u64, shadow: bool) -> DesiredBundle {
    let mut want = want(version);
    want.probation.shadow = shadow.then_some(Shadow {
        comparisons: 10,
        agreement_permille_min: Some(500),
        deadline_ms: 10_000,
        ..Shadow::default()
    });
    want
}

fn shadowed(version: u64, compared: u64, agreed: u64) -> Event {
    Event::Shadowed {
        digest: want(version).digest,
        so_far: ShadowReport {
            compared,
            agreed: agreed.min(compared),
            ..ShadowReport::default()
        },
    }
}

fn any_death() -> impl Strategy<Value = Event> {
    let at_work = proptest::option::of(prop::collection::vec(version(), 0..3));
    (any::<bool>(), any::<bool>(), at_work).prop_map(|(listened, killed, at_work)| {
        Event::WorkerDied {
            detail: String::new(),
            listened,
            killed,
            at_work: at_work.map(|versions| versions.into_iter().map(|v| want(v).digest).collect()),
        }
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => desired_of_both(),
        1 => ("[a-z]", version()).prop_map(|(id, v)| install(&id, v)),
        3 => version().prop_map(received),
        3 => version().prop_map(passed),
        3 => Just(consent()),
        1 => version().prop_map(|v| failed(v, ReceiveFailureKind::Refused)),
        1 => version().prop_map(|v| failed(v, ReceiveFailureKind::Transient)),
        1 => version().prop_map(failed_trial),
        5 => version().prop_map(activated),
        2 => (slot(), version()).prop_map(|(s, v)| activate_failed(s, v)),
        1 => (slot(), version()).prop_map(|(s, v)| slot_damaged(s, v)),
        3 => (version(), 0_u64..20, 0_u64..3).prop_map(|(v, i, e)| counted(v, i, e)),
        3 => (version(), 0_u64..15, 0_u64..15).prop_map(|(v, c, a)| shadowed(v, c, a)),
        1 => any_death(),
        1 => Just(Event::Started),
        3 => Just(Event::Tick),
    ]
}

/// What the world around the device knows of a family.
#[derive(Default)]
struct World {
    /// What each slot holds, and what of it passed its trial.
    content: [Option<Digest>; 2],
    tried: [Option<Digest>; 2],
    /// What the worker that lives now was last told to serve.
    told: Option<(Slot, Digest)>,
    /// What it said that it serves, since it was last told.
    loaded: Option<Digest>,
    /// What it was last told to run in the shadow.
    shadow: Option<(Slot, Digest)>,
}

fn at(slot: Slot) -> usize {
    usize::from(slot == Slot::B)
}

impl World {
    fn before(&mut self, event: &Event, model: &Model) {
        match event {
            Event::Started | Event::WorkerDied { .. } => {
                (self.told, self.loaded, self.shadow) = (None, None, None);
            }
            Event::Activated { digest } if self.told.is_some_and(|(_, d)| d == *digest) => {
                self.loaded = Some(*digest);
            }
            Event::TrialDone {
                digest,
                report: TrialReport::Passed { .. },
            } if matches!(&model.phase, Phase::Trial { want, .. } if want.digest == *digest) => {
                self.tried[at(model.spare())] = Some(*digest);
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::Receive { want, slot } => {
                self.content[at(*slot)] = Some(want.digest);
                self.tried[at(*slot)] = None;
            }
            Effect::Serve { slot, digest, .. } => {
                let (held, tried) = (self.content[at(*slot)], self.tried[at(*slot)]);
                assert_eq!(held, Some(*digest), "what is served is there");
                assert_eq!(tried, Some(*digest), "and was tried");
                (self.told, self.loaded) = (Some((*slot, *digest)), None);
            }
            Effect::Shadow { slot, digest, .. } => {
                let (held, tried) = (self.content[at(*slot)], self.tried[at(*slot)]);
                assert_eq!((held, tried), (Some(*digest), Some(*digest)));
                assert!(self.told.is_some(), "in the shadow of something");
                self.shadow = Some((*slot, *digest));
            }
            Effect::EndShadow { .. } => self.shadow = None,
            Effect::ServeNothing { .. } => (self.told, self.loaded) = (None, None),
            _ => {}
        }
    }
}

fn of(effect: &Effect) -> Option<&Family> {
    match effect {
        Effect::Receive { want, .. } => Some(&want.family),
        Effect::Cancel { family }
        | Effect::Trial { family, .. }
        | Effect::Shadow { family, .. }
        | Effect::EndShadow { family }
        | Effect::Serve { family, .. }
        | Effect::ServeNothing { family } => Some(family),
        Effect::Report | Effect::Event { .. } => None,
    }
}

fn model_in(state: &State, family: &Family) -> Model {
    state.models.get(family).cloned().unwrap_or_default()
}

/// Of one family, after one event.
fn check(event: &Event, before: &Model, now: &Model, world: &World, loaded: Option<Digest>) {
    assert_eq!(world.told.map(|(slot, _)| slot), now.serving());
    let shadow = match &now.phase {
        Phase::Shadow { want, .. } => Some((now.spare(), want.digest)),
        _ => None,
    };
    assert_eq!(world.shadow, shadow);
    let told = world.told.map(|(_, digest)| digest);
    assert_eq!(told, now.active().map(|a| a.digest));
    let died = matches!(event, Event::WorkerDied { .. });
    match (&now.kept, &before.kept) {
        (Some(kept), Some(fell)) if died && kept != fell => {
            assert_eq!(
                before.previous.as_ref(),
                Some(kept),
                "back to what was kept before"
            );
        }
        (Some(kept), then) if then.as_ref() != Some(kept) => {
            let was_on_probation = matches!(before.phase, Phase::Probation { .. });
            assert!(was_on_probation, "kept without probation");
            assert_eq!(loaded, Some(kept.bundle.digest), "kept, never loaded");
            assert_eq!(now.serving(), before.serving());
        }
        (None, Some(_)) => {
            let broke = matches!(
                event,
                Event::ActivateFailed { .. } | Event::SlotDamaged { .. }
            );
            assert!(broke || died, "lost without cause");
        }
        _ => {}
    }
}

proptest! {
    /// Whatever happens: the serving slot is never written to, only a slot whose content passed
    /// its trial is served, the worker was last told to serve what is reported as active, a version
    /// is kept only after a probation in which the worker said that it serves, and what happens to
    /// one family's bundle leaves the other family alone.
    #[test]
    fn invariants_hold_under_any_schedule(events in prop::collection::vec(any_event(), 1..160)) {
        let mut d = Device::new();
        let mut worlds: BTreeMap<Family, World> = BTreeMap::new();
        for version in [1, 101] {
            worlds.insert(family_of(version), World::default());
        }
        for event in events {
            let before = d.state.clone();
            let mut loaded = BTreeMap::new();
            for (family, world) in &mut worlds {
                world.before(&event, &model_in(&before, family));
                loaded.insert(family.clone(), world.loaded);
            }
            d.feed(event.clone());
            for effect in &d.effects {
                let Some(family) = of(effect) else { continue };
                if let Effect::Receive { slot, .. } = effect {
                    prop_assert_ne!(Some(*slot), model_in(&d.state, family).serving());
                }
                worlds.get_mut(family).unwrap().carry_out(effect);
            }
            if matches!(event, Event::WorkerDied { .. }) {
                // The shell tells the next worker.
                for effect in d.state.serve() {
                    let family = of(&effect).unwrap().clone();
                    worlds.get_mut(&family).unwrap().carry_out(&effect);
                }
            }
            for (family, world) in &worlds {
                let now = model_in(&d.state, family);
                check(&event, &model_in(&before, family), &now, world, loaded[family]);
                let about = match &event {
                    Event::Received { digest, .. }
                    | Event::TrialDone { digest, .. }
                    | Event::Activated { digest }
                    | Event::ActivateFailed { digest, .. }
                    | Event::SlotDamaged { digest, .. }
                    | Event::Shadowed { digest, .. }
                    | Event::Counted { digest, .. } => Some(*digest),
                    _ => None,
                };
                let mine = |v: u64| family_of(v) == *family && about == Some(want(v).digest);
                if about.is_some() && !(1..4).chain(101..104).any(mine) {
                    prop_assert_eq!(now, model_in(&before, family));
                }
            }
            prop_assert!(d.state.revision >= before.revision);
            prop_assert!(d.state.sequence >= before.sequence);
            // The server is told of all that it could see.
            let told = d.effects.contains(&Effect::Report);
            let (was, is) = (before.reported("0"), d.state.reported("0"));
            let same = was.revision == is.revision && was.models.iter().map(|m| &m.active).eq(is.models.iter().map(|m| &m.active));
            prop_assert!(told || same);
        }
    }
}

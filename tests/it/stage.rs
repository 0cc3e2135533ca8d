//! Which engines are loaded when they do not all fit: the sets, what a stage decides, and how it is shown.

use chainette::engine::broker::stage::{Feeding, Flow, Next, Stage, sets};
use chainette::engine::broker::{Broker, Budget};
use chainette::engine::provision::Need;
use chainette::event::EventSender;
use chainette::plan::explain::{
    TreeOptions, dot_in_turns, mermaid_in_turns, switches_json, tree, tree_in_turns,
};
use chainette::plan::{EngineIx, Plan};

use crate::diagnostics::good;

/// A chain over the engines `a` to `d`.
const CHAIN: &str = "name: turns
engines:
  a: {backend: openai, model: small, endpoint: 'http://h/v1'}
  b: {backend: openai, model: large, endpoint: 'http://h/v1'}
  c: {backend: openai, model: tiny, endpoint: 'http://h/v1'}
  d: {backend: openai, model: hosted, endpoint: 'http://h/v1'}
steps:
  - {id: first, engine: a, user_prompt: '{{ text }}'}
  - {id: hosted, engine: d, user_prompt: '{{ chain_input.text }}'}
  - parallel:
      - {branch: x, join: x, steps: [{id: on_b, engine: b, user_prompt: x}, {id: on_c, engine: c, user_prompt: x}]}
      - {branch: y, steps: [{id: tidy, apply: {jq: .}}, {id: again, engine: a, user_prompt: y}]}
  - {id: last, engine: a, user_prompt: z}
";

fn plan() -> (Plan, [EngineIx; 4]) {
    let plan = good(CHAIN).plan;
    let broker = Broker::new(&plan.engines, EventSender::none()).expect("engines can be set up");
    let ix = ["a", "b", "c", "d"].map(|name| broker.index(name).expect("the engine is known"));
    (plan, ix)
}

fn need(ram: u64, vram: &[(u32, u64)]) -> Option<Need> {
    Some(Need {
        ram,
        vram: vram.to_vec(),
    })
}

fn budget(ram: u64, vram: &[(u32, u64)]) -> Budget {
    Budget {
        ram,
        vram: vram.iter().copied().collect(),
    }
}

#[test]
fn engines_that_fit_together() {
    let (_, [a, b, c, _]) = plan();
    // In the order in which Steps use them: `d` is the second.
    let needs = [need(60, &[]), None, need(50, &[]), need(30, &[])];
    let of = |ram| sets(&needs, &budget(ram, &[]));
    assert_eq!(of(140), [vec![a, b, c]], "all fit: there is nothing to switch");
    // `c` fits beside either: it is never unloaded for them.
    assert_eq!(of(100), [vec![a, c], vec![b, c]]);
    assert_eq!(of(85), [vec![a], vec![b, c]]);
    assert_eq!(of(60), [vec![a], vec![b], vec![c]]);
    // What can never fit is for whoever loads it to say.
    assert_eq!(of(10), [vec![a], vec![b], vec![c]]);
    assert!(sets(&[None, None], &budget(1, &[])).is_empty());
    let on_gpus = [
        need(1, &[(0, 8)]),
        None,
        need(1, &[(1, 8)]),
        need(1, &[(0, 3), (1, 3)]),
    ];
    let two = budget(100, &[(0, 10), (1, 10)]);
    assert_eq!(sets(&on_gpus, &two), [vec![a, b], vec![c]]);
}

/// A stage over `a`, `b` and `c`, one at a time, and what it says.
struct Played(Stage, EngineIx);

impl Played {
    fn new() -> (Self, [EngineIx; 4]) {
        let (_, ix) = plan();
        let stage = Stage::new(ix[..3].iter().map(|engine| vec![*engine]).collect());
        stage.begin(ix[0]);
        (Self(stage, ix[0]), ix)
    }

    fn next(&self, in_flight: usize, has_room: bool, feeding: Feeding) -> Next {
        self.0.next(&Flow {
            in_flight,
            has_room,
            feeding,
            first: self.1,
        })
    }

    fn park(&self, engine: EngineIx, rows: usize) {
        (0..rows).for_each(|_| self.0.parked(engine));
    }

    fn resume(&self, engine: EngineIx, rows: usize) {
        (0..rows).for_each(|_| self.0.unparked(engine));
    }
}

#[test]
fn as_many_rows_as_there_is_room_for_go_through_one_engine() {
    let (played, [a, b, c, d]) = Played::new();
    let stage = &played.0;
    assert!(stage.admits(a) && !stage.admits(b) && !stage.admits(c));
    assert!(stage.admits(d), "it is always there");
    assert_eq!(played.next(0, true, Feeding::More), Next::Read);
    played.park(b, 5);
    played.park(c, 7);
    assert_eq!(played.next(3, true, Feeding::More), Next::Read, "there is room");
    assert_eq!(
        played.next(3, false, Feeding::More),
        Next::Wait,
        "rows on their way need `a`"
    );
    assert_eq!((stage.switches(), stage.loaded()), (0, vec![a]));
    assert_eq!(stage.switching(), None);
    // Most rows first.
    assert_eq!(played.next(0, false, Feeding::More), Next::Resume);
    assert_eq!((stage.switches(), stage.loaded()), (1, vec![c]));
    assert_eq!(stage.switching(), Some((vec![c], vec![a])));
    stage.lent(c);
    assert_eq!(stage.switching(), None);
    played.resume(c, 7);
    assert_eq!(
        played.next(7, true, Feeding::More),
        Next::Wait,
        "new rows need `a`"
    );
    assert_eq!(played.next(0, true, Feeding::More), Next::Resume);
    assert_eq!((stage.switches(), stage.loaded()), (2, vec![b]));
    // Rows that go on to `a` come before new ones.
    played.resume(b, 5);
    played.park(a, 5);
    assert_eq!(played.next(0, true, Feeding::More), Next::Resume);
    assert_eq!((stage.switches(), stage.rows(a)), (3, 5));
    played.resume(a, 5);
    assert_eq!(played.next(5, true, Feeding::More), Next::Read);
    assert_eq!(played.next(5, true, Feeding::Ended), Next::Wait);
    assert_eq!(played.next(0, true, Feeding::Ended), Next::End);
}

#[test]
fn the_first_engine_is_loaded_again_when_there_is_a_row_for_it() {
    let (played, [a, b, ..]) = Played::new();
    played.park(b, 1);
    assert_eq!(played.next(0, false, Feeding::More), Next::Resume);
    played.resume(b, 1);
    assert_eq!(played.next(0, true, Feeding::More), Next::Read);
    assert_eq!(played.0.loaded(), [b], "perhaps none comes");
    played.0.enter(a);
    assert_eq!((played.0.loaded(), played.0.switches()), (vec![a], 2));
}

#[test]
fn however_little_room_there_is_rows_get_on() {
    let (played, [_, b, ..]) = Played::new();
    assert_eq!(played.next(0, false, Feeding::More), Next::Read);
    assert_eq!(played.next(1, false, Feeding::More), Next::Wait);
    played.park(b, 1);
    assert_eq!(played.next(0, false, Feeding::More), Next::Resume);
}

#[test]
fn a_stream_that_is_silent_holds_nothing_up() {
    let (played, [_, b, ..]) = Played::new();
    assert_eq!(
        played.next(0, true, Feeding::Idle),
        Next::Read,
        "there is nothing else to do"
    );
    played.park(b, 1);
    assert_eq!(played.next(0, true, Feeding::More), Next::Read);
    assert_eq!(played.next(1, true, Feeding::Idle), Next::Read);
    assert_eq!(played.next(0, true, Feeding::Idle), Next::Resume);
    assert_eq!(played.0.loaded(), [b]);
}

#[test]
fn the_tree_says_where_switches_are() {
    let (plan, [a, b, c, _]) = plan();
    let sets = [vec![a, c], vec![b, c]];
    let ascii = TreeOptions {
        ascii: true,
        ..TreeOptions::default()
    };
    assert_eq!(tree_in_turns(&plan, ascii, &[]), tree(&plan, ascii));
    let shown = [
        tree_in_turns(&plan, TreeOptions::default(), &sets),
        tree_in_turns(&plan, ascii, &sets),
        dot_in_turns(&plan, &sets),
        mermaid_in_turns(&plan, &sets),
        format!("{:#}", switches_json(&plan, &sets)),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

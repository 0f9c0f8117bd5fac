#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use proptest::prelude::*;

const BLOCK: usize = BLOCK_MAX_BYTES;

fn file(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// What a server says to one request.
fn serve(file: &[u8], ask: Ask) -> Answer {
    let at = usize::try_from(ask.offset).unwrap().min(file.len());
    let end = (at + ask.length as usize).min(file.len());
    Answer::Data {
        offset: ask.offset,
        total: file.len() as u64,
        bytes: file[at..end].to_vec(),
    }
}

#[test]
fn a_lossless_link_carries_every_block_once() {
    let file = file(BLOCK * 40 + 7);
    let mut window = Window::new(0, 0);
    let (mut asked, mut got) = (0, Vec::new());
    for now_ms in 0.. {
        let asks = window.asks(now_ms);
        asked += asks.len();
        for ask in asks {
            assert!(
                window
                    .answer(ask.offset, serve(&file, ask), now_ms)
                    .unwrap()
            );
        }
        while let Some(bytes) = window.take() {
            got.extend(bytes);
        }
        if window.is_done() {
            break;
        }
    }
    assert_eq!(got, file);
    assert_eq!(asked, 41);
    assert_eq!(window.requests, REQUESTS_MAX);
}

#[test]
fn what_is_lost_is_asked_again_later_and_later() {
    let mut window = Window::new(0, 0);
    assert_eq!(window.asks(0).len(), 1);
    let (mut now_ms, mut waits) = (0, Vec::new());
    for _ in 0..6 {
        let due = window.next_look_ms();
        assert!(window.asks(due - 1).is_empty());
        waits.push(due - now_ms);
        now_ms = due;
        assert_eq!(window.asks(now_ms).len(), 1);
    }
    assert_eq!(waits, [3000, 6000, 12_000, 15_000, 15_000, 15_000]);
    assert_eq!(window.requests, 1);
    // On a new connection it is asked at once.
    window.reconnected(now_ms);
    assert_eq!(window.asks(now_ms).len(), 1);
}

#[test]
fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
    let mut window = Window::new(0, 0);
    let ask = window.asks(0)[0];
    let busy = |retry_after_ms| Answer::Busy { retry_after_ms };
    assert!(!window.answer(ask.offset, busy(700), 10).unwrap());
    assert!(window.asks(709).is_empty());
    assert_eq!(window.next_look_ms(), 710);
    assert_eq!(window.asks(710), [ask]);
    window.answer(ask.offset, busy(u64::MAX), 720).unwrap();
    assert_eq!(window.next_look_ms(), 10_720);
}

#[test]
fn answers_that_are_not_to_the_question_are_of_no_use() {
    let file = file(BLOCK * 3);
    let mut window = Window::new(0, 0);
    let ask = window.asks(0)[0];
    let said = |offset, total, length: usize| Answer::Data {
        offset,
        total,
        bytes: vec![0; length],
    };
    let total = file.len() as u64;
    for (at, answer) in [
        (0, said(1, total, BLOCK)),
        (0, said(0, total, 1)),
        (0, said(0, total, BLOCK - 1)),
        (BLOCK as u64, said(BLOCK as u64, total, BLOCK)),
        (0, Answer::Failed),
    ] {
        assert!(!window.answer(at, answer, 0).unwrap());
    }
    assert!(window.answer(0, serve(&file, ask), 0).unwrap());
    assert!(!window.answer(0, serve(&file, ask), 0).unwrap(), "doubled");
    let next = window.asks(0)[0];
    let other = said(next.offset, total + 1, BLOCK);
    assert_eq!(window.answer(next.offset, other, 0), Err(End::Changed));
    assert_eq!(
        window.answer(next.offset, Answer::Absent, 0),
        Err(End::Absent)
    );
}

#[test]
fn a_transfer_that_is_complete_or_longer_than_the_file_is_noticed() {
    let file = file(10);
    let mut whole = Window::new(10, 0);
    let ask = whole.asks(0)[0];
    assert!(whole.answer(10, serve(&file, ask), 0).unwrap());
    assert!(whole.is_done() && whole.take().is_none());
    let mut beyond = Window::new(11, 0);
    let ask = beyond.asks(0)[0];
    assert_eq!(
        beyond.answer(11, serve(&file, ask), 0),
        Err(End::TooShort { total_bytes: 10 })
    );
    let mut empty = Window::new(0, 0);
    let ask = empty.asks(0)[0];
    assert!(empty.answer(0, serve(b"", ask), 0).unwrap());
    assert!(empty.is_done());
}

#[test]
fn a_bandwidth_limit_keeps_about_a_second_under_way() {
    let mut window = Window::new(0, 20 * 1024);
    let ask = window.asks(0)[0];
    assert_eq!(ask.length, 10 * 1024);
    let file = file(1 << 20);
    window.answer(0, serve(&file, ask), 0).unwrap();
    assert!(window.take().is_some());
    assert_eq!(window.asks(0).len(), 2);
}

/// What a link does to one answer.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Deliver { after_ms: i64 },
    Lose,
    Double { after_ms: i64, again_ms: i64 },
    Busy,
    Fail,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => (0_i64..4000).prop_map(|after_ms| Fate::Deliver { after_ms }),
        2 => Just(Fate::Lose),
        1 => (0_i64..900, 0_i64..9000).prop_map(|(after_ms, again_ms)| Fate::Double { after_ms, again_ms }),
        1 => Just(Fate::Busy),
        1 => Just(Fate::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn lost_late_doubled_and_disordered_answers_make_the_same_file(
        length in 0_usize..BLOCK * 12,
        offset in 0_usize..BLOCK * 2,
        rate in prop_oneof![Just(0_u64), 1_u64..1_000_000],
        fates in proptest::collection::vec(fate(), 1..60),
    ) {
        let (file, offset) = (file(length), offset.min(length));
        let mut window = Window::new(offset as u64, rate);
        let mut on_the_way: Vec<(i64, u64, Answer)> = Vec::new();
        let (mut now_ms, mut sent, mut got) = (0_i64, 0, Vec::new());
        while !window.is_done() {
            for ask in window.asks(now_ms) {
                prop_assert!((1..=BLOCK as u32).contains(&ask.length));
                // The link is well again in the end.
                let fate = fates.get(sent).copied().unwrap_or(Fate::Deliver { after_ms: 5 });
                sent += 1;
                let mut send = |after_ms, answer| on_the_way.push((now_ms + after_ms, ask.offset, answer));
                match fate {
                    Fate::Deliver { after_ms } => send(after_ms, serve(&file, ask)),
                    Fate::Lose => {}
                    Fate::Double { after_ms, again_ms } => {
                        send(after_ms, serve(&file, ask));
                        send(again_ms, serve(&file, ask));
                    }
                    Fate::Busy => send(1, Answer::Busy { retry_after_ms: 300 }),
                    Fate::Fail => send(1, Answer::Failed),
                }
            }
            prop_assert!(window.pending.len() + window.here.len() <= REQUESTS_MAX);
            on_the_way.sort_by_key(|(at, ..)| *at);
            let next = on_the_way.first().map_or(i64::MAX, |(at, ..)| *at);
            let look = window.next_look_ms().max(now_ms + 1);
            now_ms = now_ms.max(next.min(look));
            prop_assert!(now_ms < 10_000_000, "never ends");
            while on_the_way.first().is_some_and(|(at, ..)| *at <= now_ms) {
                let (at, offset, answer) = on_the_way.remove(0);
                window.answer(offset, answer, at).unwrap();
            }
            while let Some(bytes) = window.take() {
                got.extend(bytes);
            }
        }
        prop_assert_eq!(got, &file[offset..]);
    }
}

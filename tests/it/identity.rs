//! Certificates that follow on one another, over real TLS between the agent's own code and a fleet
//! server in this process: renewals, recoveries, and every way to be refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "identity/desk.rs"]
mod desk;

use desk::{Desk, YEAR_S};
use dunlin_agent::http::HttpError;
use dunlin_agent::renew::{How, RenewError};
use dunlin_server::config::EnrolmentSettings;
use dunlin_tests::operator::eventually;
use dunlin_tests::random::Random;
use serde_json::json;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");

fn lives(certificate_life_s: u32) -> EnrolmentSettings {
    EnrolmentSettings {
        certificate_life_s,
        ..EnrolmentSettings::default()
    }
}

/// The server's code of a refusal.
fn code<T: std::fmt::Debug>(result: Result<T, RenewError>) -> String {
    let error = result.unwrap_err();
    error
        .refusal()
        .unwrap_or_else(|| panic!("{error}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_brings_a_new_key_and_ends_the_one_before() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    let copy = device.copy();
    let before = device.identity();
    assert_eq!(
        device.renewer().renew_or_recover().await.unwrap(),
        How::Renewed
    );

    let after = device.identity();
    assert_ne!(after.certificate_sha256(), before.certificate_sha256());
    assert_ne!(after.enrolled.key_file, before.enrolled.key_file);
    let key = &after.enrolled.key_file;
    assert_eq!(device.key_files(), std::slice::from_ref(key));
    assert_eq!(device.renewer().recover_if_ended().await.unwrap(), None);

    // A copy of the disk, made before, is out, and its use is noted.
    assert_eq!(code(copy.renewer().renew_or_recover().await), "superseded");
    desk.has_event("edge-1", "certificate_renewed").await;
    assert_eq!(code(copy.renewer().recover_if_ended().await), "superseded");
    copy.download_refused("superseded").await;
    desk.has_event("edge-1", "identity_shared").await;
    assert_eq!(
        device.renewer().renew_or_recover().await.unwrap(),
        How::Renewed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_made_before_a_renewal_is_finished_in_peace() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    let (open, root) = device.client();
    open.get(&root, 1 << 20).await.unwrap();
    device.renewer().renew_or_recover().await.unwrap();
    // The same connection, in which the server saw the certificate before.
    open.get(&root, 1 << 20).await.unwrap();
    let events = desk.events("edge-1").await;
    assert!(!events.contains("identity_shared"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_costs_nothing() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    for _ in 0..3 {
        let next = device.identity().next_key().unwrap();
        let body = json!({"csr_pem": next.csr_pem("edge-1").unwrap()});
        let (status, _) = device.post("/identity/renew", &body).await;
        assert_eq!(status, 200);
    }
    assert_eq!(device.renewer().recover_if_ended().await.unwrap(), None);
    assert_eq!(
        device.renewer().renew_or_recover().await.unwrap(),
        How::Renewed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ended_is_recovered_by_its_key_alone() {
    let desk = Desk::open(lives(5)).await;
    let device = desk.enrol("edge-1").await;
    let stranger = desk.stranger();
    device.has_ended().await;
    let before = device.identity();
    // The stranger saw the certificate, which is no secret, and has a key of its own.
    let forged = device.recovery_signed_by(&stranger).await;
    assert_eq!(desk.recover(&forged).await, (403, "bad_proof".to_owned()));

    assert_eq!(
        device.renewer().renew_or_recover().await.unwrap(),
        How::Recovered
    );
    let after = device.identity();
    assert_ne!(after.certificate_sha256(), before.certificate_sha256());
    assert_eq!(device.renewer().recover_if_ended().await.unwrap(), None);
    desk.has_event("edge-1", "certificate_recovered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_replaced_recovers_nothing() {
    let desk = Desk::open(lives(6)).await;
    let device = desk.enrol("edge-1").await;
    let stolen = device.copy();
    assert_eq!(
        device.renewer().renew_or_recover().await.unwrap(),
        How::Renewed
    );
    stolen.has_ended().await;
    assert_eq!(
        code(stolen.renewer().renew_or_recover().await),
        "superseded"
    );
    desk.has_event("edge-1", "identity_shared").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_neither_renews_nor_recovers() {
    let desk = Desk::open(lives(6)).await;
    let device = desk.enrol("edge-1").await;
    desk.revoke("edge-1").await;
    assert_eq!(code(device.renewer().renew_or_recover().await), "revoked");
    assert_eq!(code(device.renewer().recover_if_ended().await), "revoked");
    device.has_ended().await;
    assert_eq!(code(device.renewer().renew_or_recover().await), "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_faulty_recovery_has_its_own_answer() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    let good = device.recovery().await;
    // Whole and true, but for the one thing: the certificate is still good.
    assert_eq!(desk.recover(&good).await, (409, "not_ended".to_owned()));

    let with = |change: &dyn Fn(&mut dunlin_protocol::enroll::RecoverRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let foreign = desk::foreign_certificate();
    let cases = [
        ("bad_nonce", with(&|r| r.nonce.replace_range(..2, "ff"))),
        ("bad_nonce", with(&|r| r.nonce.clear())),
        (
            "bad_certificate",
            with(&|r| r.certificate_pem = foreign.clone()),
        ),
        ("bad_certificate", with(&|r| r.certificate_pem.clear())),
        (
            "bad_certificate",
            with(&|r| r.certificate_pem = "A".repeat(20_000)),
        ),
        ("bad_proof", with(&|r| r.proof_hex.clear())),
        ("bad_proof", with(&|r| r.proof_hex = "00".repeat(70))),
        ("bad_proof", with(&|r| r.proof_hex = "0".repeat(30_000))),
        // The signature is over another request than the one sent.
        ("bad_proof", with(&|r| r.csr_pem.push('\n'))),
    ];
    for (expected, request) in cases {
        assert_eq!(desk.recover(&request).await, (403, expected.to_owned()));
    }
    let (status, code) = desk.recover_raw(b"{").await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
    let (status, _) = desk.recover_raw(&vec![b' '; 1 << 20]).await;
    assert!(status == 400 || status == 413, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleets_ca_alone_does_not_make_a_device() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    // Signed by the CA itself, as its thief or a restored database would have them.
    let (of_nobody, _) = desk.ended("edge-9", 100);
    let (unrecorded, _) = desk.ended("edge-1", 100);
    let (old, sha256) = desk.ended("edge-1", 366);
    device.was_given(&desk, sha256).await;
    let (within, sha256) = desk.ended("edge-1", 364);
    device.was_given(&desk, sha256).await;
    for (expected, request) in [
        ((403, "unknown_device"), of_nobody),
        ((403, "unknown_certificate"), unrecorded),
        ((403, "ended_too_long"), old),
        ((200, ""), within),
    ] {
        let (status, code) = desk.recover(&desk.prove(request).await).await;
        assert_eq!((status, code.as_str()), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_key_that_the_device_had_is_refused() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    let body = json!({"csr_pem": device.key().csr_pem("edge-1").unwrap()});
    let (status, code) = device.post("/identity/renew", &body).await;
    assert_eq!((status, code.as_str()), (422, "key_reused"));
    let (status, code) = device
        .post("/identity/renew", &json!({"csr_pem": "x"}))
        .await;
    assert_eq!((status, code.as_str()), (400, "bad_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_is_turned_off_by_a_grace_of_no_days() {
    let desk = Desk::open(EnrolmentSettings {
        certificate_life_s: 5,
        recover_expired_days: 0,
    })
    .await;
    let device = desk.enrol("edge-1").await;
    device.has_ended().await;
    assert_eq!(
        code(device.renewer().renew_or_recover().await),
        "recovery_off"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_is_given_so_many_certificates_an_hour() {
    let desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    let mut refusal = None;
    for _ in 0..lives(YEAR_S).certificates_an_hour_max() {
        let next = device.identity().next_key().unwrap();
        let body = json!({"csr_pem": next.csr_pem("edge-1").unwrap()});
        let (status, code) = device.post("/identity/renew", &body).await;
        refusal = (status != 200).then_some((status, code));
    }
    assert_eq!(
        refusal,
        Some((429, "too_many".to_owned())),
        "enrolment counts too"
    );
    assert_eq!(device.renewer().recover_if_ended().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_no_reason_to_recover() {
    let mut desk = Desk::open(lives(YEAR_S)).await;
    let device = desk.enrol("edge-1").await;
    desk.stop().await;
    let down = device.renewer().renew_or_recover().await.unwrap_err();
    assert!(
        matches!(down, RenewError::Http(HttpError::Connect { .. })),
        "{down}"
    );
    let before = device.identity().certificate_sha256();
    desk.start().await;
    eventually("the server is back", async || {
        let renewed = device.renewer().renew_or_recover().await;
        Ok(renewed.map(|_| ()).map_err(|e| e.to_string()))
    })
    .await
    .unwrap();
    assert_ne!(device.identity().certificate_sha256(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_agent_renews_by_itself_and_stays_connected() {
    let desk = Desk::open(lives(12)).await;
    let device = desk.enrol("edge-1").await;
    let mut agent = device.start(PROGRAM);
    desk.is_online().await;
    for _ in 0..2 {
        device.has_another_certificate().await;
    }
    desk.has_event("edge-1", "certificate_renewed").await;
    // Past the end of the certificate that the connection began with.
    desk.is_online().await;
    let ended = agent.terminate().await.unwrap();
    assert!(ended.success(), "{ended}: {}", agent.log_tail());
    let log = device.log();
    assert!(!log.contains("connection lost"), "{log}");
    assert!(!log.contains("certificate_recovered"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_at_any_moment_of_its_renewals_comes_back() {
    let desk = Desk::open(lives(6)).await;
    let device = desk.enrol("edge-1").await;
    let mut random = Random::from_environment("killed renewals");
    let mut changes = 0;
    for _ in 0..8 {
        // Due, or even over: the agent changes its certificate as soon as it runs.
        device.is_due().await;
        let before = device.identity().certificate_sha256();
        let mut agent = device.start(PROGRAM);
        tokio::time::sleep(Duration::from_millis(random.below(250))).await;
        agent.kill().await.unwrap();
        changes += u32::from(device.identity().certificate_sha256() != before);
    }
    println!("{changes} of 8 kills came after the certificate was in place");
    // What is seen of it next is the next one's.
    desk.is_offline().await;
    let mut agent = device.start(PROGRAM);
    desk.is_online().await;
    let ended = agent.terminate().await.unwrap();
    assert!(ended.success(), "{ended}: {}", agent.log_tail());
    assert_eq!(device.key_files().len(), 1, "{:?}", device.key_files());
    let shared = desk.events("edge-1").await.contains("identity_shared");
    assert!(!shared, "no kill makes a device look like two");
}

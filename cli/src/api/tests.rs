#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn queries_are_escaped() {
    let query = [
        ("label", "site=köln".to_owned()),
        ("online", "true".to_owned()),
    ];
    assert_eq!(query_text(&query), "?label=site%3Dk%C3%B6ln&online=true");
    assert_eq!(query_text(&[]), "");
}

#[test]
fn lists_are_found_bare_or_named() {
    assert_eq!(items(json!([1]), "devices").len(), 1);
    assert_eq!(items(json!({"devices": [1, 2]}), "devices").len(), 2);
    assert!(items(json!(3), "devices").is_empty());
}

#[test]
fn the_servers_words_are_shown() {
    let answer = |status: u16, body: &str| Answer {
        status: StatusCode::from_u16(status).unwrap(),
        body: body.to_owned().into(),
    };
    let said = accepted(answer(
        409,
        r#"{"error":{"code":"blob-missing","message":"blob 12ab is not uploaded"}}"#,
    ));
    assert_eq!(
        said.err().unwrap().to_string(),
        "refused by the fleet server (blob-missing): blob 12ab is not uploaded"
    );
    let mute = accepted(answer(502, "")).err().unwrap();
    assert!(mute.to_string().contains("Bad Gateway"), "{mute}");
    assert!(accepted(answer(204, "")).is_ok());
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = ApiClient::new(&Connection {
        url,
        token: Some("t".to_owned()),
        ca_pem: None,
    })
    .unwrap();
    let error = client.fleet().await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error}");
    assert_eq!(crate::failure::Failure::from(error).exit.status(), 69);
}

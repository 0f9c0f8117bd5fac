//! The description of the API names every route.

use super::fixture::Fleet;
use http::StatusCode;

#[tokio::test]
async fn the_document_lists_every_route() {
    let fleet = Fleet::start().await;
    let document = fleet.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/healthz",
        "/metrics",
        "/api/v1/fleet",
        "/api/v1/trust/root",
        "/api/v1/trust/roots",
        "/api/v1/trust/online-keys",
        "/api/v1/trust/metadata/{file}",
        "/api/v1/tokens",
        "/api/v1/tokens/{id}",
        "/api/v1/devices",
        "/api/v1/devices/{id}",
        "/api/v1/devices/{id}/events",
        "/api/v1/devices/{id}/desired",
        "/api/v1/blobs/{sha256}",
        "/api/v1/patches/{from}/{to}",
        "/api/v1/bundles",
        "/api/v1/bundles/{family}/{version}",
        "/api/v1/rollouts",
        "/api/v1/rollouts/{id}",
        "/api/v1/rollouts/{id}/abort",
        "/api/v1/rollouts/{id}/resume",
        "/api/v1/drift",
        "/api/v1/alert-rules",
        "/api/v1/alert-rules/{name}",
        "/api/v1/alerts",
        "/api/v1/silences",
        "/api/v1/silences/{id}",
        "/api/v1/webhooks",
        "/api/v1/webhooks/{name}",
        "/api/v1/dead-letters",
        "/api/v1/dead-letters/{id}/redeliver",
        "/api/v1/consumers",
    ] {
        assert!(
            paths.contains_key(path),
            "{path} is not in {:?}",
            paths.keys()
        );
    }
    assert_eq!(paths.len(), 44);
    let page = fleet.get("/docs/").await;
    assert_eq!(page.status, StatusCode::OK);
    let metrics = fleet.get("/metrics").await;
    let text = String::from_utf8(metrics.bytes.to_vec()).unwrap();
    assert!(text.contains("dunlin_http_requests_total"), "{text}");
    assert!(text.contains("dunlin_devices_online 0"), "{text}");
}

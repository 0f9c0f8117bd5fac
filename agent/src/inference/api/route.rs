//! Which question a path asks.

use super::ApiError;
use http::{Method, StatusCode};

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `GET /v2`.
    Server,
    /// `GET /v2/health/live`.
    Live,
    /// `GET /v2/health/ready`.
    Ready,
    /// Something about a model.
    Model {
        /// Family.
        name: String,
        /// Version, if the path names one.
        version: Option<String>,
        /// What about it.
        ask: ModelAsk,
    },
    /// `GET /v2/models/stats`: those of every model.
    Statistics,
    /// `POST /v2/repository/index`.
    Index,
    /// `POST /v2/repository/models/{name}/load` and `…/unload`: always refused.
    Change {
        /// Family.
        name: String,
        /// `load` or `unload`.
        what: &'static str,
    },
}

/// What is asked about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelAsk {
    /// `GET …`.
    Metadata,
    /// `GET …/ready`.
    Ready,
    /// `GET …/stats`.
    Statistics,
    /// `POST …/infer`.
    Infer,
}

impl Route {
    fn method(&self) -> &'static str {
        match self {
            Self::Index
            | Self::Change { .. }
            | Self::Model {
                ask: ModelAsk::Infer,
                ..
            } => "POST",
            _ => "GET",
        }
    }
}

/// Finds the route of a request.
pub(crate) fn route(method: &Method, path: &str) -> Result<Route, ApiError> {
    let found = of_path(path).ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("no such path: {path:?}; see the Open Inference Protocol v2, /v2/…"),
        )
    })?;
    let expected = found.method();
    if method.as_str() == expected {
        return Ok(found);
    }
    let message = format!("{path}: expected {expected}, got {method}");
    Err(ApiError {
        allow: Some(expected),
        ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
    })
}

/// No path of the protocol has more parts than this.
const PARTS_MAX: usize = 6;

fn of_path(path: &str) -> Option<Route> {
    let mut parts = [""; PARTS_MAX];
    let mut count = 0;
    for part in path.trim_matches('/').split('/') {
        *parts.get_mut(count)? = part;
        count += 1;
    }
    let model = |name: &str, version: Option<&str>, ask| {
        Some(Route::Model {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            ask,
        })
    };
    let change = |name: &str, what| {
        let name = name.to_owned();
        Some(Route::Change { name, what })
    };
    match parts.get(..count)? {
        ["v2"] => Some(Route::Server),
        ["v2", "health", "live"] => Some(Route::Live),
        ["v2", "health", "ready"] => Some(Route::Ready),
        ["v2", "repository", "index"] => Some(Route::Index),
        ["v2", "repository", "models", name, "load"] => change(name, "load"),
        ["v2", "repository", "models", name, "unload"] => change(name, "unload"),
        ["v2", "models", "stats"] => Some(Route::Statistics),
        ["v2", "models", name] => model(name, None, ModelAsk::Metadata),
        ["v2", "models", name, "versions", v] => model(name, Some(v), ModelAsk::Metadata),
        ["v2", "models", name, last] => model(name, None, of_model(last)?),
        ["v2", "models", name, "versions", v, last] => model(name, Some(v), of_model(last)?),
        _ => None,
    }
}

fn of_model(last: &str) -> Option<ModelAsk> {
    match last {
        "ready" => Some(ModelAsk::Ready),
        "infer" => Some(ModelAsk::Infer),
        "stats" => Some(ModelAsk::Statistics),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_route() {
        let get = |path| route(&Method::GET, path);
        let post = |path: &str| route(&Method::POST, path);
        assert_eq!(get("/v2").unwrap(), Route::Server);
        assert_eq!(get("/v2/").unwrap(), Route::Server);
        assert_eq!(get("/v2/health/ready").unwrap(), Route::Ready);
        assert_eq!(get("/v2/models/stats").unwrap(), Route::Statistics);
        assert_eq!(post("/v2/repository/index").unwrap(), Route::Index);
        let (name, version) = ("digits".to_owned(), Some("2".to_owned()));
        for what in ["load", "unload"] {
            let path = format!("/v2/repository/models/digits/{what}");
            let name = name.clone();
            assert_eq!(post(&path).unwrap(), Route::Change { name, what });
        }
        for (path, version, ask) in [
            ("/v2/models/digits", None, ModelAsk::Metadata),
            ("/v2/models/digits/ready", None, ModelAsk::Ready),
            (
                "/v2/models/digits/versions/2/stats",
                version.clone(),
                ModelAsk::Statistics,
            ),
        ] {
            let name = name.clone();
            assert_eq!(get(path).unwrap(), Route::Model { name, version, ask });
        }
        let ask = ModelAsk::Infer;
        let infer = post("/v2/models/digits/versions/2/infer").unwrap();
        assert_eq!(infer, Route::Model { name, version, ask });
        for path in [
            "/",
            "/v1",
            "/v2/models/digits/x",
            "/v2/models/a/versions/1/x/y",
            "/v2/models/a/versions/1/ready/y/z",
        ] {
            let status = get(path).unwrap_err().status;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        }
        for path in ["/v2/models/digits/infer", "/v2/repository/index"] {
            let error = get(path).unwrap_err();
            assert_eq!(error.status, StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(error.allow, Some("POST"));
        }
    }
}

//! The REST API: Sauce's public shapes, under `/rest/v1`. Success is exactly 200, anything else `{"error": …}`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Path, Query, RawPathParams, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::broker::Listener;
use super::launcher::{self, Life};
use super::ledger::{self, NewEndpoint};
use super::limits::{
    DISCARDED_BYTES_MAX, DRAIN_MAX, HISTORY_DEFAULT, HISTORY_MAX, REASON_BYTES_MAX, REST_FAREWELL_MAX, REST_HEAD_MAX,
    REST_REQUEST_MAX, SMALL_BODY_BYTES_MAX, STREAMS_ANSWER_MAX,
};
use super::registry::{Command, Created, Member, Order};
use super::tunnel_ca::TunnelCa;
use super::{Cloud, accounts, history, messages, unix_now};
use crate::api::{self, Counts, DeleteArguments, Messages, Outcome, Tunnel, TunnelRequest};
use crate::secret::{self, Secret};

type Context = State<Arc<Cloud>>;

/// Serves one connection to its end; when `evicted` ends it is closed after the request under way.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    cloud: &Arc<Cloud>,
    stream: S,
    evicted: oneshot::Receiver<()>,
) {
    let service = hyper_util::service::TowerToHyperService::new(router(Arc::clone(cloud)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(REST_HEAD_MAX)
        .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        _ = evicted => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(REST_FAREWELL_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(e) = done {
        tracing::debug!("REST connection: {e}");
    }
}

fn router(cloud: Arc<Cloud>) -> Router {
    let account = Router::new()
        .route("/tunnels", get(list).post(create))
        .route("/all_tunnels", get(list_all))
        .route("/tunnels/info/updates", get(updates))
        .route("/tunnels/{id}", get(show).delete(delete))
        .route("/tunnels/{id}/ca.pem", get(ca))
        .route("/tunnels/{id}/num_jobs", get(num_jobs))
        .route("/tunnels/{id}/connected", post(connected))
        .route("/errors", post(crashed));
    Router::new()
        .nest("/rest/v1/{user}", account)
        .route("/rest/v1/public/tunnels/info/versions", get(versions))
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "Not found") })
        .method_not_allowed_fallback(|| async { Failure::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed") })
        .layer(middleware::from_fn(in_time))
        .with_state(cloud)
}

async fn in_time(request: axum::extract::Request, next: Next) -> Response {
    match tokio::time::timeout(REST_REQUEST_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(StatusCode::REQUEST_TIMEOUT, "The request took too long").into_response(),
    }
}

/// Any answer but 200.
struct Failure(StatusCode, String);

impl Failure {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }

    fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    fn no_tunnel() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Tunnel not found")
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        tracing::error!("the store: {e}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The cloud's store fails; its log says why",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = api::Failure { error: Some(self.1) };
        let mut response = (self.0, Json(error)).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Basic realm=\"culvert\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The account named in the path, for which the caller has proved that it may act. Runs before a body is read.
struct Account(String);

impl FromRequestParts<Arc<Cloud>> for Account {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, cloud: &Arc<Cloud>) -> Result<Self, Failure> {
        let caller = authenticate(&parts.headers, cloud).await?;
        let params = RawPathParams::from_request_parts(parts, cloud).await;
        let params = params.map_err(|_| Failure::bad("The path is not UTF-8"))?;
        let user = params.iter().find(|(name, _)| *name == "user").map(|(_, value)| value);
        let user = user.unwrap_or_default();
        if user == caller {
            return Ok(Self(caller));
        }
        if accounts::exists(&cloud.store, user).await? {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                format!("Not authorized for user {user}"),
            ));
        }
        Err(Failure::new(StatusCode::NOT_FOUND, "User not found"))
    }
}

/// HTTP Basic (RFC 7617): the caller's name, if its access key is right.
async fn authenticate(headers: &HeaderMap, cloud: &Cloud) -> Result<String, Failure> {
    let refused = || Failure::new(StatusCode::UNAUTHORIZED, "Not authorized");
    let (name, key) = credentials(headers).ok_or_else(refused)?;
    if accounts::check(&cloud.store, &name, &key).await? {
        Ok(name)
    } else {
        Err(refused())
    }
}

fn credentials(headers: &HeaderMap) -> Option<(String, Secret)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Secret::new(String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?);
    let (name, key) = decoded.expose().split_once(':')?;
    Some((name.to_owned(), Secret::new(key)))
}

/// A whole body of at most `most` bytes. A longer one is read on, up to a bound: a client that is still writing when the
/// connection closes would see that and not the reason.
async fn read(body: Body, most: usize) -> Result<Vec<u8>, Failure> {
    let too_long = || {
        let text = format!("The body is longer than {most} bytes");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let mut body = std::pin::pin!(body);
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|e| Failure::bad(format!("The body ended early: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > DISCARDED_BYTES_MAX {
            return Err(too_long());
        }
        if length <= most {
            bytes.extend_from_slice(&data);
        }
    }
    if length > most { Err(too_long()) } else { Ok(bytes) }
}

/// A JSON object; an empty body is one with nothing in it.
fn parse<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, Failure> {
    let bytes = bytes.trim_ascii();
    match bytes.first() {
        None => Ok(T::default()),
        // serde would take an array for the fields in their order.
        Some(b'{') => {
            serde_json::from_slice(bytes).map_err(|e| Failure::bad(format!("The body is not what it should be: {e}")))
        }
        Some(_) => Err(Failure::bad("The body is not a JSON object")),
    }
}

async fn create(
    State(cloud): Context,
    Account(user): Account,
    headers: HeaderMap,
    uri: Uri,
    body: Body,
) -> Result<Json<Tunnel>, Failure> {
    let request: TunnelRequest = parse(&read(body, api::BODY_BYTES_MAX).await?)?;
    request.check().map_err(Failure::bad)?;
    request.rules().map_err(Failure::bad)?;
    let fingerprint = request.culvert.as_ref().and_then(|c| c.fingerprint.clone());
    if fingerprint.as_deref().is_some_and(|f| secret::unhex::<32>(f).is_none()) {
        return Err(Failure::bad("culvert.fingerprint: 64 lower-case hex digits are needed"));
    }
    let address = match &cloud.options.public_address {
        Some(address) => address.clone(),
        None => address(&headers, &uri).ok_or_else(|| Failure::bad("The Host header is missing or wrong"))?,
    };
    let pool = cloud.registry().pool(&user, &request);
    let pool = pool.map_err(|text| Failure::new(StatusCode::CONFLICT, text))?;
    let id = secret::random_hex().map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let rules = request.settings_json();
    let (endpoint, proxy, shards, ca, new) = match pool {
        Some(pool) => (pool.endpoint, pool.proxy, pool.shards, pool.ca, None),
        None => {
            let listener = cloud.ports().listen().map_err(|e| {
                tracing::error!("proxy ports: {e}");
                let text = format!("No proxy port for another tunnel: {e}");
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, text)
            })?;
            let ca = cloud.authority.tunnel_ca(&id);
            let ca = ca.map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("No CA: {e}")))?;
            let (shards, certificate) = (cloud.options.endpoint_shards, ca.certificate.clone());
            (
                id.clone(),
                listener.address,
                shards,
                Some(certificate),
                Some((listener, ca)),
            )
        }
    };
    let order = Order {
        id: id.clone(),
        owner: user.clone(),
        request,
        address,
        endpoint: endpoint.clone(),
        proxy,
        shards,
        ca,
        created: unix_now(),
    };
    let created = cloud.registry().create(order, Instant::now()).map_err(Failure::bad)?;
    tracing::info!(tunnel = id, user, endpoint, "new tunnel");
    let member = Member {
        tunnel: id,
        fingerprint: fingerprint.clone(),
        index: created.index,
    };
    // From here on it goes on without its client: the registry has the tunnel.
    let begun = tokio::spawn(begin(cloud, member, created, rules, new)).await;
    let begun = begun.map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let mut said = Messages::none();
    if fingerprint.is_none() {
        let text = "The request names no culvert.fingerprint: no client can connect to this tunnel.";
        said.warning = Some(vec![text.to_owned()]);
    }
    let mut tunnel = begun?;
    tunnel.messages = Some(said);
    Ok(Json(tunnel))
}

/// Makes room for a tunnel that the registry has taken, writes it down, and starts its endpoint or joins one.
async fn begin(
    cloud: Arc<Cloud>,
    member: Member,
    created: Created,
    rules: Vec<u8>,
    new: Option<(Listener, TunnelCa)>,
) -> Result<Tunnel, Failure> {
    let halt = |old: &String| cloud.halt_unwritten(old, "replaced", false, DRAIN_MAX);
    let replaced = created.collisions.iter().filter_map(halt).collect();
    let (object, kept) = {
        let registry = cloud.registry();
        let tunnel = registry.object(&member.tunnel).zip(registry.kept(&member.tunnel));
        tunnel.ok_or_else(Failure::no_tunnel)?
    };
    let shards = cloud.options.endpoint_shards;
    let endpoint = new.as_ref().map(|(listener, ca)| NewEndpoint {
        id: kept.endpoint.clone(),
        proxy: listener.address,
        shards,
        rules: rules.clone(),
        ca: ca.clone(),
    });
    if let Err(e) = ledger::add(&cloud.store, object.clone(), kept, endpoint, replaced).await {
        cloud.registry().remove(&member.tunnel);
        return Err(e.into());
    }
    match (created.commands, new) {
        (Some(commands), Some((listener, ca))) => {
            let life = Life::new(
                Arc::clone(&cloud),
                member,
                shards,
                rules,
                ca,
                Arc::new(listener),
                commands,
            );
            tokio::spawn(launcher::run(life));
        }
        _ => {
            if let Err(failure) = join(&cloud, member).await {
                // The end of the pool, and of this tunnel with it, may have been written before its beginning.
                ledger::ended(&cloud.store, history::lost(&object, unix_now())).await?;
                return Err(failure);
            }
        }
    }
    Ok(object)
}

/// Tells the pool's endpoint of one more tunnel.
async fn join(cloud: &Cloud, member: Member) -> Result<(), Failure> {
    let commands = cloud.registry().commands(&member.tunnel);
    let commands = commands.ok_or_else(Failure::no_tunnel)?;
    // It does not end while the registry has this tunnel.
    let joined = commands.send(Command::Join(member)).await;
    joined.map_err(|_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "The pool has just ended; ask again"))
}

/// Where the client reached REST it reaches its endpoint, too: both are one port.
fn address(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let authority: axum::http::uri::Authority = match host {
        Some(host) => host.parse().ok()?,
        None => uri.authority()?.clone(),
    };
    if authority.as_str().len() > api::TEXT_BYTES_MAX || authority.as_str().contains('@') || authority.host().is_empty()
    {
        return None;
    }
    Some(format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(443)))
}

async fn list(
    State(cloud): Context,
    Account(user): Account,
    Query(query): Query<Vec<(String, String)>>,
) -> Json<Value> {
    let given = |name: &str| {
        let named = query.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let is = |name: &str, value: &str| given(name).contains(&value);
    let mut tunnels = cloud.registry().objects(&user, &given("protocol"));
    if is("filter", "one_per_pool") {
        let mut seen = std::collections::HashSet::new();
        tunnels.retain(|t| seen.insert(t.tunnel_identifier.clone()));
    }
    let ids: Vec<_> = tunnels.iter().filter_map(|t| t.id.clone()).collect();
    let list = if is("full", "1") || is("full", "true") {
        json!(tunnels)
    } else {
        json!(ids)
    };
    Json(if is("all", "1") || is("all", "true") {
        json!({ user: list })
    } else {
        list
    })
}

async fn list_all(
    State(cloud): Context,
    Account(user): Account,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Failure> {
    let limit = match query.get("limit") {
        Some(text) => text
            .parse::<u32>()
            .map_err(|_| Failure::bad("limit: a number is needed"))?,
        None => HISTORY_DEFAULT,
    };
    let limit = limit.min(HISTORY_MAX);
    let mut tunnels = cloud.registry().objects(&user, &[]);
    tunnels.reverse();
    tunnels.extend(history::ended(&cloud.store, &user, limit).await?);
    tunnels.truncate(limit as usize);
    Ok(Json(json!({ "tunnels": tunnels })))
}

/// Path parameters below an account.
#[derive(serde::Deserialize)]
struct Id {
    id: String,
}

async fn show(
    State(cloud): Context,
    Account(user): Account,
    Path(Id { id }): Path<Id>,
) -> Result<Json<Tunnel>, Failure> {
    // First: an endpoint that is being relaunched answers when it has its new key.
    let live = cloud.registry().owns(&user, &id);
    let counted = if live { Some(counts(&cloud, &id).await) } else { None };
    let mut tunnel = find(&cloud, &user, &id).await?;
    if let (Some(endpoint), Some(counted)) = (&mut tunnel.culvert, counted) {
        endpoint.counts = Some(counted);
    }
    Ok(Json(tunnel))
}

/// A tunnel of `user`, live or ended.
async fn find(cloud: &Cloud, user: &str, id: &str) -> Result<Tunnel, Failure> {
    let live = {
        let registry = cloud.registry();
        registry.object(id).filter(|_| registry.owns(user, id))
    };
    match live {
        Some(tunnel) => Ok(tunnel),
        None => history::load(&cloud.store, user, id)
            .await?
            .ok_or_else(Failure::no_tunnel),
    }
}

/// The CA that browsers of this tunnel are shown certificates of, and the cloud's own above it.
async fn ca(State(cloud): Context, Account(user): Account, Path(Id { id }): Path<Id>) -> Result<Response, Failure> {
    find(&cloud, &user, &id).await?;
    let none = "The tunnel has no CA: it has ended, or was made before its cloud had CAs for tunnels";
    let ca = cloud.registry().ca(&id);
    let ca = ca.ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, none))?;
    let chain = [&ca.0, cloud.authority.pem()].concat();
    Ok(([(header::CONTENT_TYPE, "application/x-pem-file")], chain).into_response())
}

async fn num_jobs(
    State(cloud): Context,
    Account(user): Account,
    Path(Id { id }): Path<Id>,
) -> Result<Json<Outcome>, Failure> {
    find(&cloud, &user, &id).await?;
    Ok(Json(Outcome {
        jobs_running: Some(counts(&cloud, &id).await.streams),
        id: Some(id),
        result: None,
    }))
}

/// Asks the endpoint. As long as there is no gateway, its open streams are what a job leaves to be seen.
async fn counts(cloud: &Cloud, id: &str) -> Counts {
    let Some(commands) = cloud.registry().commands(id) else {
        return Counts::default();
    };
    let (answer, answered) = oneshot::channel();
    let tunnel = id.to_owned();
    if commands.try_send(Command::Counts { tunnel, answer }).is_err() {
        return Counts::default();
    }
    let answered = tokio::time::timeout(STREAMS_ANSWER_MAX, answered).await;
    answered.ok().and_then(Result::ok).unwrap_or_default()
}

async fn delete(
    State(cloud): Context,
    Account(user): Account,
    Path(Id { id }): Path<Id>,
    Query(query): Query<HashMap<String, String>>,
    body: Body,
) -> Result<Json<Outcome>, Failure> {
    let more: DeleteArguments = parse(&read(body, SMALL_BODY_BYTES_MAX).await?)?;
    let arguments = DeleteArguments::of_query(&query);
    find(&cloud, &user, &id).await?;
    let jobs = counts(&cloud, &id).await.streams;
    let limit = if arguments.waits() || more.waits() {
        cloud.options.drain_timeout
    } else {
        DRAIN_MAX
    };
    let mut reason = messages::clean(arguments.reason.or(more.reason).as_deref().unwrap_or("user"));
    while reason.len() > REASON_BYTES_MAX {
        reason.pop();
    }
    cloud.halt(&id, &reason, true, limit).await;
    Ok(Json(Outcome {
        id: Some(id),
        result: Some(true),
        jobs_running: Some(jobs),
    }))
}

async fn connected(
    State(cloud): Context,
    Account(user): Account,
    Path(Id { id }): Path<Id>,
    body: Body,
) -> Result<Json<Outcome>, Failure> {
    // That it comes counts; what it says is for people.
    let _: api::Heartbeat = parse(&read(body, SMALL_BODY_BYTES_MAX).await?)?;
    let live = cloud.registry().heartbeat(&id, &user, Instant::now());
    let result = match live {
        Some(live) => live,
        None => {
            find(&cloud, &user, &id).await?;
            false
        }
    };
    Ok(Json(Outcome {
        id: Some(id),
        result: Some(result),
        jobs_running: None,
    }))
}

async fn updates(State(cloud): Context, Account(_): Account, headers: HeaderMap, uri: Uri) -> Json<Value> {
    let own = cloud.options.public_address.clone().or_else(|| address(&headers, &uri));
    let url = format!("https://{}/rest/v1", own.unwrap_or_default());
    let regions = json!([{ "name": "culvert", "url": url }]);
    Json(json!({ "fatal": [], "warning": [], "info": [], "configuration": { "regions": regions } }))
}

async fn versions(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let latest = env!("CARGO_PKG_VERSION");
    let client = query.get("client_version").map_or(latest, String::as_str);
    Json(json!({
        "latest_version": latest, "client_version": client, "status": "OK", "info_url": null,
        "download_url": null, "sha1": null, "warning": [], "downloads": {},
    }))
}

async fn crashed(Account(user): Account, body: Body) -> Result<Json<Value>, Failure> {
    let bytes = read(body, SMALL_BODY_BYTES_MAX).await?;
    tracing::warn!(user, bytes = bytes.len(), "a client reports that it crashed");
    Ok(Json(json!({ "result": true })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn basic_credentials_are_split_at_the_first_colon() {
        let encoded = BASE64.encode("ada:k:e:y");
        for scheme in ["Basic", "basic"] {
            let (name, key) = credentials(&headers(header::AUTHORIZATION, &format!("{scheme} {encoded}"))).unwrap();
            assert_eq!((name.as_str(), key.expose()), ("ada", "k:e:y"));
        }
        for bad in [
            "Bearer x",
            "Basic",
            "Basic !",
            &format!("Basic {}", BASE64.encode("nocolon")),
        ] {
            assert!(credentials(&headers(header::AUTHORIZATION, bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn links_dial_where_rest_was_reached() {
        let of = |host: &str| address(&headers(header::HOST, host), &Uri::from_static("/"));
        assert_eq!(of("cloud.test").as_deref(), Some("cloud.test:443"));
        assert_eq!(of("127.0.0.1:8443").as_deref(), Some("127.0.0.1:8443"));
        assert_eq!(of("[::1]:8443").as_deref(), Some("[::1]:8443"));
        assert_eq!(of("user@cloud.test"), None);
        assert_eq!(of("a b"), None);
    }
}

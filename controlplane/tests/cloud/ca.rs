//! The CA of each tunnel: under the cloud's own, one for a pool, the same for as long as the tunnel lives, and its owner's
//! alone.

use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;

/// Status, content type and text of a tunnel's `ca.pem`.
fn get(cloud: &Cloud, user: &str, key: &str, path: &str) -> (u16, String, String) {
    let url = format!("https://{}/rest/v1/{path}", cloud.address);
    let request = cloud.client.get(url).basic_auth(user, Some(key));
    cloud.runtime.block_on(async {
        let response = request.send().await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        (response.status().as_u16(), kind, response.text().await.unwrap())
    })
}

fn ca_of(cloud: &Cloud, id: &str) -> String {
    let (status, kind, pem) = get(cloud, "ada", &cloud.key, &format!("ada/tunnels/{id}/ca.pem"));
    assert_eq!((status, kind.as_str()), (200, "application/x-pem-file"), "{pem}");
    pem
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.map(Result::unwrap).collect()
}

/// The CA's key in the cloud's store, PEM; none if there is no such endpoint.
fn stored_key(cloud: &Cloud, endpoint: &str) -> Option<String> {
    let store = rusqlite::Connection::open(cloud.state.path().join("culvert.db")).unwrap();
    let sql = "SELECT ca_key FROM tunnel_cas WHERE endpoint = ?1";
    store.query_row(sql, [endpoint], |row| row.get(0)).ok()
}

/// A browser that trusts the last of these certificates takes what the first one signs.
fn takes(pem: &str, id: &str, key: &str) {
    let chain = certificates(pem);
    let [ca, root] = &chain[..] else {
        panic!("two certificates expected: {pem}");
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = format!("Culvert tunnel {id}");
    params.distinguished_name.push(DnType::CommonName, &name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = Issuer::new(params, KeyPair::from_pem(key).unwrap());
    let leaf = CertificateParams::new(["site.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let browser = WebPkiServerVerifier::builder(roots.into()).build().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let (site, now) = ("site.test".try_into().unwrap(), UnixTime::since_unix_epoch(now));
    let verified = browser.verify_server_cert(leaf.der(), std::slice::from_ref(ca), &site, &[], now);
    verified.unwrap();
}

/// A cloud that logs into a file of the folder.
fn logging(folder: &TempDir) -> Cloud {
    let log = folder.path().join("log");
    Cloud::start_on(tempfile::tempdir().unwrap(), &[], Some(log))
}

/// Puts another `sc-cloud` in its place and waits until that has adopted the endpoint of this tunnel.
fn replace(cloud: &mut Cloud, id: &str) {
    cloud.replace();
    let log = cloud.log.clone().unwrap();
    let adopted = |line: &str| line.contains("adopted") && line.contains(id);
    cloud.until(id, "adopted", |_| {
        std::fs::read_to_string(&log).unwrap().lines().any(adopted)
    });
    assert_eq!(children(cloud.child.id()), [0; 0]);
}

fn kill_endpoint(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_tunnel_keeps_its_ca_whatever_dies() {
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = logging(&folder);
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let pem = ca_of(&cloud, &id);
    let root = std::fs::read_to_string(cloud.state.path().join("ca.pem")).unwrap();
    assert!(pem.ends_with(&root), "{pem}");
    let key = stored_key(&cloud, &id).unwrap();
    takes(&pem, &id, &key);
    let running = cloud.running(&id);
    let fingerprint = controlplane::secret::hex(&controlplane::secret::sha256(&certificates(&pem)[0]));
    assert_eq!(running["culvert"]["ca_fingerprint"], fingerprint);
    let restarted = |cloud: &Cloud, before: &Value| {
        let key = |t: &Value| t["culvert"]["fingerprint"].clone();
        let after = cloud.until(&id, "relaunched", |t| {
            t["status"] == "running" && !key(t).is_null() && key(t) != key(before)
        });
        assert_eq!(after["culvert"]["ca_fingerprint"], fingerprint);
        assert_eq!(ca_of(cloud, &id), pem);
        after
    };

    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    kill_endpoint(endpoint);
    let after = restarted(&cloud, &running);

    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    replace(&mut cloud, &id);
    assert_eq!(ca_of(&cloud, &id), pem);
    assert_eq!(
        cloud.running(&id)["culvert"]["fingerprint"],
        after["culvert"]["fingerprint"]
    );
    kill_endpoint(endpoint);
    let after = restarted(&cloud, &after);

    // Both at one time.
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    cloud.signal(Signal::STOP);
    kill_endpoint(endpoint);
    cloud.replace();
    restarted(&cloud, &after);
    assert_eq!(stored_key(&cloud, &id), Some(key));

    cloud.call("DELETE", &format!("ada/tunnels/{id}?wait=0"), None);
    cloud.terminated(&id);
    let gone = cloud.call("GET", &format!("ada/tunnels/{id}/ca.pem"), None);
    assert_eq!(gone.status, 404);
    assert!(
        gone.body["error"].as_str().unwrap().contains("has ended"),
        "{}",
        gone.body
    );
    assert_eq!(stored_key(&cloud, &id), None);
}

#[test]
fn a_ca_is_its_owners_and_its_pools() {
    let cloud = Cloud::start();
    let key = add_user(cloud.state.path(), "bob");
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let path = format!("ada/tunnels/{id}/ca.pem");
    for (user, key, path, status) in [
        ("bob", key.as_str(), path.clone(), 403),
        ("bob", &key, format!("bob/tunnels/{id}/ca.pem"), 404),
        ("ada", &key, path.clone(), 401),
        ("ada", &cloud.key, format!("ada/tunnels/{}/ca.pem", "0".repeat(32)), 404),
    ] {
        let refused = get(&cloud, user, key, &path);
        assert_eq!(
            (refused.0, refused.1.as_str()),
            (status, "application/json"),
            "{user} {path}"
        );
        assert!(
            !refused.2.contains("CERTIFICATE") && refused.2.contains("error"),
            "{}",
            refused.2
        );
    }
    assert_eq!(cloud.call("POST", &path, None).status, 405);
    let pooled = |n: u8| {
        let fingerprint = format!("{n:02x}").repeat(32);
        cloud.create(json!({
            "tunnel_identifier": "x", "tunnel_pool": true, "culvert": {"fingerprint": fingerprint},
        }))
    };
    let (first, second) = (pooled(1), pooled(2));
    assert_eq!(ca_of(&cloud, &first), ca_of(&cloud, &second));
    assert_ne!(ca_of(&cloud, &first), ca_of(&cloud, &id));
}

#[test]
fn the_key_of_a_ca_is_in_the_store_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut cloud = logging(&folder);
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let before = cloud.running(&id);
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    replace(&mut cloud, &id);
    kill_endpoint(endpoint);
    cloud.until(&id, "relaunched", |t| {
        t["status"] == "running" && t["culvert"]["fingerprint"] != before["culvert"]["fingerprint"]
    });
    let pem = stored_key(&cloud, &id).unwrap();
    let line = pem.lines().nth(1).unwrap();
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let hex = controlplane::secret::hex(&der.secret_pkcs8_der()[36..68]);
    let shows = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).to_lowercase();
        text.contains(&line.to_lowercase()) || text.contains(&hex)
    };
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    for process in [cloud.child.id(), endpoint.cast_unsigned()] {
        assert!(!shows(&std::fs::read(format!("/proc/{process}/cmdline")).unwrap()));
    }
    assert!(!shows(ca_of(&cloud, &id).as_bytes()));
    let (mut folders, mut holders) = (vec![cloud.state.path().to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && shows(&std::fs::read(&path).unwrap()) {
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(name.starts_with("culvert.db"), "{name}");
                assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
                holders += 1;
            }
        }
    }
    assert!(holders > 0, "the search finds nothing");
    // The log is whole when it has ended.
    cloud.signal(Signal::TERM);
    assert_eq!(cloud.exit_code(), Some(0));
    // The line that tells of the adoption is in it.
    let said = std::fs::read(cloud.log.as_ref().unwrap()).unwrap();
    assert!(!shows(&said));
}

#[test]
fn an_old_root_is_renewed_and_its_copies_still_reach_rest() {
    let state = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Culvert cloud");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let old = params.self_signed(&key).unwrap().pem();
    std::fs::write(state.path().join("ca.pem"), &old).unwrap();
    std::fs::write(state.path().join("ca.key"), key.serialize_pem()).unwrap();
    let mut cloud = Cloud::start_on(state, &[], None);
    cloud.client = trusting_only(old.as_bytes());
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let pem = ca_of(&cloud, &id);
    assert!(!pem.contains(&old));
    takes(&pem, &id, &stored_key(&cloud, &id).unwrap());
    // Nothing is new to the next one.
    cloud.replace();
    assert_eq!(ca_of(&cloud, &id), pem);
}

//! The rules of a pool: its tunnels switch to others together or not at all.

use super::*;

/// Rules with one direct domain.
fn rules(domain: &str) -> TunnelRequest {
    TunnelRequest {
        direct_domains: Some(vec![domain.into()]),
        ..TunnelRequest::default()
    }
}

/// A pool's tunnel with the data plane of its `sc`, which is ready.
fn pooled(cloud: &Cloud, rules: &TunnelRequest) -> (String, Client) {
    let identity = Arc::new(Identity::generate().unwrap());
    let mut request = json!(rules);
    request["tunnel_identifier"] = json!("pool");
    request["tunnel_pool"] = json!(true);
    request["culvert"] = json!({"fingerprint": identity.fingerprint().to_string()});
    let id = cloud.create(request);
    let tunnel = cloud.running(&id);
    let client = client(cloud, &tunnel, &identity);
    cloud.until(&id, "ready", |t| t["is_ready"] == true);
    (id, client)
}

/// The answer for rules of `version`.
fn acknowledged(client: &Client, version: u32) -> (bool, String) {
    loop {
        match client.events().recv_timeout(PATIENCE).unwrap() {
            Event::SettingsAck {
                version: v,
                accepted,
                text,
            } if v == version => return (accepted, text),
            Event::Failed(text) => panic!("{text}"),
            _ => {}
        }
    }
}

fn reload(client: &Client, version: u32, rules: &TunnelRequest) {
    let json = rules.settings_json();
    client.reload(Arc::new(Settings {
        version,
        json: json.into(),
        ..Settings::default()
    }));
}

#[test]
fn a_pool_switches_rules_together_or_not_at_all() {
    let cloud = Cloud::start_with(&["--pool-reload-max", "1"]);
    let ((first, one), (second, two)) = (
        pooled(&cloud, &TunnelRequest::default()),
        pooled(&cloud, &TunnelRequest::default()),
    );
    let domains = |id: &str| cloud.tunnel(id)["direct_domains"].clone();
    assert_eq!(children(cloud.child.id()).len(), 1);
    // One alone: held, then refused with the difference; nothing has changed.
    reload(&one, 2, &rules("alone.test"));
    let (accepted, text) = acknowledged(&one, 2);
    assert!(!accepted);
    for part in ["1 s", "direct_domains", "alone.test"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!((domains(&first), domains(&second)), (json!([]), json!([])));
    // Both, each under a version of its own.
    reload(&one, 3, &rules("both.test"));
    reload(&two, 2, &rules("both.test"));
    for (client, version) in [(&one, 3), (&two, 2)] {
        let (accepted, text) = acknowledged(client, version);
        assert!(accepted, "{text}");
    }
    for id in [&first, &second] {
        cloud.until(id, "switched", |t| t["direct_domains"] == json!(["both.test"]));
    }
    // Who comes later must have them, and a relaunched endpoint has them.
    let answer = cloud.call(
        "POST",
        "ada/tunnels",
        Some(r#"{"tunnel_identifier":"pool","tunnel_pool":true,"direct_domains":["other.test"]}"#),
    );
    let error = answer.body["error"].as_str().unwrap();
    assert_eq!(answer.status, 409, "{error}");
    assert!(error.contains("other.test") && error.contains("both.test"), "{error}");
    let before = cloud.tunnel(&first)["culvert"]["fingerprint"].clone();
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    kill_process(Pid::from_raw(endpoint).unwrap(), Signal::KILL).unwrap();
    let after = cloud.until(&first, "relaunched", |t| t["culvert"]["fingerprint"] != before);
    let key = after["culvert"]["fingerprint"].as_str().unwrap();
    for client in [&one, &two] {
        client.set_cloud(cloud.address, key.parse().unwrap());
    }
    for id in [&first, &second] {
        cloud.until(id, "ready again", |t| t["is_ready"] == true);
    }
    let (third, three) = pooled(&cloud, &rules("both.test"));
    for (client, version) in [(&one, 3), (&two, 2)] {
        let (accepted, text) = acknowledged(client, version);
        assert!(accepted, "known again at once: {text}");
    }
    for id in [&first, &second, &third] {
        cloud.call("DELETE", &format!("ada/tunnels/{id}"), None);
    }
    for id in [&first, &second, &third] {
        cloud.terminated(id);
    }
    assert_eq!(children(cloud.child.id()), [0; 0]);
    [one, two, three].into_iter().for_each(Client::stop);
}

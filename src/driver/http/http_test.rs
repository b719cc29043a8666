//! What an HTTP request may be, and what a status means; the wire is in `tests/http`.

use super::request::base64;
use super::*;
use crate::nas::NasId;

#[test]
fn a_path_leads_to_one_host_and_stays_where_it_was_put() {
    let target = Target {
        url: "https://billing.example:8443/hook/".into(),
        auth: Auth::None,
        trust: Trust::Insecure,
    };
    let limits = Limits {
        connections: 1,
        connect_timeout: Duration::from_secs(1),
        linger: Duration::from_secs(1),
    };
    let ready = Ready::new(&target, &limits, &Allow::default()).unwrap();
    let request = |path: &str| Request {
        method: "GET".into(),
        path: path.into(),
        ..Request::default()
    };
    for (path, url) in [
        ("/a", "https://billing.example:8443/hook/a"),
        ("/a?x=1%262", "https://billing.example:8443/hook/a?x=1%262"),
        ("/@evil/", "https://billing.example:8443/hook/@evil/"),
        ("/:80/x", "https://billing.example:8443/hook/:80/x"),
    ] {
        let request = request(path);
        request.check().unwrap();
        assert_eq!(ready.build(&request).unwrap().url().as_str(), url);
    }
    for path in [
        "",
        "a",
        "@evil.example/",
        ".evil.example/",
        ":1@evil.example/",
        "//evil.example/",
        "/a//b",
        "/../x",
        "/a/..",
        "/a/%2E%2e/b",
        "/a/.",
        "/a b",
        "/a\\b",
        "/a#b",
        "/a\r\nHost: x",
        "/ä",
    ] {
        assert!(request(path).check().is_err(), "{path:?}");
    }
}

#[test]
fn fields_of_a_scheme_change_neither_host_nor_end_nor_identity() {
    let with = |name: &str, value: &str| Request {
        method: "POST".into(),
        path: "/".into(),
        headers: vec![(name.into(), value.into())],
        json: None,
    };
    assert!(with("Idempotency-Key", "7").check().is_ok());
    for (name, value) in [
        ("Host", "x"),
        ("content-length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("AUTHORIZATION", "x"),
        ("X Y", "x"),
        ("X\n", "x"),
        ("", "x"),
        ("X-A", "a\r\nB: c"),
        ("X-A", "a\0"),
    ] {
        assert!(with(name, value).check().is_err(), "{name:?} {value:?}");
    }
    let method = Request {
        method: "CONNECT".into(),
        ..with("X-A", "1")
    };
    assert!(method.check().unwrap_err().contains("CONNECT"));
}

#[test]
fn base_urls_hold_no_credentials() {
    for good in ["http://a", "https://a:1/b/", "http://[::1]:80"] {
        assert!(base(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a",
        "ftp://a",
        "https://u:p@a/",
        "https://a/?x=1",
        "https://a/#x",
        "file:///etc",
    ] {
        let why = base(bad).unwrap_err();
        assert!(!why.contains(":p@"), "{why}");
    }
}

#[test]
fn credentials_are_chosen_and_never_shown() {
    let of = |wish: &str, login: &str, password: &str| Auth::of(wish, login, password);
    let field = |auth: Auth| {
        let (name, value) = auth.field().unwrap().unwrap();
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    // RFC 7617 section 2.
    let basic = of("", "Aladdin", "open sesame").unwrap();
    assert!(!format!("{basic:?}").contains("sesame"));
    assert_eq!(
        field(basic),
        (
            "authorization".into(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".into()
        )
    );
    assert_eq!(field(of("", "", "t").unwrap()).1, "Bearer t");
    assert_eq!(field(of("bearer", "a", "t").unwrap()).1, "Bearer t");
    assert_eq!(
        field(of("header:X-Api-Key", "", "k").unwrap()),
        ("x-api-key".into(), "k".into())
    );
    assert_eq!(of("none", "a", "b").unwrap(), Auth::None);
    assert_eq!(of("", "", "").unwrap(), Auth::None);
    for (wish, login, password) in [
        ("basic", "", "x"),
        ("bearer", "a", ""),
        ("header:", "", "x"),
        ("header:a b", "", "x"),
        ("digest", "a", "b"),
    ] {
        assert!(of(wish, login, password).is_err(), "{wish}");
    }
    assert!(of("", "a:b", "c").unwrap().field().is_err());
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}

#[test]
fn a_status_has_scope_class_and_code() {
    use FailureClass::{Permanent, Refused};
    for (status, scope, class, parks) in [
        (301, Scope::Event, Permanent, false),
        (400, Scope::Event, Permanent, false),
        (401, Scope::Nas, Refused, true),
        (403, Scope::Nas, Refused, true),
        (404, Scope::Event, Permanent, false),
        (429, Scope::Event, Refused, false),
        (500, Scope::Event, Refused, false),
        (503, Scope::Event, Refused, false),
        (599, Scope::Event, Refused, false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let failure = judge(status, "why\nnot".into(), false).unwrap_err();
        assert_eq!(
            (failure.scope, failure.class, failure.parks, failure.code),
            (scope, class, parks, i32::from(status.as_u16()))
        );
        assert!(failure.text.contains("why"), "{failure}");
    }
    let fine = judge(StatusCode::NO_CONTENT, String::new(), true).unwrap();
    assert_eq!((fine.code, fine.new_session), (204, true));
}

#[test]
fn a_request_can_be_pasted() {
    let request = Request {
        method: "POST".into(),
        path: "/e?a=1".into(),
        headers: vec![("X-A".into(), "it's".into())],
        json: Some("{\"a\":1}".into()),
    };
    assert_eq!(
        request.pasteable(NasId(7)),
        "send_http_cmd --nas 7 POST '/e?a=1' -H 'X-A: it'\\''s' --json '{\"a\":1}'"
    );
}

#[test]
fn a_list_of_networks_bounds_where_a_url_may_lead() {
    let of = |allow: serde_json::Value| {
        let vars = serde_json::json!({ "http_allow": allow });
        Allow::of(vars.as_object().unwrap())
    };
    let leads = |allow: &Allow, url: &str| allow.check(&Url::parse(url).unwrap()).is_ok();
    for none in [serde_json::Value::Null, "".into()] {
        let all = of(none).unwrap();
        assert_eq!(all, Allow::default());
        assert!(leads(&all, "http://127.0.0.1/"));
    }
    let both = of(serde_json::json!([
        "10.0.0.0/8",
        "2001:db8::/32",
        "192.0.2.7"
    ]))
    .unwrap();
    assert_eq!(
        of("10.0.0.0/8, 2001:db8::/32 192.0.2.7".into()),
        Ok(both.clone())
    );
    for (url, fine) in [
        ("http://10.88.0.1:8080/hook", true),
        ("https://192.0.2.7/", true),
        ("http://[2001:db8::1]:80/", true),
        // Looked up when it is connected to.
        ("http://billing.example/", true),
        ("http://192.0.2.8/", false),
        ("http://127.0.0.1/", false),
        ("http://0x7f.1/", false),
        ("http://2130706433/", false),
        ("http://169.254.169.254/latest/meta-data", false),
        ("http://[::1]/", false),
        ("http://[::ffff:127.0.0.1]/", false),
        ("http://[::ffff:10.0.0.1]/", true),
    ] {
        assert_eq!(leads(&both, url), fine, "{url}");
    }
    for wrong in [
        serde_json::json!([]),
        serde_json::json!(["10.0.0.0/33"]),
        serde_json::json!(["billing.example"]),
        serde_json::json!(["10.0.0.0/8", 7]),
        serde_json::json!(vec!["10.0.0.0/8"; 65]),
        serde_json::json!(true),
        serde_json::json!(" "),
    ] {
        let why = of(wrong.clone()).unwrap_err();
        assert!(why.contains("http_allow in nas.vars"), "{wrong}: {why}");
    }
}

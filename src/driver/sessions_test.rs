//! Pooled sessions are replaced when what matters changed, and settings that cannot be obeyed
//! park the NAS.

use super::*;
use crate::attempt::{FailureClass, Scope};

fn nas() -> Nas {
    Nas {
        api_port: Some(1),
        ..Nas::new(NasId(7), "t", "127.0.0.1")
    }
}

#[test]
fn replaced_only_when_something_that_matters_changed() {
    let sessions = Sessions::default();
    let secret = NasSecret {
        login: "a".into(),
        password: "b".into(),
        ..NasSecret::default()
    };
    let first = sessions.mikrotik(&nas(), &secret);
    let mut renamed = nas();
    renamed.name = "other".into();
    assert!(Arc::ptr_eq(&first, &sessions.mikrotik(&renamed, &secret)));
    let changes: [fn(&mut Nas, &mut NasSecret); 6] = [
        |n, _| n.ip = "127.0.0.2".into(),
        |n, _| n.api_port = None,
        |n, _| n.max_sessions = Some(9),
        |n, _| n.timeout = Some(Duration::from_secs(1)),
        |_, s| s.login = "c".into(),
        |_, s| s.password = "c".into(),
    ];
    for change in changes {
        let before = sessions.mikrotik(&nas(), &secret);
        let (mut nas, mut secret) = (nas(), secret.clone());
        change(&mut nas, &mut secret);
        let after = sessions.mikrotik(&nas, &secret);
        assert!(!Arc::ptr_eq(&before, &after));
    }
    assert_eq!(sessions.report().len(), 1);
    sessions.keep_only(&BTreeSet::new());
    assert!(sessions.report().is_empty());
}

#[test]
fn telnet_keeps_places_for_people_and_a_rate_bounds_all() {
    let mut nas = nas();
    nas.max_sessions = Some(4);
    assert_eq!(Sessions::telnet_places(&nas), 8);
    assert_eq!(Sessions::http_places(&nas), 8);
    nas.vars.insert("spare_sessions".into(), 1.into());
    assert_eq!(Sessions::telnet_places(&nas), 6);
    assert_eq!(Sessions::http_places(&nas), 6);
    nas.vars.insert("spare_sessions".into(), 9.into());
    assert_eq!(Sessions::telnet_places(&nas), 2);
    assert_eq!(Sessions::paced_places(&nas), usize::MAX);
    let sessions = Sessions::default();
    let most = Duration::from_secs(1);
    let pace = |nas: &Nas, n: usize| match sessions.pace(nas, n, most, 0) {
        Ok(wait) => Ok(wait.as_millis()),
        Err(wait) => Err(wait.as_millis()),
    };
    assert!((0..9).all(|_| pace(&nas, 1) == Ok(0)));
    nas.max_rate = Some(4.0);
    assert_eq!(Sessions::paced_places(&nas), 8);
    let waits: Vec<_> = (0..3).map(|_| pace(&nas, 1)).collect();
    assert_eq!(waits, [Ok(0), Ok(250), Ok(500)]);
    // Who would have to wait too long leaves no debt behind.
    assert!(matches!(pace(&nas, 500), Err(1001..)));
    assert_eq!(pace(&nas, 2), Ok(1000));
    // Another rate counts from now on.
    nas.max_rate = Some(1000.0);
    assert_eq!(pace(&nas, 1), Ok(0));
    nas.vars.insert("logins_per_minute".into(), 0.into());
    let told = sessions.telnet(&nas, &NasSecret::default(), Manners::default());
    assert!(told.unwrap_err().parks);
}

/// Sessions that OpenSSH allows on one connection (`MaxSessions` of sshd_config(5)). Most devices
/// do not say how many they allow.
const OPENSSH_SESSIONS: usize = 10;

/// People, and commands of which the server has not noticed the end, need the other half.
#[test]
fn ssh_takes_at_most_half_of_the_sessions_that_a_server_allows() {
    let mut nas = nas();
    let channels = |nas: &Nas| {
        let (_, limits) = ssh::settings::of(nas, &NasSecret::default()).unwrap();
        assert_eq!(limits.channels, ssh::settings::channels(nas));
        limits.channels
    };
    let usual = channels(&nas);
    assert!((1..=OPENSSH_SESSIONS / 2).contains(&usual), "{usual}");
    assert_eq!(Sessions::ssh_places(&nas, false), 2 * usual);
    // A dialogue leaves one for commands without one.
    assert_eq!(Sessions::ssh_places(&nas, true), 2 * (usual - 1));
    nas.max_sessions = Some(4);
    assert_eq!(channels(&nas), 4);
    nas.vars.insert("spare_sessions".into(), 1.into());
    assert_eq!(channels(&nas), 3);
    assert_eq!(Sessions::ssh_places(&nas, false), 6);
    assert_eq!(Sessions::ssh_places(&nas, true), 4);
    nas.vars.insert("spare_sessions".into(), 9.into());
    assert_eq!(channels(&nas), 1);
    assert_eq!(Sessions::ssh_places(&nas, true), 2);
}

#[test]
fn the_api_has_its_usual_ports_where_the_nas_names_none() {
    let mut nas = Nas::new(NasId(7), "t", "127.0.0.1");
    assert_eq!(Sessions::api_port(&nas), 8728);
    nas.api_tls = true;
    assert_eq!(Sessions::api_port(&nas), 8729);
    nas.api_port = Some(18_729);
    assert_eq!(Sessions::api_port(&nas), 18_729);
    nas.api_tls = false;
    assert_eq!(Sessions::api_port(&nas), 18_729);
}

/// Waits until the sessions of the NAS stand like this: in use, waiting.
async fn until_seen(sessions: &Sessions, leased: usize, waiting: usize) -> Seen {
    let looking = async {
        loop {
            let seen = sessions.seen().remove(&NasId(7)).unwrap_or_default();
            if let [seen] = &seen[..]
                && (seen.leased, seen.waiting) == (leased, waiting)
            {
                return seen.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking)
        .await
        .unwrap()
}

/// Whoever has no place is seen to wait, as long as he does: over HTTP for a connection, of which
/// one is kept free; over RADIUS until the earlier request of his session is answered.
#[tokio::test]
async fn who_waits_is_seen_and_forgotten() {
    const MOMENT: Duration = Duration::from_millis(600);
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut nas = nas();
    nas.http_url = Some(format!("http://{}", deaf.local_addr().unwrap()));
    nas.max_sessions = Some(3);
    nas.vars.insert("spare_sessions".into(), 2.into());
    let sessions = Sessions::default();
    let hook = sessions.http(&nas, &NasSecret::default());
    let get = http::Request {
        method: "GET".into(),
        path: "/".into(),
        ..http::Request::default()
    };
    let (one, two, seen) = tokio::join!(
        hook.talk(&get, MOMENT),
        hook.talk(&get, MOMENT),
        until_seen(&sessions, 1, 1),
    );
    assert!(one.is_err() && two.is_err());
    assert_eq!(seen.driver, "http");
    until_seen(&sessions, 0, 0).await;

    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    nas.coa_port = Some(deaf.local_addr().unwrap().port());
    let secret = NasSecret {
        coa_secret: "servicemode".into(),
        ..NasSecret::default()
    };
    let sessions = Sessions::default();
    let radius = sessions.radius(&nas, &secret);
    let all = radius::dictionary::Dictionary::shipped();
    let pairs = [("Acct-Session-Id".to_owned(), "a".to_owned())];
    let request = radius::Request::new(radius::Kind::Coa, &pairs, &all).unwrap();
    let (one, two, seen) = tokio::join!(
        radius.talk(&request, &all, MOMENT),
        radius.talk(&request, &all, MOMENT),
        until_seen(&sessions, 1, 1),
    );
    assert!(one.failure.is_some() && two.failure.is_some());
    assert_eq!((seen.driver, seen.open), ("radius", 1));
    let seen = until_seen(&sessions, 0, 0).await;
    assert!(seen.last_error.is_some());
}

#[tokio::test]
async fn radius_settings_that_cannot_be_obeyed_park_the_nas() {
    let all = radius::dictionary::Dictionary::shipped();
    let pairs = [("User-Name".to_owned(), "u".to_owned())];
    let request = radius::Request::new(radius::Kind::Coa, &pairs, &all).unwrap();
    let (sessions, none) = (Sessions::default(), NasSecret::default());
    let radius = sessions.radius(&nas(), &none);
    assert!(Arc::ptr_eq(&radius, &sessions.radius(&nas(), &none)));
    let told = radius.talk(&request, &all, Duration::from_secs(1)).await;
    let failure = told.failure.unwrap();
    assert_eq!((failure.scope, failure.parks), (Scope::Nas, true));
    assert!(failure.text.contains("coa_secret"), "{failure}");
    let seen = sessions.seen().remove(&NasId(7)).unwrap_or_default();
    assert_eq!((seen.len(), seen[0].driver, seen[0].open), (1, "radius", 0));
    let last = seen[0].last_error.clone().unwrap_or_default();
    assert!(last.contains("coa_secret"), "{last}");
    sessions.keep_only(&BTreeSet::new());
    assert!(!Arc::ptr_eq(&radius, &sessions.radius(&nas(), &none)));
}

#[tokio::test]
async fn settings_that_cannot_be_obeyed_park_the_nas_and_say_so() {
    let mut nas = nas();
    nas.api_tls = true;
    nas.vars
        .insert("tls_pin".into(), serde_json::json!("not hexadecimal"));
    let sessions = Sessions::default();
    let router = sessions.mikrotik(&nas, &NasSecret::default());
    let command = mikrotik::Command {
        path: "/system/identity/print".into(),
        ..Default::default()
    };
    let limit = Duration::from_secs(1);
    let told = router.talk(&command, limit).await.unwrap_err();
    assert_eq!(told.class, FailureClass::Permanent);
    assert_eq!((told.scope, told.parks), (Scope::Nas, true));
    assert!(told.text.contains("tls_pin"), "{told}");
    let request = http::Request {
        method: "GET".into(),
        path: "/".into(),
        ..http::Request::default()
    };
    for (url, named) in [(None, "http_url"), (Some("https://a"), "tls_pin")] {
        nas.http_url = url.map(str::to_owned);
        let hook = sessions.http(&nas, &NasSecret::default());
        let told = hook.talk(&request, limit).await.unwrap_err();
        assert_eq!((told.scope, told.parks), (Scope::Nas, true));
        assert!(told.text.contains(named), "{told}");
    }
    nas.vars.clear();
    let first = sessions.http(&nas, &NasSecret::default());
    assert!(Arc::ptr_eq(
        &first,
        &sessions.http(&nas, &NasSecret::default())
    ));
    nas.vars
        .insert("tls_insecure".into(), serde_json::json!(true));
    assert!(!Arc::ptr_eq(
        &first,
        &sessions.http(&nas, &NasSecret::default())
    ));
}

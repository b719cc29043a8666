//! Whether a NAS that could not be reached can be again: bare TCP connections to the port of its
//! driver. Nothing is sent and nobody logs in.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::sessions::Sessions;
use crate::nas::Nas;

/// Pause between two knocks, and the time that each of them gets.
const PAUSE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(2);

/// Host and TCP port at which `nas` is reached with `driver`; none where there is no connection,
/// or where it may lead elsewhere than the NAS says (`nas.vars.http_allow`).
pub fn door(driver: &str, nas: &Nas) -> Option<(String, u16)> {
    let port = match driver {
        "mikrotik" => Sessions::api_port(nas),
        "ssh" => Sessions::ssh_port(nas),
        "telnet" => Sessions::telnet_port(nas),
        "http" if !nas.vars.contains_key("http_allow") => {
            let url = reqwest::Url::parse(nas.http_url.as_deref()?).ok()?;
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            return Some((host, url.port_or_known_default()?));
        }
        _ => return None,
    };
    Some((nas.ip.clone(), port))
}

/// Knocks until a connection opens; whether one had failed before.
pub async fn until_open(host: String, port: u16) -> bool {
    let mut was_away = false;
    loop {
        let open = TcpStream::connect((host.as_str(), port));
        match timeout(LIMIT, open).await {
            Ok(Ok(_)) => return was_away,
            Ok(Err(_)) | Err(_) => was_away = true,
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::nas::NasId;

    #[tokio::test]
    async fn who_was_away_and_opens_is_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        assert!(
            !until_open(at.ip().to_string(), at.port()).await,
            "it was there"
        );
        drop(listener);
        let (back, _listener) = tokio::join!(until_open(at.ip().to_string(), at.port()), async {
            while TcpStream::connect(at).await.is_ok() {}
            sleep(PAUSE / 2).await;
            TcpListener::bind(at).await.unwrap()
        });
        assert!(back);
    }

    #[test]
    fn each_driver_with_connections_has_its_door() {
        let mut nas = Nas {
            telnet_port: Some(2323),
            http_url: Some("https://[::1]/hook".to_owned()),
            ..Nas::new(NasId(1), "bras", "10.0.0.1")
        };
        let at = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(door("mikrotik", &nas), at("10.0.0.1", 8728));
        assert_eq!(door("ssh", &nas), at("10.0.0.1", 22));
        assert_eq!(door("telnet", &nas), at("10.0.0.1", 2323));
        assert_eq!(door("http", &nas), at("::1", 443));
        assert_eq!(door("radius", &nas), None);
        assert_eq!(door("", &nas), None, "a script");
        let anywhere = serde_json::json!(["0.0.0.0/0"]);
        nas.vars.insert("http_allow".to_owned(), anywhere);
        assert_eq!(door("http", &nas), None);
    }
}

//! Whether a NAS that could not be reached can be again: bare TCP connections to the port of its
//! driver. Nothing is sent and nobody logs in.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::sessions::Sessions;
use crate::nas::Nas;

/// Pause between two knocks, and the time that each of them gets.
const PAUSE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(2);

/// Where `nas` is reached with `driver`; none where there is no connection, where a name stands
/// (nobody shall ask for it every few seconds), or where it may lead elsewhere than the NAS says
/// (`nas.vars.http_allow`).
pub fn door(driver: &str, nas: &Nas) -> Option<SocketAddr> {
    let (host, port) = match driver {
        "mikrotik" => (nas.ip.clone(), Sessions::api_port(nas)),
        "ssh" => (nas.ip.clone(), Sessions::ssh_port(nas)),
        "telnet" => (nas.ip.clone(), Sessions::telnet_port(nas)),
        "http" if !nas.vars.contains_key("http_allow") => {
            let url = reqwest::Url::parse(nas.http_url.as_deref()?).ok()?;
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            (host, url.port_or_known_default()?)
        }
        _ => return None,
    };
    Some(SocketAddr::new(host.parse().ok()?, port))
}

/// Knocks until a connection opens; whether one had failed before.
pub async fn until_open(door: SocketAddr) -> bool {
    let mut was_away = false;
    loop {
        match timeout(LIMIT, TcpStream::connect(door)).await {
            Ok(Ok(_)) => return was_away,
            Ok(Err(_)) | Err(_) => was_away = true,
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;
    use crate::nas::NasId;

    #[tokio::test]
    async fn who_was_away_and_opens_is_back() {
        // It keeps the port without listening, so that nobody else gets it.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let door = socket.local_addr().unwrap();
        let knocks = until_open(door);
        tokio::pin!(knocks);
        let mut socket = Some(socket);
        let mut listener = None;
        let back = loop {
            tokio::select! {
                back = &mut knocks => break back,
                // The first knock has failed long before.
                () = sleep(PAUSE / 2), if socket.is_some() => {
                    listener = socket.take().map(|s| s.listen(8).unwrap());
                }
            }
        };
        assert!(back && listener.is_some());
        assert!(!until_open(door).await, "it was there");
    }

    #[test]
    fn each_driver_with_connections_has_its_door() {
        let mut nas = Nas {
            telnet_port: Some(2323),
            http_url: Some("https://[::1]/hook".to_owned()),
            ..Nas::new(NasId(1), "bras", "10.0.0.1")
        };
        let at = |door: &str| Some(door.parse().unwrap());
        assert_eq!(door("mikrotik", &nas), at("10.0.0.1:8728"));
        assert_eq!(door("ssh", &nas), at("10.0.0.1:22"));
        assert_eq!(door("telnet", &nas), at("10.0.0.1:2323"));
        assert_eq!(door("http", &nas), at("[::1]:443"));
        assert_eq!(door("radius", &nas), None);
        assert_eq!(door("", &nas), None, "a script");
        nas.http_url = Some("https://bras.example/hook".to_owned());
        assert_eq!(door("http", &nas), None, "a name");
        nas.http_url = Some("https://[::1]/hook".to_owned());
        let anywhere = serde_json::json!(["0.0.0.0/0"]);
        nas.vars.insert("http_allow".to_owned(), anywhere);
        assert_eq!(door("http", &nas), None);
    }
}

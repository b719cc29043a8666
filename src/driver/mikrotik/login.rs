//! Connecting and logging in, both ways (MikroTik manual, "API", "Initial login"): with the
//! password in the first sentence since RouterOS 6.43, by a challenge before.

use md5::{Digest, Md5};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attempt::Failure;
use crate::driver::mikrotik::answer::{self, Answer, Kind};
use crate::driver::mikrotik::stream::{Stream, Tls};
use crate::driver::mikrotik::wire::{self, Bounds, Decoder};
use crate::driver::mikrotik::{Limits, Target};

/// Why there is no session.
pub(crate) enum Refusal {
    /// Trying again at once makes no sense.
    Unreachable(Failure),
    /// The login failed; a busy router refuses now and then.
    Login(Failure),
}

/// Bytes read at once during the login: its replies are short.
const CHUNK: usize = 4 * 1024;

/// A connection that is logged in, with what was read beyond the login.
pub(crate) async fn open(
    target: &Target,
    limits: &Limits,
    tls: Option<&Tls>,
) -> Result<(Stream, Decoder), Refusal> {
    let Target { host, port, .. } = target;
    let lost = |why: String| Failure::transport(format!("RouterOS API at {host}:{port}: {why}"));
    let ms = limits.connect_timeout.as_millis();
    let connected = timeout(
        limits.connect_timeout,
        TcpStream::connect((host.as_str(), *port)),
    );
    let stream = match connected.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            let why = format!("cannot connect: {e}; is the router up and its api service on?");
            return Err(Refusal::Unreachable(lost(why)));
        }
        Err(_) => {
            let why = format!("cannot connect within {ms} ms; is a firewall in the way?");
            return Err(Refusal::Unreachable(lost(why)));
        }
    };
    // Only slower without it.
    let _ = stream.set_nodelay(true);
    let mut stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match timeout(limits.connect_timeout, tls.connect(stream)).await {
            Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
            Ok(Err(refused)) => {
                return Err(Refusal::Unreachable(Failure {
                    parks: refused.untrusted,
                    ..lost(refused.text)
                }));
            }
            Err(_) => {
                let why = format!("no TLS within {ms} ms; is this the port of api-ssl?");
                return Err(Refusal::Unreachable(lost(why)));
            }
        },
    };
    let mut decoder = Decoder::new(Bounds::DRIVER);
    match timeout(
        limits.connect_timeout,
        dialogue(target, &mut stream, &mut decoder),
    )
    .await
    {
        Ok(Ok(())) => Ok((stream, decoder)),
        Ok(Err(Trouble::Refused(failure))) => Err(Refusal::Login(failure)),
        Ok(Err(Trouble::Broken(why))) => {
            let why = format!("the connection broke during the login: {why}");
            Err(Refusal::Login(lost(why)))
        }
        Err(_) => {
            let why = format!("no answer to the login within {ms} ms");
            Err(Refusal::Unreachable(lost(why)))
        }
    }
}

enum Trouble {
    Refused(Failure),
    Broken(String),
}

async fn dialogue(
    target: &Target,
    stream: &mut Stream,
    decoder: &mut Decoder,
) -> Result<(), Trouble> {
    let name = format!("=name={}", target.login);
    let password = format!("=password={}", target.password);
    send(stream, &["/login", &name, &password]).await?;
    let Some(challenge) = verdict(stream, decoder).await? else {
        return Ok(());
    };
    let challenge = unhex(&challenge)
        .ok_or_else(|| Trouble::Broken("the login challenge is not hexadecimal".to_owned()))?;
    let mut hash = Md5::new();
    hash.update([0]);
    hash.update(target.password.as_bytes());
    hash.update(&challenge);
    let response: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    send(
        stream,
        &["/login", &name, &format!("=response=00{response}")],
    )
    .await?;
    match verdict(stream, decoder).await? {
        None => Ok(()),
        Some(_) => Err(Trouble::Broken(
            "the router asked for a second challenge".to_owned(),
        )),
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), words: &[&str]) -> Result<(), Trouble> {
    let mut bytes = Vec::new();
    wire::encode(
        words.iter().map(|w| w.as_bytes()),
        Bounds::DRIVER,
        &mut bytes,
    )
    .map_err(Trouble::Broken)?;
    let written = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    written.await.map_err(|e| Trouble::Broken(e.to_string()))
}

/// `None` = logged in, `Some` = the challenge.
async fn verdict(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<Option<String>, Trouble> {
    let mut refused = None;
    let mut chunk = vec![0; CHUNK];
    loop {
        while let Some(sentence) = decoder.next().map_err(|e| Trouble::Broken(e.to_string()))? {
            let answer = Answer::read(&sentence);
            match answer.kind {
                Kind::Trap => refused = Some(answer.reason()),
                Kind::Fatal => {
                    let reason = answer.reason();
                    let failure = if answer::is_session_trouble(&reason) {
                        Failure::transport(reason)
                    } else {
                        answer::login_refused(&reason)
                    };
                    return Err(Trouble::Refused(failure));
                }
                Kind::Done => {
                    return match refused {
                        Some(text) => Err(Trouble::Refused(answer::login_refused(&text))),
                        None => Ok(answer.get("ret").map(str::to_owned)),
                    };
                }
                Kind::Row | Kind::Empty | Kind::Other => {}
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) => return Err(Trouble::Broken("closed by the router".to_owned())),
            Ok(n) => decoder.feed(chunk.get(..n).unwrap_or_default()),
            Err(e) => return Err(Trouble::Broken(e.to_string())),
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty()
        || !text.len().is_multiple_of(2)
        || !text.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_hexadecimal() {
        assert_eq!(unhex("00ff1A"), Some(vec![0, 0xff, 0x1a]));
        for bad in ["", "0", "0g", "ä0", "+1"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}

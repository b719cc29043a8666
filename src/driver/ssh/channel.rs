//! One command on one channel (RFC 4254 section 6): started, fed, listened to, and ended with
//! everything it holds on the server, also when nobody waits for it any more.

use std::time::Duration;

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::attempt::{Failure, FailureClass, Scope};
use crate::clock;
use crate::driver::ssh::login::one_line;
use crate::driver::ssh::pool::Used;
use crate::driver::ssh::window::Place;
use crate::driver::ssh::{Command, Output};

/// Most that a command may say on both outputs together, bytes. A print of a whole rule set of
/// a large NAS has some hundred KiB; whoever says more is ended.
pub(super) const OUTPUT_MAX: usize = 1024 * 1024;
/// After its exit, something that it left behind may hold its output open for this long.
const DRAIN: Duration = Duration::from_secs(1);
/// For the server to close a channel whose command has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// For a command that was killed; a server that does not know the request, or (OpenSSH, for root)
/// does not obey it, need not be waited for.
pub(super) const KILL_GRACE: Duration = Duration::from_millis(300);
/// Extended data of this type is standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// How a command ended.
pub(super) enum Ended<T> {
    /// It ran, or began.
    Done(T),
    Failed(Failure),
    /// The server opens no further session now.
    Busy,
    /// Certainly not started: may run on another connection.
    NotSent(String),
}

/// Why listening ended.
enum Stop {
    /// The channel is closed, or the connection is gone.
    Closed,
    /// All has been said, the exit status too.
    Complete,
    /// Its time is over.
    Late,
    /// Nobody waits for it.
    Abandoned,
    /// It says too much.
    Endless,
    /// The server does not run commands.
    Denied,
}

#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Option<i32>,
    eof: bool,
    closed: bool,
}

/// Runs it, in `limit` from now on. `place` is given back when the server has let go of the channel.
pub(super) async fn run(
    used: Used,
    place: Place,
    command: Command,
    limit: Duration,
    mut caller: oneshot::Sender<Ended<Output>>,
) {
    let began = clock::tick_ms();
    let (channel, place) = match open(&used, place, limit, &mut caller).await {
        Ok(opened) => opened,
        Err(ended) => {
            // Nobody waits any more: the same.
            let _ = caller.send(ended);
            return;
        }
    };
    let (mut read, write) = channel.split();
    let asked = if command.line.is_empty() {
        write.request_shell(true).await
    } else {
        write.exec(true, command.line.as_bytes()).await
    };
    if asked.is_err() {
        drop(place);
        let _ = caller.send(Ended::NotSent(used.why_ended()));
        return;
    }
    let mut heard = Heard::default();
    let stop = listen(
        &mut heard,
        &mut read,
        &write,
        command.stdin,
        limit.saturating_sub(since(began)),
        &mut caller,
    )
    .await;
    let ended = judge(&used, &stop, &mut heard, limit);
    let _ = caller.send(ended);
    match stop {
        Stop::Closed => {}
        Stop::Complete => {
            // The server closes next. Only what the command left behind can keep it from that.
            if !heard.eof || !closes(&mut read, CLOSE_GRACE).await {
                let _ = write.close().await;
            }
        }
        Stop::Late | Stop::Abandoned | Stop::Endless | Stop::Denied => {
            let _ = write.signal(Sig::KILL).await;
            if !closes(&mut read, KILL_GRACE).await {
                // Closes its pipes, which ends most. If it holds a session of the server for ever,
                // the next refusal tells.
                let _ = write.close().await;
            }
        }
    }
    drop(place);
}

/// The time since `began_ms`.
pub(super) fn since(began_ms: u64) -> Duration {
    Duration::from_millis(clock::tick_ms().saturating_sub(began_ms))
}

/// Opens a session. The place comes back with it, or is free before the caller hears of it.
pub(super) async fn open<T>(
    used: &Used,
    place: Place,
    limit: Duration,
    caller: &mut oneshot::Sender<Ended<T>>,
) -> Result<(Channel<Msg>, Place), Ended<T>> {
    let opening = used.handle.channel_open_session();
    let opened = tokio::select! {
        opened = timeout(limit, opening) => opened,
        () = caller.closed() => {
            // The server may open it yet, and nobody would close it.
            used.retire("a caller gave up while a session was being opened");
            return Err(Ended::NotSent("given up".to_owned()));
        }
    };
    match opened {
        Ok(Ok(channel)) => Ok((channel, place)),
        Ok(Err(error)) => {
            drop(place);
            Err(not_opened(used, &error))
        }
        Err(_) => {
            used.retire("a session was not opened in time");
            let ms = limit.as_millis();
            Err(Ended::Failed(Failure::transport(format!(
                "SSH: no session was opened within {ms} ms"
            ))))
        }
    }
}

/// Waits until the server closes. To be asked before we close: afterwards nothing is heard.
pub(super) async fn closes(read: &mut ChannelReadHalf, limit: Duration) -> bool {
    let closing = async {
        while let Some(message) = read.wait().await {
            if matches!(message, ChannelMsg::Close) {
                break;
            }
        }
    };
    timeout(limit, closing).await.is_ok()
}

fn not_opened<T>(used: &Used, error: &russh::Error) -> Ended<T> {
    match error {
        russh::Error::ChannelOpenFailure(
            ChannelOpenFailure::ConnectFailed | ChannelOpenFailure::ResourceShortage,
        ) => Ended::Busy,
        russh::Error::ChannelOpenFailure(reason) => Ended::Failed(Failure {
            scope: Scope::Nas,
            ..Failure::permanent(format!("SSH: the server opens no session: {reason:?}"))
        }),
        _ => Ended::NotSent(used.why_ended()),
    }
}

async fn listen(
    heard: &mut Heard,
    read: &mut ChannelReadHalf,
    write: &ChannelWriteHalf<Msg>,
    stdin: Option<String>,
    limit: Duration,
    caller: &mut oneshot::Sender<Ended<Output>>,
) -> Stop {
    let feed = async {
        if let Some(stdin) = stdin {
            write.data_bytes(stdin.into_bytes()).await?;
        }
        write.eof().await
    };
    tokio::pin!(feed);
    let late = tokio::time::sleep(limit);
    tokio::pin!(late);
    let drained = tokio::time::sleep(DRAIN);
    tokio::pin!(drained);
    let mut fed = false;
    loop {
        let message = tokio::select! {
            // Time first: a flood of empty messages must not keep it from being seen.
            biased;
            () = &mut late => return Stop::Late,
            () = &mut drained, if heard.status.is_some() => return Stop::Complete,
            () = caller.closed() => return Stop::Abandoned,
            message = read.wait() => message,
            // If it fails, the connection is gone, which the reader sees.
            _ = &mut feed, if !fed => {
                fed = true;
                continue;
            }
        };
        let Some(message) = message else {
            return Stop::Closed;
        };
        match message {
            ChannelMsg::Data { data } => heard.stdout.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, ext: STDERR } => {
                heard.stderr.extend_from_slice(&data);
            }
            ChannelMsg::ExitStatus { exit_status } => {
                heard.status = Some(i32::try_from(exit_status).unwrap_or(i32::MAX));
                drained.set(tokio::time::sleep(DRAIN));
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                heard.status = Some(128 + number(&signal_name));
                drained.set(tokio::time::sleep(DRAIN));
            }
            ChannelMsg::Eof => heard.eof = true,
            ChannelMsg::Failure => return Stop::Denied,
            ChannelMsg::Close => {
                heard.closed = true;
                return Stop::Closed;
            }
            _ => {}
        }
        if heard.stdout.len() + heard.stderr.len() > OUTPUT_MAX {
            return Stop::Endless;
        }
        if heard.eof && heard.status.is_some() {
            return Stop::Complete;
        }
    }
}

fn judge(used: &Used, stop: &Stop, heard: &mut Heard, limit: Duration) -> Ended<Output> {
    let unknown = |code: i32, text: String| {
        Ended::Failed(Failure {
            scope: Scope::Event,
            class: FailureClass::Unknown,
            code,
            text,
            parks: false,
        })
    };
    match stop {
        Stop::Complete => {}
        // Some network devices say no exit status.
        Stop::Closed if heard.status.is_some() || heard.closed => {}
        Stop::Closed => {
            let why = one_line(&used.why_ended());
            return unknown(
                Failure::CODE_TRANSPORT,
                format!(
                    "SSH: the connection ended before the command did ({why}); it may have been carried out"
                ),
            );
        }
        Stop::Late | Stop::Abandoned => {
            let ms = limit.as_millis();
            return Ended::Failed(Failure::timeout(format!(
                "SSH: the command did not end within {ms} ms; it was told to end, but may have been carried out"
            )));
        }
        Stop::Endless => {
            return unknown(
                Failure::CODE_PERMANENT,
                format!(
                    "SSH: the command said more than {OUTPUT_MAX} bytes; it was told to end, but may have been carried out"
                ),
            );
        }
        Stop::Denied => {
            return Ended::Failed(Failure {
                scope: Scope::Nas,
                parks: true,
                ..Failure::permanent(
                    "SSH: the server runs no commands (it refused the request exec); does this device have an interactive shell only?",
                )
            });
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended::Done(Output {
        status: heard.status.unwrap_or(0),
        stdout: text(&heard.stdout),
        stderr: text(&heard.stderr),
        new_session: false,
    })
}

/// Numbers of the signals that a server names (RFC 4254 section 6.10), as on Linux.
fn number(signal: &Sig) -> i32 {
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => 127,
    }
}

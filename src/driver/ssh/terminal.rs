//! A login shell behind a terminal (RFC 4254 sections 6.2 and 6.5), for devices that know modes
//! and prompts instead of commands with an exit status. Here are only its bytes; the dialogue
//! over them is the same as telnet's.

use std::time::Duration;

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::attempt::{Failure, Scope};
use crate::clock;
use crate::driver::ssh::channel::{Ended, KILL_GRACE, closes, open, since};
use crate::driver::ssh::pool::Used;
use crate::driver::ssh::window::Place;

/// A kind of terminal that every device knows, and that needs few escape sequences.
const TERM: &str = "vt100";
/// Its size, characters: lines are not broken where a person's terminal would break them.
const COLUMNS: u32 = 511;
/// Rows: a device that asks for the size shows a page of this many before it waits for a key.
const ROWS: u32 = 500;
/// Bytes on their way in each direction.
const BUFFER: usize = 64 * 1024;
/// Bytes taken from the caller at once.
const CHUNK: usize = 8 * 1024;

/// What is shown must be read within this time: the connection carries other sessions, too, and a
/// reader that has gone to sleep would hold them all.
const STALL: Duration = Duration::from_secs(5);

/// Begins it, within `limit` from now on, and moves its bytes until one side ends. `place` is given back then.
pub(super) async fn run(
    used: Used,
    place: Place,
    limit: Duration,
    mut caller: oneshot::Sender<Ended<DuplexStream>>,
) {
    let began = clock::tick_ms();
    let opened = open(&used, place, limit, &mut caller).await;
    let (mut channel, place) = match opened {
        Ok(opened) => opened,
        Err(ended) => {
            // Nobody waits any more: the same.
            let _ = caller.send(ended);
            return;
        }
    };
    let begun = timeout(limit.saturating_sub(since(began)), begin(&mut channel)).await;
    let (mut read, write) = channel.split();
    let refused = match begun {
        Ok(Some(true)) => None,
        Ok(Some(false)) => Some(Ended::Failed(Failure {
            scope: Scope::Nas,
            parks: true,
            ..Failure::permanent("SSH: the server gives this login no terminal or no shell")
        })),
        Ok(None) => Some(Ended::NotSent(used.why_ended())),
        Err(_) => Some(Ended::Failed(Failure::transport(format!(
            "SSH: no shell within {} ms",
            limit.as_millis()
        )))),
    };
    match refused {
        Some(ended) => {
            let _ = caller.send(ended);
        }
        None => {
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            if caller.send(Ended::Done(theirs)).is_ok() {
                let (from_caller, to_caller) = tokio::io::split(ours);
                tokio::select! {
                    () = shown(&mut read, to_caller) => {}
                    () = typed(from_caller, &write) => {}
                }
            }
        }
    }
    // A terminal that hangs up ends its shell.
    let _ = write.eof().await;
    if !closes(&mut read, KILL_GRACE).await {
        let _ = write.close().await;
    }
    drop(place);
}

/// Asks for terminal and shell; `None` = the connection ended.
async fn begin(channel: &mut Channel<Msg>) -> Option<bool> {
    let asked = channel.request_pty(true, TERM, COLUMNS, ROWS, 0, 0, &[]);
    asked.await.ok()?;
    if !granted(channel).await? {
        return Some(false);
    }
    channel.request_shell(true).await.ok()?;
    granted(channel).await
}

async fn granted(channel: &mut Channel<Msg>) -> Option<bool> {
    loop {
        match channel.wait().await? {
            ChannelMsg::Success => return Some(true),
            ChannelMsg::Failure => return Some(false),
            ChannelMsg::Close => return None,
            _ => {}
        }
    }
}

/// From the device to the caller, until the device ends or nobody reads.
async fn shown(read: &mut ChannelReadHalf, mut caller: WriteHalf<DuplexStream>) {
    while let Some(message) = read.wait().await {
        let data = match message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data,
            ChannelMsg::Eof | ChannelMsg::Close => break,
            _ => continue,
        };
        if !matches!(timeout(STALL, caller.write_all(&data)).await, Ok(Ok(()))) {
            return;
        }
    }
    // The reader sees the end after what was said last.
    let _ = caller.shutdown().await;
}

/// From the caller to the device, until the caller is gone.
async fn typed(mut caller: ReadHalf<DuplexStream>, write: &ChannelWriteHalf<Msg>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(n) = caller.read(&mut chunk).await else {
            return;
        };
        let bytes = chunk.get(..n).unwrap_or_default().to_vec();
        if n == 0 || write.data_bytes(bytes).await.is_err() {
            return;
        }
    }
}

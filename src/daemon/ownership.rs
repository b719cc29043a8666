//! Who owns the database: taking it from a holder that is dead or silent, never from a live one;
//! waiting where it is locked; renewing the sign of life; giving it up.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::SIGN_OF_LIFE;
use super::process::{self, STALE_MS};
use crate::cli::exit::{self, Failed};
use crate::clock;
use crate::store::{After, Error, Owner, Store, chain};

/// A database that another process keeps locked is waited for so long, ms: longer than a backup
/// holds it, shorter than an operator's patience.
const LOCKED_MAX_MS: u64 = 60_000;
/// A daemon that has got its ports takes the ownership next; this much later it has, ms.
const PORT_BEFORE_OWNERSHIP_MS: u64 = 1_000;
/// In this time a living daemon has given a sign of life, also on a busy machine, ms.
const TWO_SIGNS_MS: u64 = 2 * SIGN_OF_LIFE.as_secs() * 1_000;
/// Between two looks at who owns the database.
const LOOK_AT_OWNER: Duration = Duration::from_millis(50);

/// Gives the ownership up when the start fails after it was taken: the next daemon shall not
/// have to find out that this one is dead.
pub(super) async fn given_up(store: &dyn Store, epoch: i64) {
    if let Err(error) = store.disown(epoch).await {
        tracing::warn!("the ownership could not be given up: {}", chain(&error));
    }
}

/// Takes the ownership: at once from a holder that is seen to be dead, after [`STALE_MS`]
/// without a sign of life from one that cannot be seen, never from a live one. A dead holder is
/// followed by one daemon only, however many start at once.
pub(super) async fn own(store: &dyn Store) -> Result<i64, Failed> {
    let me = process::holder();
    let mut last_seen: Option<i64> = None;
    let mut after = After::Silence(STALE_MS);
    let began = clock::tick_ms();
    lives(store).await?;
    loop {
        match store.own(&me, after).await {
            Ok(epoch) => return Ok(epoch),
            Err(Error::Owned(owner)) if process::is_dead(&owner.holder) => {
                after = After::Death(owner.epoch);
            }
            Err(Error::Owned(owner)) => {
                let seen_ms = owner.seen_ms;
                if process::is_here(&owner.holder)
                    || last_seen.is_some_and(|before| seen_ms < before)
                {
                    return Err(Error::Owned(owner).into());
                }
                after = After::Silence(STALE_MS);
                last_seen = Some(seen_ms);
                tokio::time::sleep(SIGN_OF_LIFE / 2).await;
            }
            Err(error) if error.is_locked() => {
                // It waited already. What holds the lock may be the last daemon, stopped within
                // a transaction: then nobody can work until it is let go on, or ended.
                let waited_ms = clock::tick_ms().saturating_sub(began);
                let owner = match store.owner().await? {
                    Some(owner) => format!("{}, seen alive {} ms ago", owner.holder, owner.seen_ms),
                    None => "nobody".to_owned(),
                };
                let said = format!(
                    "the database has been locked for {waited_ms} ms; its owner is {owner}"
                );
                if waited_ms >= LOCKED_MAX_MS {
                    return Err(Failed::new(
                        exit::REFUSED,
                        format!("{said}\nhint: {}", exit::LOCKED),
                    ));
                }
                tracing::warn!("{said}: waiting");
            }
            Err(other) => return Err(other.into()),
        }
    }
}

/// Refuses if the owner looks silent and gives a sign of life nevertheless: the database's clock may
/// have been put on since the last one. What the database does not tell here, it tells the caller.
async fn lives(store: &dyn Store) -> Result<(), Failed> {
    let silent = |owner: &Owner| owner.seen_ms >= STALE_MS && !process::is_dead(&owner.holder);
    let before = match store.owner().await {
        Ok(Some(owner)) if silent(&owner) => owner,
        _ => return Ok(()),
    };
    let until = clock::tick_ms() + TWO_SIGNS_MS;
    while clock::tick_ms() < until {
        tokio::time::sleep(LOOK_AT_OWNER).await;
        match store.owner().await {
            Ok(Some(now)) if now.epoch == before.epoch && now.seen_ms >= before.seen_ms => {}
            Ok(Some(now)) => return Err(Error::Owned(now).into()),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// The likeliest holder of our port is another daemon, and then it is to be named. It may have
/// started together with this one and be about to take the ownership, so nothing is taken here.
pub(super) async fn owned_by_another(store: &dyn Store) -> Result<(), Failed> {
    let until = clock::tick_ms() + PORT_BEFORE_OWNERSHIP_MS;
    loop {
        if let Some(owner) = store.owner().await?
            && !process::is_dead(&owner.holder)
            && (process::is_here(&owner.holder) || owner.seen_ms < STALE_MS)
        {
            return Err(Error::Owned(owner).into());
        }
        if clock::tick_ms() >= until {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AT_OWNER).await;
    }
}

pub(super) async fn sign_of_life(
    store: Arc<dyn Store>,
    epoch: i64,
    ended: CancellationToken,
) -> Result<&'static str, Error> {
    loop {
        tokio::select! {
            () = ended.cancelled() => return Ok("the sign of life"),
            () = tokio::time::sleep(SIGN_OF_LIFE) => {}
        }
        match store.still_own(epoch).await {
            Ok(true) => {}
            Ok(false) => return Err(Error::Fenced { epoch }),
            Err(error) => {
                tracing::warn!("the sign of life could not be written: {}", chain(&error))
            }
        }
    }
}

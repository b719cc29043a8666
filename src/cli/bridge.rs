//! `bridge`: takes the rows of a foreign stack every second, until a signal ends it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Console;
use super::exit::{DONE, FAILED, Failed, NOT_REACHABLE, Outcome, PART_FAILED, remark};
use super::table::Table;
use crate::bridge::map::Map;
use crate::bridge::{Error, Moved};
use crate::daemon::process::forbid_core_dumps;
use crate::daemon::shutdown::Signals;

/// Longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Which source, and how long.
#[derive(Debug, Args)]
pub struct Bridge {
    /// bridge.toml: the source, its columns, what becomes of a row
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// Take what waits now, then end; a failure ends it, too
    #[arg(long)]
    once: bool,
}

/// Runs the bridge.
pub async fn bridge(console: &Console, args: Bridge) -> Outcome {
    // It holds the passwords of two databases.
    forbid_core_dumps();
    let map = Map::load(&args.map).map_err(|reason| {
        Failed::config(format!("{reason}\nhint: docs/migrate.md, \"The bridge\""))
    })?;
    let every = map.source.every;
    let config = console.config()?;
    let store = console.store(&config).await?;
    let mut signals =
        Signals::catch().map_err(|e| Failed::new(FAILED, format!("cannot catch signals: {e}")))?;
    let mut bridge = crate::bridge::Bridge::new(map, store).map_err(failed)?;
    if console.dry_run {
        return look(console, &bridge).await;
    }
    let mut pause = every;
    let mut refused = 0;
    loop {
        let wait = match bridge.turn().await {
            Ok(moved) => {
                say(&moved);
                refused += moved.refused.len();
                pause = every;
                if moved.more {
                    Duration::ZERO
                } else if args.once {
                    return Ok(if refused > 0 { PART_FAILED } else { DONE });
                } else {
                    every
                }
            }
            Err(error) if args.once => return Err(failed(error)),
            Err(error) => {
                remark(format!("again in {pause:?}: {error}"));
                let wait = pause;
                pause = (pause * 2).clamp(every, PAUSE_MAX.max(every));
                wait
            }
        };
        tokio::select! {
            // Looked at first, also when there is more to take.
            biased;
            () = signals.stop() => return Ok(DONE),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn failed(error: Error) -> Failed {
    match error {
        Error::Source(error) => Failed::new(
            NOT_REACHABLE,
            format!(
                "{error}\nhint: look at [source] and [take] of the map; --dry-run shows what would be taken"
            ),
        ),
        Error::Store(error) => error.into(),
    }
}

fn say(moved: &Moved) {
    if moved.taken + moved.told + moved.refused.len() > 0 {
        remark(format!(
            "taken {} (posted before: {}), refused {}, told {}",
            moved.taken,
            moved.again,
            moved.refused.len(),
            moved.told
        ));
    }
    for (row, reason) in &moved.refused {
        remark(format!("row {row} is no event: {reason}"));
    }
}

async fn look(console: &Console, bridge: &crate::bridge::Bridge) -> Outcome {
    let mut table = Table::new(&["row", "cmd", "user", "nas", "nas_ip", "usluga", "reason"]);
    for (row, event) in bridge.look().await.map_err(failed)? {
        match event {
            Ok(event) => table.push(vec![
                json!(row),
                json!(event.cmd),
                json!(event.user_id),
                json!(event.nas_id),
                json!(event.nas_ip),
                json!(event.usluga_id),
                json!(null),
            ]),
            Err(reason) => {
                let mut cells = vec![json!(row)];
                cells.resize(6, json!(null));
                cells.push(json!(reason));
                table.push(cells);
            }
        }
    }
    console.list(&table);
    remark("dry run: nothing was taken");
    Ok(DONE)
}

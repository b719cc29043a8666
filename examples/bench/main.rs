//! Measures the daemon as a process: drain, order under a huge lane, sustained load, scripts,
//! latency, idle NASes, a slow disk, a dead half of the network, commands over SSH, to a router and
//! by RADIUS. Called by `scripts/bench`; prints Markdown, progress to stderr.
//!
//! usage: bench [drain|lane|sustained|scripts|riding|latency|payer|doors|pages|idle|ssh|radius|mikrotik|
//! isolation|slowdisk]… ; all but the last four if none is named.
//! `NED_BENCH_BIN` is the release binary, `NED_BENCH_PG` a throw-away PostgreSQL.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a measuring program: a failed step ends it"
)]

mod daemon;
mod disk;
mod doors;
mod isolation;
mod mikrotik;
mod pages;
mod parts;
mod radius;
mod riding;
mod ssh;

fn main() {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let all = [
            "drain",
            "lane",
            "sustained",
            "scripts",
            "riding",
            "latency",
            "payer",
            "doors",
            "pages",
            "idle",
            "ssh",
            "radius",
            "mikrotik",
            "isolation",
            "slowdisk",
        ];
        for part in all {
            // Sections of their own in scripts/bench: they need software of others, or long.
            let by_name_only = ["radius", "mikrotik", "isolation", "slowdisk"].contains(&part);
            if (named.is_empty() && by_name_only)
                || (!named.is_empty() && !named.iter().any(|n| n == part))
            {
                continue;
            }
            eprintln!("== {part}");
            match part {
                "drain" => parts::drain().await,
                "lane" => parts::lane().await,
                "sustained" => parts::sustained().await,
                "scripts" => parts::scripts().await,
                "riding" => riding::riding().await,
                "latency" => parts::latency().await,
                "doors" => doors::doors().await,
                "pages" => pages::pages().await,
                "payer" => parts::payer().await,
                "ssh" => ssh::ssh().await,
                "radius" => radius::radius().await,
                "mikrotik" => mikrotik::mikrotik().await,
                "isolation" => isolation::isolation().await,
                "slowdisk" => disk::slowdisk().await,
                _ => parts::idle().await,
            }
        }
    });
}

//! `init`: from nothing to a configuration that can be run. May be called again at any time:
//! what is there is left as it is, and said.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;

use super::Console;
use super::exit::{DONE, FAILED, Failed, Outcome, remark, say};
use crate::config::{Config, DEFAULT_FILE};
use crate::store::{self, Store, shown_url, sqlite_file};

/// The file may hold a password, in the URL of the database.
const MODE: u32 = 0o640;

/// What to begin with.
#[derive(Debug, Args)]
pub struct Init {
    /// Database, for example postgres://nas_event_daemon@localhost/billing; default: an SQLite file
    #[arg(long, value_name = "URL")]
    db: Option<String>,
    /// Keep everything below this directory: database, logs, sockets, schemes
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Network that may use the classic API without a token, at most a /24
    #[arg(long, value_name = "NET")]
    open_from: Vec<IpNet>,
}

/// Makes what is missing, and prints what to do next.
pub async fn init(console: &Console, args: Init) -> Outcome {
    // What was typed now comes before what the shell still knows.
    let known = std::env::var_os("NED_CONFIG").map(PathBuf::from);
    let told = console.file.clone();
    let told = told.filter(|file| args.dir.is_none() || known.as_ref() != Some(file));
    let file = told.unwrap_or_else(|| match &args.dir {
        Some(dir) => dir.join("nas_event_daemon.toml"),
        None => DEFAULT_FILE.into(),
    });
    let dir = args.dir.as_deref().map(absolute).transpose()?;
    let share = share(std::env::current_dir().ok());
    let text_with = |db: Option<&str>| text(db, dir.as_deref(), share.as_deref(), &args.open_from);
    let text = text_with(args.db.as_deref());
    if console.dry_run {
        let shown = args.db.as_deref().map(shown_url);
        return dry(&file, &text, &text_with(shown.as_deref()));
    }
    if file.exists() {
        say(format!("{}: is there, left as it is", file.display()));
    } else {
        write(&file, &text)?;
        say(format!("{}: written", file.display()));
    }
    let config =
        Config::load(Some(&file), std::env::vars()).map_err(|e| Failed::config(e.to_string()))?;
    for dir in directories(&config) {
        if !dir.is_dir() {
            std::fs::create_dir_all(&dir).map_err(|e| cannot(&dir, &e))?;
            say(format!("{}: made", dir.display()));
        }
    }
    let url = shown_url(&config.database.url);
    let store = store::connect(&config.database.url).await?;
    let missing = store.check_billing().await?;
    if !missing.is_empty() {
        return Err(store::Error::Billing(missing.join("; ")).into());
    }
    say(format!("{url}: our tables are there, the billing's fit"));
    next_steps(&file, store.as_ref()).await
}

/// What is needed beside the file.
fn directories(config: &Config) -> Vec<PathBuf> {
    let paths = &config.paths;
    let mut wanted = vec![
        paths.log.clone(),
        paths.run.clone(),
        paths.oss.join("local"),
    ];
    let database = sqlite_file(&config.database.url).and_then(Path::parent);
    wanted.extend(
        database
            .filter(|dir| !dir.as_os_str().is_empty())
            .map(Path::to_owned),
    );
    wanted
}

/// What would be made, and the file as it would be written, but for what may be a password of the
/// database: that is `shown`. No database is opened.
fn dry(file: &Path, text: &str, shown: &str) -> Outcome {
    let config = if file.exists() {
        say(format!("{}: is there, left as it is", file.display()));
        Config::load(Some(file), std::env::vars())
    } else {
        say(format!("{}: would be written:", file.display()));
        shown.lines().for_each(|line| say(format!("    {line}")));
        if shown != text {
            remark("with the whole URL: what may be a password in it is not shown here");
        }
        Config::of_text(&file.display().to_string(), text, std::env::vars())
    };
    let config = config.map_err(|e| Failed::config(e.to_string()))?;
    for dir in directories(&config) {
        if !dir.is_dir() {
            say(format!("{}: would be made", dir.display()));
        }
    }
    let url = shown_url(&config.database.url);
    let what = match sqlite_file(&config.database.url) {
        Some(place) if !place.exists() => "would be made",
        Some(_) | None => "our tables would be made, where they are not there",
    };
    say(format!("{url}: {what}"));
    remark("dry run: nothing was made");
    Ok(DONE)
}

async fn next_steps(file: &Path, store: &dyn Store) -> Outcome {
    let nases = store.nases().await?.len();
    if file != Path::new(DEFAULT_FILE) {
        say(format!("next: export NED_CONFIG={}", file.display()));
    }
    if nases == 0 {
        say("next: add your NASes to the table nas, in mode observe at first");
    }
    for step in [
        "config check",
        "doctor",
        "run                (or: systemctl enable --now nas_event_daemon)",
        "nas test ID",
    ] {
        say(format!("next: nas_event_daemon {step}"));
    }
    Ok(DONE)
}

/// Where the shipped schemes are, if not where the package puts them: in a checkout of the sources.
fn share(here: Option<PathBuf>) -> Option<PathBuf> {
    let installed = Config::default().paths.share.join("oss/core");
    here.filter(|here| !installed.is_dir() && here.join("oss/core/Record").is_dir())
}

/// Only what differs from the defaults is set: a key that is not there follows them.
fn text(db: Option<&str>, dir: Option<&Path>, share: Option<&Path>, open_from: &[IpNet]) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let url = match (db, dir) {
        (Some(url), _) => format!("url = {}", quoted(url)),
        (None, Some(dir)) => {
            let path = dir.join("nas_event_daemon.db");
            format!("url = {}", quoted(&format!("sqlite://{}", path.display())))
        }
        (None, None) => "# url = \"postgres://nas_event_daemon@localhost/billing\"".to_owned(),
    };
    let mut paths = String::new();
    if let Some(dir) = dir {
        for name in ["oss", "log", "run"] {
            let path = dir.join(name).display().to_string();
            paths.push_str(&format!("{name} = {}\n", quoted(&path)));
        }
    }
    if let Some(share) = share {
        let path = quoted(&share.display().to_string());
        paths.push_str(&format!("share = {path}   # the shipped schemes\n"));
    }
    if !paths.is_empty() {
        paths.insert_str(0, "\n[paths]\n");
    }
    let nets: Vec<String> = open_from.iter().map(|n| quoted(&n.to_string())).collect();
    let open_from = if nets.is_empty() {
        "# open_from = [\"169.254.80.82/32\"]".to_owned()
    } else {
        format!("open_from = [{}]", nets.join(", "))
    };
    format!(
        "# Every key is optional; `nas_event_daemon config reference` explains them all.\n\n\
         [database]\n{url}\n{paths}\n\
         [http]\n# listen = [\"127.0.0.1:8082\"]\n\
         {open_from}   # who may use the classic API without a token\n"
    )
}

fn write(file: &Path, text: &str) -> Result<(), Failed> {
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| cannot(dir, &e))?;
    }
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(MODE).open(file);
    made.and_then(|mut open| open.write_all(text.as_bytes()))
        .map_err(|e| cannot(file, &e))
}

fn absolute(dir: &Path) -> Result<PathBuf, Failed> {
    std::path::absolute(dir).map_err(|e| cannot(dir, &e))
}

fn cannot(path: &Path, e: &std::io::Error) -> Failed {
    let hint = "run it as root, or with --dir and a directory of yours";
    let text = format!("{} cannot be made: {e}", path.display());
    Failed::new(FAILED, format!("{text}\nhint: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_is_a_configuration() {
        let dir = Path::new("/home/me/a \"dir\"");
        let both = [
            text(None, None, None, &[]),
            text(Some("postgres://u@h/d"), None, None, &[]),
            text(
                None,
                Some(dir),
                Some(dir),
                &["10.0.0.0/24".parse().unwrap()],
            ),
        ];
        let read: Vec<Config> = both.iter().map(|t| toml::from_str(t).unwrap()).collect();
        assert_eq!(read[0], Config::default());
        assert_eq!(read[1].database.url, "postgres://u@h/d");
        assert_eq!(read[2].paths.log, dir.join("log"));
        assert_eq!(read[2].paths.share, dir);
        assert_eq!(read[2].http.open_from.len(), 1);
        assert!(read[2].database.url.starts_with("sqlite:///home/me/a \""));
    }
}

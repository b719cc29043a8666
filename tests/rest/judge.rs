//! An independent judge of the API: schemathesis (PyPI, `scripts/install-peers`) reads the OpenAPI
//! document from a running daemon, makes calls of it, well-formed and not, and holds every answer
//! against it. A short form; `NED_JUDGE_SECONDS` makes it longer by hand, `NED_JUDGE_CASES` says how
//! many calls it must have made at least, and `NED_JUDGE_REPORT` names a file for what it says.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(no_call_breaks_the_document);

/// What an answer is judged by. Whether a wrong call is refused is ours to say: JSON that a billing
/// writes with numbers as texts is taken.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance";
/// Calls that it makes at least in its short form, on a machine that is busy with other tests.
const CASES_MIN: u64 = 300;
/// How long it makes calls in its short form.
const SECONDS: u64 = 20;
/// Time for the judge to start and to end, beside its calls.
const AROUND: Duration = Duration::from_secs(240);

fn peers() -> PathBuf {
    let peers = std::env::var("NED_TEST_PEERS")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers").to_owned());
    let judge = PathBuf::from(peers).join("schemathesis");
    assert!(
        judge.join("schemathesis").is_dir(),
        "schemathesis is missing in {} (scripts/test --install)",
        judge.display()
    );
    judge
}

/// Runs the judge against a URL; whether it is content, and what it says.
async fn judged(lab: &Lab, document: &str, seconds: u64, only: &[&str]) -> (bool, String) {
    // A followed log never ends, and the judge would wait for it.
    let settings = "[parameters]\n\"query.follow\" = false\n\"query.wait\" = \"10ms\"\n";
    std::fs::write(lab.path("schemathesis.toml"), settings).unwrap();
    let seconds = seconds.to_string();
    #[expect(
        clippy::disallowed_methods,
        reason = "the judge is a program of its own"
    )]
    let mut command = tokio::process::Command::new("python3");
    let child = command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(lab.path("schemathesis.toml"))
        .args(["run", document, "--url", &lab.url("")])
        .args(["--checks", CHECKS, "--max-time", &seconds, "--no-color"])
        .args(["--phases", "examples,coverage,fuzzing", "--warnings", "off"])
        .args(only)
        // What it cannot make calls of is no fault of an answer.
        .args(["--suppress-health-check", "filter_too_much"])
        .args(["-H", "Authorization: Bearer token-of-the-lab"])
        .env("PYTHONPATH", peers())
        .env("NO_COLOR", "1")
        .current_dir(lab.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 cannot be started (scripts/test --install)");
    let limit = Duration::from_secs(seconds.parse().unwrap()) + AROUND;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .expect("the judge does not end")
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

/// How many calls it says to have made and judged.
fn cases(said: &str) -> u64 {
    let number = |part: &str| part.trim().split(' ').next()?.parse::<u64>().ok();
    let counted = said
        .lines()
        .skip_while(|line| line.trim() != "Test cases:")
        .nth(1)
        .unwrap_or_else(|| panic!("the judge counts nothing: {said}"));
    let of = |what: &str| {
        let mut parts = counted.split(',');
        parts.find(|part| part.contains(what)).and_then(number)
    };
    let made = of("generated").unwrap_or_else(|| panic!("{counted}"));
    made - of("skipped").unwrap_or(0) - of("errored").unwrap_or(0)
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

async fn no_call_breaks_the_document(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.native(
        "Record",
        "driver = \"record\"\n[[on.user_add]]\ncall = \"/x\"\n",
    );
    lab.nas(5, "Record", 2, &[]).await;
    lab.nas(6, "Missing", 2, &[]).await;
    lab.accounts(5, 1..=20).await;
    let daemon = lab.start().await;
    for user in 1..=5 {
        lab.event(user, "user_add").await;
    }
    let seconds = setting("NED_JUDGE_SECONDS", SECONDS);
    let (content, said) = judged(&lab, &lab.url("/api/openapi.json"), seconds, &[]).await;
    if let Ok(file) = std::env::var("NED_JUDGE_REPORT") {
        std::fs::write(file, &said).unwrap();
    }
    assert!(content, "{said}");
    assert!(lab.is_up().await, "{said}");
    let (made, wanted) = (cases(&said), setting("NED_JUDGE_CASES", CASES_MIN));
    assert!(made >= wanted, "{made} calls, {wanted} are wanted: {said}");
    // The judge bites: a document that promises another answer is not kept.
    let wrong = lab
        .get("/api/openapi.json")
        .await
        .replace("\"parent_turned_ms_ago\"", "\"parent_sat_ms_ago\"");
    std::fs::write(lab.path("wrong.json"), wrong).unwrap();
    let file = lab.path("wrong.json");
    let only = ["--include-path", "/healthz"];
    let (content, said) = judged(&lab, file.to_str().unwrap(), 5, &only).await;
    assert!(!content && said.contains("parent_sat_ms_ago"), "{said}");
    daemon.stop().await;
}

//! Logins of every kind that a server may ask for, and host keys.

use std::sync::{Arc, Mutex};

use nas_event_daemon::attempt::{FailureClass, Scope};
use nas_event_daemon::driver::ssh::trust::Trust;
use nas_event_daemon::driver::ssh::{self, Ssh, Target};

use super::sessions::command;
use crate::lab::daemon::PATIENCE;
use crate::lab::sshd::{Sshd, User, limits, sessions};

async fn who(target: Target) -> Result<String, nas_event_daemon::attempt::Failure> {
    let ssh = sessions(target, 1);
    let said = ssh.exec(&command("id -un"), PATIENCE).await?;
    Ok(said.stdout.trim().to_owned())
}

fn by_password(sshd: &Sshd, user: &User) -> Target {
    Target {
        login: user.name.clone(),
        password: user.password.clone(),
        key: String::new(),
        ..sshd.target()
    }
}

#[tokio::test]
async fn keys_of_every_kind_let_in() {
    let sshd = Sshd::start(&[]).await;
    assert_eq!(who(sshd.target()).await.unwrap(), "root");
    for kind in [["-t", "rsa", "-b", "2048"], ["-t", "ecdsa", "-b", "256"]] {
        sshd.key("client", &kind).await;
        std::fs::copy(sshd.path("client.pub"), sshd.path("authorized")).unwrap();
        assert_eq!(who(sshd.target()).await.unwrap(), "root", "{kind:?}");
    }
    // The classic PEM form.
    sshd.key("client", &["-t", "rsa", "-b", "2048", "-m", "PEM"])
        .await;
    std::fs::copy(sshd.path("client.pub"), sshd.path("authorized")).unwrap();
    assert!(sshd.client_key().contains("BEGIN RSA PRIVATE KEY"));
    assert_eq!(who(sshd.target()).await.unwrap(), "root");
    // A key that the server does not know.
    sshd.key("client", &["-t", "ed25519"]).await;
    let failure = who(sshd.target()).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Refused)
    );
    assert!(failure.parks, "{failure}");
    assert!(failure.text.contains("publickey"), "{failure}");
    let useless = Target {
        key: "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
            .to_owned(),
        ..sshd.target()
    };
    let failure = who(useless).await.unwrap_err();
    assert!(
        failure.parks && failure.text.contains("nas_secret.ssh_key"),
        "{failure}"
    );
}

#[tokio::test]
async fn passwords_let_in_through_pam_by_both_methods() {
    let user = User::new().await;
    for method in [
        "PasswordAuthentication yes",
        "KbdInteractiveAuthentication yes",
    ] {
        let sshd = Sshd::start(&["UsePAM yes", method]).await;
        assert_eq!(
            who(by_password(&sshd, &user)).await.unwrap(),
            user.name,
            "{method}"
        );
        let wrong = Target {
            password: "wrong-password".to_owned(),
            ..by_password(&sshd, &user)
        };
        let failure = who(wrong).await.unwrap_err();
        assert_eq!(
            (failure.scope, failure.class),
            (Scope::Nas, FailureClass::Refused)
        );
        assert!(failure.parks, "{failure}");
        assert!(!failure.text.contains("wrong-password"), "{failure}");
        // It was tried again inside the attempt, but each time by one method only.
        let refused = sshd.log().matches("Failed ").count();
        assert!((2..=8).contains(&refused), "{refused}: {}", sshd.log());
    }
    // A key that is not known, then the password, in one login.
    let sshd = Sshd::start(&["UsePAM yes", "PasswordAuthentication yes"]).await;
    let both = Target {
        key: sshd.client_key(),
        ..by_password(&sshd, &user)
    };
    std::fs::write(sshd.path("authorized"), "").unwrap();
    assert_eq!(who(both).await.unwrap(), user.name);
    // Both are asked for.
    let sshd = Sshd::start(&[
        "UsePAM yes",
        "PasswordAuthentication yes",
        "AuthenticationMethods publickey,password",
    ])
    .await;
    let both = Target {
        key: sshd.client_key(),
        ..by_password(&sshd, &user)
    };
    assert_eq!(who(both).await.unwrap(), user.name);
}

/// What a server of about 2008 offers, and nothing else.
const OLD: [&str; 5] = [
    "KexAlgorithms diffie-hellman-group1-sha1",
    "Ciphers aes128-cbc,3des-cbc",
    "MACs hmac-sha1",
    "HostKeyAlgorithms ssh-rsa",
    "PubkeyAcceptedAlgorithms ssh-rsa",
];

/// A server that offers nothing else; its host key is `rsa`.
pub(crate) async fn old_server() -> Sshd {
    let mut more = OLD.to_vec();
    more.extend(["HostKey $D/rsa", "RequiredRSASize 1024", "LogLevel DEBUG2"]);
    // The key must be there before the server starts.
    let mut sshd = Sshd::start(&[]).await;
    sshd.down().await;
    sshd.key("rsa", &["-t", "rsa", "-b", "1024"]).await;
    sshd.key("client", &["-t", "rsa", "-b", "2048"]).await;
    std::fs::copy(sshd.path("client.pub"), sshd.path("authorized")).unwrap();
    sshd.reconfigure(&more);
    sshd.up().await;
    sshd
}

#[tokio::test]
async fn an_old_server_is_spoken_to_only_where_the_nas_says_so() {
    let sshd = old_server().await;
    let target = Target {
        trust: Trust::of(Some(&sshd.fingerprint("rsa").await), None).unwrap(),
        ..sshd.target()
    };
    let failure = who(target.clone()).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Permanent)
    );
    assert!(failure.parks, "{failure}");
    assert!(failure.text.contains("ssh_legacy"), "{failure}");
    assert!(
        failure.text.contains("ssh-rsa") || failure.text.contains("group1"),
        "{failure}"
    );
    let old = Target {
        legacy: true,
        ..target
    };
    let came = who(old).await;
    assert_eq!(
        came.as_deref().ok(),
        Some("root"),
        "{came:?}: {}",
        sshd.log()
    );
    // The word costs a modern server nothing: the strong ones are still preferred.
    let modern = Sshd::start(&["LogLevel DEBUG2"]).await;
    let legacy = Target {
        legacy: true,
        ..modern.target()
    };
    assert_eq!(who(legacy).await.unwrap(), "root");
    let log = modern.log();
    assert!(!log.contains("cipher: aes128-cbc"), "{log}");
}

#[tokio::test]
async fn a_host_key_is_learned_once_and_a_changed_one_is_told() {
    let mut sshd = Sshd::start(&[]).await;
    let learned: Arc<Mutex<Vec<String>>> = Arc::default();
    let keep = Arc::clone(&learned);
    let first = Target {
        trust: Trust::of(Some("tofu"), None).unwrap(),
        ..sshd.target()
    };
    let learn: ssh::Learn = Arc::new(move |line| keep.lock().unwrap().push(line.to_owned()));
    let ssh = Ssh::new(first.clone(), limits(1), learn);
    ssh.exec(&command("true"), PATIENCE).await.unwrap();
    let shown = ssh::host_key(&first, &limits(1)).await.unwrap();
    assert_eq!(*learned.lock().unwrap(), [shown.as_str()]);
    assert!(sshd.read("host.pub").starts_with(&shown), "{shown}");
    // It comes back with the same key, then with another one.
    sshd.down().await;
    sshd.up().await;
    ssh.exec(&command("true"), PATIENCE).await.unwrap();
    assert_eq!(learned.lock().unwrap().len(), 1);
    let old = sshd.fingerprint("host").await;
    sshd.down().await;
    sshd.key("host", &["-t", "ed25519"]).await;
    sshd.up().await;
    let before = sshd.log().len();
    let failure = ssh.exec(&command("true"), PATIENCE).await.unwrap_err();
    assert_eq!(
        (failure.scope, failure.class),
        (Scope::Nas, FailureClass::Permanent)
    );
    assert!(failure.parks, "{failure}");
    for part in [old, sshd.fingerprint("host").await, "nas rekey".to_owned()] {
        assert!(failure.text.contains(&part), "{part} in {failure}");
    }
    assert!(!sshd.log()[before..].contains("Accepted"), "nobody logs in");
    // Nothing said: refused, with what to compare.
    let unsaid = Target {
        trust: Trust::of(None, None).unwrap(),
        ..sshd.target()
    };
    let failure = who(unsaid).await.unwrap_err();
    assert!(
        failure.parks && failure.text.contains("nas.ssh_host_key"),
        "{failure}"
    );
    assert!(
        failure.text.contains(&sshd.fingerprint("host").await),
        "{failure}"
    );
}

#[tokio::test]
async fn a_server_with_several_keys_is_known_by_the_one_that_is_pinned() {
    let mut sshd = Sshd::start(&[]).await;
    sshd.down().await;
    sshd.key("rsa", &["-t", "rsa", "-b", "2048"]).await;
    sshd.reconfigure(&["HostKey $D/host", "HostKey $D/rsa"]);
    sshd.up().await;
    for name in ["rsa.pub", "host.pub"] {
        let target = Target {
            trust: Trust::of(Some(&sshd.read(name)), None).unwrap(),
            ..sshd.target()
        };
        assert_eq!(who(target).await.unwrap(), "root", "{name}");
    }
}

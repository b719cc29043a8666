//! `token …`: secrets for the API. The secret is printed once and stored nowhere; the
//! database keeps its SHA-256.

use clap::Subcommand;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::exit::{DONE, FAILED, Failed, NOT_FOUND, Outcome, USAGE, remark, say};
use super::table::Table;
use super::{Console, Reason, who};
use crate::intake::access::{Scope, hex};
use crate::store::Token;

/// Letters of a token: what no shell, header or URL has to quote.
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 43 letters of 62 hold 256 bits.
const LENGTH: usize = 43;
/// Longest name, letters.
const NAME_MAX: usize = 64;

/// Verbs of tokens.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a token; it is the last word printed, and is never shown again.
    Create {
        /// Who will use it, as the audit will name it
        name: String,
        /// viewer reads; support also asks for user_info; operator also posts; admin all
        #[arg(long, value_parser = ["viewer", "support", "operator", "admin"])]
        scope: String,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
    /// Who has a token, and what it may do; never the token itself.
    List,
    /// Take a token back; from the next request on it opens nothing.
    Revoke {
        /// As in token list
        name: String,
        /// Why.
        #[command(flatten)]
        reason: Reason,
    },
}

/// Runs one verb.
pub async fn run(console: &Console, verb: Verb) -> Outcome {
    let (name, scope, reason) = match verb {
        Verb::Create {
            name,
            scope,
            reason,
        } => (name, scope, reason),
        Verb::List => return list(console).await,
        Verb::Revoke { name, reason } => return revoke(console, &name, &reason).await,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(Failed::new(
            USAGE,
            format!("the name of a token has 1 to {NAME_MAX} letters of A-Z a-z 0-9 . _ - @"),
        ));
    }
    let Some(scope) = Scope::parse(&scope) else {
        return Err(Failed::new(USAGE, format!("{scope:?} is no scope")));
    };
    let store = console.store(&console.config()?).await?;
    if console.dry_run {
        if store.tokens().await?.iter().any(|token| token.name == name) {
            return Err(Token::is_there(&name).into());
        }
        remark(format!(
            "dry run: no token was made; it would be {name} ({})",
            scope.as_str()
        ));
        return Ok(DONE);
    }
    let secret = secret()?;
    let token = Token {
        name: name.clone(),
        scope: scope.as_str().to_owned(),
        hash: hex(&Sha256::digest(secret.as_bytes())),
    };
    store.add_token(&token).await?;
    let detail = reason.of(&format!("name={name} scope={}", scope.as_str()));
    store.audit(&who(), "token_create", &detail).await?;
    if console.wants_data() {
        console.record(&[
            ("name", json!(name)),
            ("scope", json!(scope.as_str())),
            ("token", json!(secret)),
        ]);
    } else {
        say(format!("token {name} ({}): {secret}", scope.as_str()));
    }
    Ok(DONE)
}

async fn list(console: &Console) -> Outcome {
    let store = console.store(&console.config()?).await?;
    let mut table = Table::new(&["name", "scope"]);
    for token in store.tokens().await? {
        table.push(vec![json!(token.name), json!(token.scope)]);
    }
    console.list(&table);
    Ok(DONE)
}

async fn revoke(console: &Console, name: &str, reason: &Reason) -> Outcome {
    let store = console.store(&console.config()?).await?;
    let is_there = if console.dry_run {
        let all = store.tokens().await?;
        all.iter().any(|token| token.name == name)
    } else {
        store.remove_token(name).await?
    };
    if !is_there {
        return Err(Failed::new(
            NOT_FOUND,
            format!("there is no token named {name:?}\nhint: token list shows all"),
        ));
    }
    if console.dry_run {
        remark(format!("dry run: {name} opens what it did"));
        return Ok(DONE);
    }
    let detail = reason.of(&format!("name={name}"));
    store.audit(&who(), "token_revoke", &detail).await?;
    Ok(DONE)
}

fn secret() -> Result<String, Failed> {
    let mut secret = String::with_capacity(LENGTH);
    let mut bytes = [0_u8; 64];
    while secret.len() < LENGTH {
        getrandom::fill(&mut bytes)
            .map_err(|e| Failed::new(FAILED, format!("the system gives no random numbers: {e}")))?;
        // 248 is the largest multiple of 62 in a byte: above it some letters would come more often.
        let fair = bytes.iter().filter(|b| **b < 248);
        let letters = fair.filter_map(|b| LETTERS.get(usize::from(*b) % LETTERS.len()));
        secret.extend(letters.take(LENGTH - secret.len()).map(|b| char::from(*b)));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_plain_and_different() {
        let (a, b) = (secret().unwrap(), secret().unwrap());
        assert_eq!(a.len(), LENGTH);
        assert!(a.bytes().all(|c| LETTERS.contains(&c)));
        assert_ne!(a, b);
    }
}

//! What expansion would read of an account, for tools that render without posting. Built on
//! the operator's own SQL, so that both stores serve it alike. Close to PARAMS, but not the
//! same: a text column of digits looks like a number here.

use serde_json::{Map, Value};

use super::{Result, SqlAnswer, Store};
use crate::event::{is_name, refused_name};

/// The account's row of `event_params`; none if there is none.
pub async fn account(store: &dyn Store, user: i64) -> Result<Option<Map<String, Value>>> {
    let text = format!("select * from event_params where user_id = {user}");
    Ok(first(store.sql(&text, false).await?))
}

/// The row of `event_usluga`; none if there is none.
pub async fn service(
    store: &dyn Store,
    user: i64,
    usluga: i64,
) -> Result<Option<Map<String, Value>>> {
    let text =
        format!("select * from event_usluga where user_id = {user} and usluga_id = {usluga}");
    Ok(first(store.sql(&text, false).await?))
}

fn first(answer: SqlAnswer) -> Option<Map<String, Value>> {
    let row = answer.rows.into_iter().next()?;
    let names = answer.columns.into_iter().map(|c| c.to_ascii_lowercase());
    let pairs = names.zip(row);
    Some(
        pairs
            .filter(|(name, _)| is_name(name) && !refused_name(name))
            .map(|(name, text)| (name, value(text)))
            .collect(),
    )
}

/// NULL is empty, whole numbers are numbers, JSON lists and objects are what they are.
fn value(text: Option<String>) -> Value {
    let Some(text) = text else {
        return Value::from("");
    };
    if let Ok(number) = text.parse::<i64>()
        && number.to_string() == text
    {
        return Value::from(number);
    }
    if text.trim_start().starts_with(['[', '{'])
        && let Ok(json @ (Value::Array(_) | Value::Object(_))) = serde_json::from_str(&text)
    {
        return json;
    }
    Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_look_like_params() {
        let answer = SqlAnswer {
            columns: [
                "USER_ID",
                "ip",
                "n",
                "list",
                "code",
                "web_password",
                "bad name",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows: vec![vec![
                Some("1424".into()),
                Some("10.0.0.1".into()),
                None,
                Some("[\"a\", 1]".into()),
                Some("007".into()),
                Some("x".into()),
                Some("y".into()),
            ]],
            changed: 0,
        };
        let row = Value::from(first(answer).unwrap());
        assert_eq!(
            row,
            json!({ "user_id": 1424, "ip": "10.0.0.1", "n": "", "list": ["a", 1], "code": "007" })
        );
        assert_eq!(first(SqlAnswer::default()), None);
        assert_eq!(value(Some("[not json".into())), json!("[not json"));
    }
}

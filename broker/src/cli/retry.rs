//! Retry policies of groups, as they are written and shown: `1s,10s,1m`, `5s..2h`, `5s..2h*3`, `levels`.

use gantry_proto::remoting::body::group::{
    CustomizedRetryPolicy, ExponentialRetryPolicy, GroupRetryPolicy, RetryPolicyType,
};

use crate::config::units;

/// The broker's own policy.
const LEVELS: &str = "levels";

/// Reads a policy. Whether the delays can be is the broker's to say.
pub fn policy(text: &str) -> Result<GroupRetryPolicy, String> {
    if text == LEVELS {
        return Ok(GroupRetryPolicy::default());
    }
    let Some((initial, rest)) = text.split_once("..") else {
        let next = text.split(',').map(millis).collect::<Result<_, _>>()?;
        let customized_retry_policy = Some(CustomizedRetryPolicy { next });
        return Ok(GroupRetryPolicy { customized_retry_policy, ..GroupRetryPolicy::default() });
    };
    let (max, multiplier) = match rest.split_once('*') {
        Some((max, factor)) => {
            let wrong = || format!("{factor:?} is no factor: write a whole number, like 5s..2h*3");
            (max, factor.parse().map_err(|_| wrong())?)
        }
        None => (rest, 2),
    };
    let (initial, max) = (millis(initial)?, millis(max)?);
    Ok(GroupRetryPolicy {
        customized_retry_policy: None,
        exponential_retry_policy: Some(ExponentialRetryPolicy { initial, max, multiplier }),
        kind: RetryPolicyType::Exponential,
    })
}

fn millis(text: &str) -> Result<i64, String> {
    let wait = units::duration(text)?;
    i64::try_from(wait.as_millis()).map_err(|_| format!("{text:?} is too long"))
}

/// A policy as [`policy`] reads it.
pub fn text(policy: &GroupRetryPolicy) -> String {
    match (&policy.kind, &policy.customized_retry_policy, &policy.exponential_retry_policy) {
        (RetryPolicyType::Customized, Some(listed), _) => {
            listed.next.iter().map(|ms| span(*ms)).collect::<Vec<_>>().join(",")
        }
        (RetryPolicyType::Exponential, _, Some(growing)) => {
            let range = format!("{}..{}", span(growing.initial), span(growing.max));
            if growing.multiplier == 2 { range } else { format!("{range}*{}", growing.multiplier) }
        }
        _ => LEVELS.to_owned(),
    }
}

/// Milliseconds in the largest unit that fits.
fn span(ms: i64) -> String {
    let ms = u64::try_from(ms).unwrap_or(0);
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(length, _)| ms > 0 && ms.is_multiple_of(*length));
    unit.map_or_else(|| format!("{ms}ms"), |(length, unit)| format!("{}{unit}", ms / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_shown_as_they_are_written() {
        for written in ["levels", "1s,10s,1m", "0ms,1500ms,2d", "5s..2h", "5s..2h*3", "100ms..1s*1"] {
            assert_eq!(text(&policy(written).unwrap()), written);
        }
        assert_eq!(policy("levels").unwrap(), GroupRetryPolicy::default());
        assert_eq!(text(&policy("60s, 3600s").unwrap()), "1m,1h");
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for wrong in ["", "1", "1s,", "1s..", "..2h", "1s..2h*x", "default"] {
            assert!(policy(wrong).is_err(), "{wrong}");
        }
    }
}

use std::time::Duration;

use crate::Cancel;

/// How long to go on trying, and how long to wait between tries.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub tries: u32,
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// For a store that hiccups: five tries within about three seconds.
    pub const SHORT: Self = Self { tries: 5, first: Duration::from_millis(100), longest: Duration::from_millis(1600) };

    /// The wait before try `n` (counted from one), doubling.
    pub fn before(&self, n: u32) -> Duration {
        self.first.saturating_mul(1 << n.saturating_sub(1).min(16)).min(self.longest)
    }
}

/// Runs `operation` until it succeeds, fails for good, has used up its tries, or is cancelled (then the last error is
/// given).
pub async fn retry<T, E, F>(
    backoff: Backoff,
    cancel: &Cancel,
    is_retryable: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut attempt = 1;
    loop {
        match operation().await {
            Err(error) if attempt < backoff.tries && is_retryable(&error) => {
                tokio::select! {
                    () = tokio::time::sleep(backoff.before(attempt)) => attempt += 1,
                    () = cancel.cancelled() => return Err(error),
                }
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn count(fail_first: u32, retryable: bool) -> (u32, Result<(), ()>) {
        let mut calls = 0;
        let backoff = Backoff { tries: 3, first: Duration::from_micros(1), longest: Duration::from_micros(2) };
        let outcome = retry(
            backoff,
            &Cancel::new(),
            |()| retryable,
            || {
                calls += 1;
                let outcome = if calls <= fail_first { Err(()) } else { Ok(()) };
                async move { outcome }
            },
        )
        .await;
        (calls, outcome)
    }

    #[tokio::test]
    async fn tries_as_often_as_allowed_and_only_where_it_helps() {
        assert_eq!(count(2, true).await, (3, Ok(())));
        assert_eq!(count(9, true).await, (3, Err(())));
        assert_eq!(count(9, false).await, (1, Err(())));
    }
}

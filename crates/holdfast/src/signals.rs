//! SIGINT and SIGTERM ask for a clean stop; the second one ends the process at once.

use holdfast_runtime::{Cancel, Cancelled};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::failure::{CommandError, Failure};
use crate::output;

/// From here on signals cancel instead of killing.
pub(crate) fn watch(cancel: &Cancel) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::Runtime)?;
    let cancel = cancel.clone();
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        tracing::info!("stopping; a second signal ends this at once");
        cancel.cancel();
        either(&mut interrupt, &mut terminate).await;
        output::talk("error: ended by a second signal, without cleaning up");
        std::process::exit(i32::from(Exit::Cancelled as u8));
    });
    Ok(())
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// For work that can simply be dropped.
pub(crate) async fn droppable<T>(
    cancel: &Cancel,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        outcome = work => outcome,
        () = cancel.cancelled() => Err(Cancelled.into()),
    }
}

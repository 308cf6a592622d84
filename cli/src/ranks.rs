//! One command carried out by several processes that `mpirun` or the like has started (`--use_parallel True`).

use crate::exit::{self, Failure};
use crate::progress;
use pixart_trainer::ranks::Ranks;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where launchers say how many processes they have started: Open MPI; MPICH and Intel MPI.
const WORLDS: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Carries out `work` together with the other processes if that is asked for, else alone. A process that fails ends all
/// of them, with its message.
pub fn together(
    use_parallel: Option<bool>,
    work: impl FnOnce(Option<&Arc<Ranks>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if use_parallel != Some(true) {
        check_alone()?;
        return work(None);
    }
    let ranks = Arc::new(join()?);
    progress::keep_quiet(!ranks.is_first());
    match work(Some(&ranks)) {
        // These end all of them in order.
        Ok(()) => Ok(()),
        Err(Failure::Interrupted(line)) if ranks.is_first() => Err(Failure::Interrupted(line)),
        Err(failure) => {
            let code = exit::tell(failure, &format!("rank {}: ", ranks.place().rank));
            ranks.abort(code.into())
        }
    }
}

/// Refuses to do everything once in each of several processes.
fn check_alone() -> Result<(), Failure> {
    let world = WORLDS.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
    match world {
        Some(world @ 2..) => Err(Failure::request(format!(
            "use_parallel: found {world} processes without it, which would all do the same; share the work with \
             --use_parallel True, or start one"
        ))),
        _ => Ok(()),
    }
}

#[cfg(feature = "mpi")]
fn join() -> Result<Ranks, Failure> {
    let ranks = pixart_trainer::ranks::mpi::start().map_err(anyhow::Error::from)?;
    match ranks.place().world {
        1 => Err(Failure::request(
            "use_parallel: found one process, expected several that share the work; start them as `mpirun -n 8 \
             pixart …`, or leave it out",
        )),
        _ => Ok(ranks),
    }
}

#[cfg(not(feature = "mpi"))]
fn join() -> Result<Ranks, Failure> {
    Err(Failure::request(
        "use_parallel: found true, but this program was built without MPI, which connects several processes; build \
         it with `cargo install --path cli --features mpi` (docs/mpi.md says what that needs) and start it as \
         `mpirun -n 8 pixart …`, or leave it out to train in one process",
    ))
}

/// Does `work` in the first process, then in the others: what it leaves in a cache is made once.
pub fn in_turn<T>(
    ranks: Option<&Arc<Ranks>>,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let Some(ranks) = ranks else { return work() };
    let meet = || ranks.meet().map_err(anyhow::Error::from);
    if ranks.is_first() {
        let result = work()?;
        meet()?;
        return Ok(result);
    }
    meet()?;
    work()
}

/// Threads for this process, if it takes its part of the machine.
pub fn threads(ranks: Option<&Arc<Ranks>>, asked: Option<usize>) -> Option<usize> {
    let share = |ranks: &Arc<Ranks>| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / ranks.place().local_world).max(1)
    };
    asked.or_else(|| ranks.map(share))
}

/// Refuses processes that were told different things. `told` has what must be the same, by name.
pub fn compare(ranks: &Ranks, told: &BTreeMap<String, String>) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(told).map_err(anyhow::Error::from)?;
    let all = ranks.gather_bytes(bytes).map_err(anyhow::Error::from)?;
    let first: BTreeMap<String, String> =
        serde_json::from_slice(&all[0]).map_err(anyhow::Error::from)?;
    let nothing = "not given".to_owned();
    for name in first.keys().chain(told.keys()) {
        let of = |told: &BTreeMap<String, String>| told.get(name).unwrap_or(&nothing).clone();
        let (found, expected) = (of(told), of(&first));
        if found != expected {
            return Err(Failure::request(format!(
                "{name}: found {found}, but rank 0 has {expected}; start all processes with the same program, settings \
                 and files"
            )));
        }
    }
    Ok(())
}

//! One command carried out by several processes that `mpirun` or the like has started (`--use_parallel True`).

use crate::exit::{self, Failure};
use crate::progress;
use pixart_runtime::engine::Engine;
use pixart_runtime::engine::provider::Device;
use pixart_trainer::ranks::Ranks;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where launchers say how many processes they have started: Open MPI; MPICH and Intel MPI.
const WORLDS: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// How many processes the launcher has started, where there is one that says it.
pub fn launched() -> usize {
    let world = WORLDS.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
    world.unwrap_or(1)
}

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
        // These end all of them in order; the first one tells.
        Ok(()) => Ok(()),
        Err(Failure::Interrupted(line)) => match ranks.is_first() {
            true => Err(Failure::Interrupted(line)),
            false => Ok(()),
        },
        Err(failure) => {
            let code = exit::tell(failure, &format!("{}: ", name(&ranks)));
            ranks.abort(code.into())
        }
    }
}

/// Refuses to do everything once in each of several processes.
fn check_alone() -> Result<(), Failure> {
    match launched() {
        world @ 2.. => Err(Failure::request(format!(
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
         `mpirun -n 8 pixart …`, or leave it out to do all of it in one process",
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

/// Threads for this process, if it takes its part of the processors: those it may run on, shared with the processes
/// that may run on the same. All of several have to ask.
pub fn threads(ranks: Option<&Arc<Ranks>>, asked: Option<usize>) -> Result<Option<usize>, Failure> {
    let Some(ranks) = ranks else { return Ok(asked) };
    let own = processors();
    let sharing = of_all(ranks, &own)?.into_iter().filter(|other| *other == own).count();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Where nothing is known of them, machines look alike.
    let sharing = sharing.min(ranks.place().local_world);
    Ok(asked.or(Some((cores / sharing).max(1))))
}

/// A machine and its processors that this process may run on, as far as the system tells. Launchers give each process
/// processors of its own (`srun --cpus-per-task`, `mpirun --bind-to`) or let it run on all.
fn processors() -> [String; 2] {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    [read("/proc/sys/kernel/hostname"), allowed.unwrap_or_default().to_owned()]
}

/// The device of this process: of several of its kind, that of its number on its machine.
pub fn device(ranks: &Ranks, device: Device) -> Device {
    if device.suffix.is_some() || device.provider.is_processor() {
        return device;
    }
    // Providers without numbers have one device, which the processes of a machine share.
    format!("{device}:{}", ranks.place().local_rank).parse().unwrap_or(device)
}

/// A process by its number, for messages.
pub fn name(ranks: &Ranks) -> String {
    format!("rank {}", ranks.place().rank)
}

/// What each process has, in their order.
pub fn of_all<T: Serialize + DeserializeOwned>(ranks: &Ranks, own: &T) -> Result<Vec<T>, Failure> {
    let bytes = serde_json::to_vec(own).map_err(anyhow::Error::from)?;
    let all = ranks.gather_bytes(bytes).map_err(anyhow::Error::from)?;
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes));
    Ok(all.collect::<Result<_, _>>().map_err(anyhow::Error::from)?)
}

/// What the first process finds, for all.
pub fn of_first<T: Serialize + DeserializeOwned>(
    ranks: &Ranks,
    find: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let own = if ranks.is_first() { Some(find()?) } else { None };
    let found = of_all(ranks, &own)?.into_iter().flatten().next();
    Ok(found.ok_or_else(|| anyhow::anyhow!("the first process gave nothing"))?)
}

/// What an engine is, whatever device and threads it has.
pub fn engine(engine: &dyn Engine) -> String {
    let text = engine.describe();
    text.split(" (").next().unwrap_or(&text).to_owned()
}

/// What must be the same in all processes: this program, and what was set but for what machines may differ in.
pub fn told(settings: serde_yaml::Mapping) -> Result<BTreeMap<String, String>, Failure> {
    let mut told = BTreeMap::new();
    for (name, value) in settings {
        let name = name.as_str().unwrap_or_default().to_owned();
        let value = serde_yaml::to_string(&value).map_err(anyhow::Error::from)?;
        told.insert(name, value.trim_end().to_owned());
    }
    told.remove("threads");
    told.remove("num_parallel_workers");
    told.insert("version of pixart".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Ok(told)
}

/// What a process sends in a step of training, beginning and end left out.
#[derive(Default)]
pub struct Traffic {
    first: u64,
    last: u64,
    steps: u64,
}

impl Traffic {
    /// Notes that a step is done.
    pub fn note(&mut self, ranks: &Ranks) {
        self.last = ranks.sent();
        if self.steps == 0 {
            self.first = self.last;
        }
        self.steps += 1;
    }

    /// Megabytes a step, once there were two.
    pub fn per_step(&self) -> Option<f64> {
        let steps = self.steps.checked_sub(1).filter(|&steps| steps > 0)?;
        Some((self.last - self.first) as f64 / 1e6 / steps as f64)
    }
}

/// Refuses processes that were told different things. `told` has what must be the same, by name.
pub fn compare(ranks: &Ranks, told: &BTreeMap<String, String>) -> Result<(), Failure> {
    let all = of_all(ranks, told)?;
    let first = &all[0];
    let nothing = "not given".to_owned();
    for name in first.keys().chain(told.keys()) {
        let of = |told: &BTreeMap<String, String>| told.get(name).unwrap_or(&nothing).clone();
        let (found, expected) = (of(told), of(first));
        if found != expected {
            return Err(Failure::request(format!(
                "{name}: found {found}, but rank 0 has {expected}; start all processes with the same program, settings \
                 and files"
            )));
        }
    }
    Ok(())
}

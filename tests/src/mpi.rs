//! Several processes of the `pixart` binary under `mpirun`, on one machine.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::binary::{Run, Sandbox, binary};

/// So long may it take until all have ended when one has failed.
pub const ENDED: Duration = Duration::from_secs(30);

/// A part of a job.
pub struct Part<'a> {
    /// How many processes.
    pub count: usize,
    /// Their working folder.
    pub folder: &'a Path,
    /// Their arguments.
    pub told: &'a [&'a str],
}

/// What starts a job.
pub fn mpirun(sandbox: &Sandbox, parts: &[Part]) -> Command {
    // Where cores are enough, Open MPI gives each process one of them.
    let all = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"];
    let mut arguments: Vec<String> = all.map(str::to_owned).to_vec();
    for (k, Part { count, folder, told }) in parts.iter().enumerate() {
        arguments.extend((k > 0).then(|| ":".to_owned()));
        let folder = folder.display().to_string();
        arguments.extend(["-n".to_owned(), count.to_string(), "-wdir".to_owned(), folder]);
        arguments.push(binary().display().to_string());
        arguments.extend(told.iter().map(|text| (*text).to_owned()));
    }
    sandbox.command_of(Path::new("mpirun"), &arguments)
}

/// Runs a job of so many equal processes.
///
/// # Panics
/// When it cannot be started.
pub fn run(sandbox: &Sandbox, count: usize, told: &[&str]) -> Run {
    let part = Part { count, folder: sandbox.path(), told };
    Run::new(&mpirun(sandbox, &[part]).output().expect("mpirun"))
}

/// Starts a job.
///
/// # Panics
/// When it cannot be started.
pub fn start(sandbox: &Sandbox, parts: &[Part]) -> Child {
    let mut command = mpirun(sandbox, parts);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun")
}

/// Waits for the end of a job, of which `what` has gone wrong.
///
/// # Panics
/// When it goes on for too long.
pub fn wait(mut child: Child, what: &str) -> Run {
    let begun = Instant::now();
    while child.try_wait().expect("it can be asked").is_none() {
        assert!(begun.elapsed() < ENDED, "{what}: it goes on");
        sleep(Duration::from_millis(50));
    }
    Run::new(&child.wait_with_output().expect("its output"))
}

/// Waits until something is there.
///
/// # Panics
/// When it does not come within two minutes.
pub fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no {what}");
        sleep(Duration::from_millis(20));
    }
}

/// The processes of a job.
fn ranks(child: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([name, &process.to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// Does to each of `count` processes of a job what Ctrl-C does to one, and waits until all have ended.
///
/// # Panics
/// When there are not as many, or they go on for too long.
pub fn interrupt(child: Child, count: usize) -> Run {
    let ranks = ranks(&child);
    assert_eq!(ranks.len(), count);
    ranks.into_iter().for_each(|process| signal("-INT", process));
    wait(child, "interrupted")
}

/// Kills the second of `count` processes of a job, and waits until all have ended.
///
/// # Panics
/// When there are not as many, or some go on for too long.
pub fn kill_second(child: Child, count: usize) -> Run {
    let ranks = ranks(&child);
    assert_eq!(ranks.len(), count);
    signal("-9", ranks[1]);
    let run = wait(child, "killed");
    assert_ne!(run.code, 0, "{run:?}");
    let begun = Instant::now();
    while ranks.iter().any(|id| Path::new(&format!("/proc/{id}")).exists()) {
        assert!(begun.elapsed() < ENDED, "some go on");
        sleep(Duration::from_millis(50));
    }
    run
}

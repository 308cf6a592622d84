//! The recipes for clusters: they are what Slurm and Kubernetes' MPI operator read, and the commands in them are ones
//! that `pixart` takes.

use std::{fs, path::Path, process::Command};

use pixart_tests::binary::Sandbox;
use serde_yaml::Value;

fn recipe(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cluster");
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// bash reads it without running it.
fn check_syntax(script: &str) {
    let output = Command::new("bash").args(["-n", "-c", script]).output().expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The `pixart` command of a script, without what the shell would put in.
fn command(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    let line =
        joined.lines().find_map(|line| line.split_once(" pixart train ")).expect("a command");
    let words = line.1.split_whitespace().filter(|word| *word != "\"${resume[@]}\"");
    ["train"].into_iter().chain(words).map(str::to_owned).collect()
}

/// The program understands the command, up to what cannot be here: other processes, or the pictures.
fn check_command(script: &str) {
    let sandbox = Sandbox::new();
    let configs = sandbox.path().join("configs/train");
    fs::create_dir_all(&configs).expect("made");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train");
    let config = "pixart-sigma-512-MS.yaml";
    fs::copy(source.join(config), configs.join(config)).expect("copied");
    let arguments = command(script);
    assert!(arguments.windows(2).any(|pair| pair == ["--use_parallel", "True"]), "{arguments:?}");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = sandbox.pixart(&arguments);
    assert_eq!(run.code, 2, "{run:?}");
    let expected =
        ["use_parallel: found one process", "use_parallel: found true, but this program"];
    assert!(expected.iter().any(|text| run.stderr.contains(text)), "{}", run.stderr);
}

#[test]
fn slurm_gets_a_script_with_its_options_first() {
    let script = recipe("train.slurm");
    check_syntax(&script);
    check_command(&script);
    let options: Vec<(&str, &str)> = script
        .lines()
        .take_while(|line| line.starts_with('#') || line.is_empty())
        .filter_map(|line| line.strip_prefix("#SBATCH --"))
        .map(|option| option.split_once('=').unwrap_or((option, "")))
        .collect();
    assert_eq!(
        options.len(),
        script.matches("#SBATCH ").count(),
        "behind a command they do not count"
    );
    let value = |name| options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value);
    for name in ["nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"] {
        let count = value(name).unwrap_or_else(|| panic!("no --{name}"));
        assert!(count.parse::<u32>().is_ok_and(|count| count > 0), "--{name}={count}");
    }
    assert_eq!(value("ntasks-per-node"), value("gpus-per-node"), "a process for each device");
    assert!(script.contains("--kill-on-bad-exit=1"));
}

#[test]
fn kubernetes_gets_an_mpi_job() {
    let job: Value = serde_yaml::from_str(&recipe("mpijob.yaml")).expect("YAML");
    assert_eq!(
        (&job["apiVersion"], &job["kind"]),
        (&"kubeflow.org/v2beta1".into(), &"MPIJob".into())
    );
    let replicas = &job["spec"]["mpiReplicaSpecs"];
    let pod = |role: &str| {
        let spec = &replicas[role]["template"]["spec"];
        let container = spec["containers"][0].clone();
        assert_eq!(container["volumeMounts"][0]["name"], spec["volumes"][0]["name"], "{role}");
        assert!(container["image"].is_string() && container["workingDir"].is_string(), "{role}");
        container
    };
    let script = pod("Launcher")["args"][0].as_str().expect("a script").to_owned();
    check_syntax(&script);
    check_command(&script);
    let slots = job["spec"]["slotsPerWorker"].as_u64().expect("a number");
    assert_eq!(pod("Worker")["resources"]["limits"]["nvidia.com/gpu"].as_u64(), Some(slots));
    let processes = slots * replicas["Worker"]["replicas"].as_u64().expect("a number");
    assert!(script.contains(&format!("mpirun -n {processes} ")), "{script}");
}

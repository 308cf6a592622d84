//! Several processes under `mpirun` that train, on one machine. `scripts/test-mpi` runs these.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pixart_tests::{
    binary::{Run, Sandbox},
    mpi::{Part, kill_second, run, start, wait, wait_for},
    training::sandbox,
};
use safetensors::SafeTensors;

const TRAIN: [&str; 5] =
    ["train", "-c", "short.yaml", "--warmup_steps=0", "--start_learning_rate=1e-4"];

/// Trains in so many processes, or in one without MPI; gives the checkpoint and the run.
fn trained(sandbox: &Sandbox, count: usize, more: &[&str]) -> (PathBuf, Run) {
    let told = [&TRAIN[..], more].concat();
    let run = match count {
        1 => sandbox.pixart(&told),
        _ => run(sandbox, count, &[&told[..], &["--use_parallel", "True"]].concat()),
    };
    assert_eq!(run.code, 0, "{count} {more:?}: {run:?}");
    // Whatever the others do, one tells where it is.
    assert_eq!(run.stdout.lines().count(), 1, "{run:?}");
    (sandbox.path().join(run.stdout.trim()), run)
}

/// How far weights, or the factors of a LoRA, are apart, of the length of the tensor, at most; without the biases of keys, on which nothing depends (tests/training_together.rs).
fn difference(a: &Path, b: &Path) -> f32 {
    let read = |folder: &Path| {
        let names = ["diffusion_pytorch_model.safetensors", "adapter_model.safetensors"];
        let file = names.iter().map(|name| folder.join(name)).find(|file| file.is_file());
        fs::read(file.expect("weights")).expect("read")
    };
    let (a, b) = (read(a), read(b));
    let (a, b) = (SafeTensors::deserialize(&a).unwrap(), SafeTensors::deserialize(&b).unwrap());
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let each = a.iter().filter(|(name, _)| !name.ends_with("to_k.bias")).map(|(name, view)| {
        let (a, b) = (numbers(view.data()), numbers(b.tensor(name).expect(name).data()));
        assert_eq!(a.len(), b.len(), "{name}");
        let own = a.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        apart.sqrt() / own
    });
    each.fold(0.0, f32::max)
}

#[test]
fn processes_train_what_one_does() {
    // The factors begin at zero. Those of all layers are moved by gradients so small that what is lost in rounding
    // counts.
    let lora = ["--lora_rank", "4", "--lora_targets", "to_q", "to_v"];
    for (optim, more, counts) in [
        ("adamw", &["--use_ema", "True"][..], &[2, 3, 4][..]),
        ("came", &[], &[2, 4]),
        ("adamw", &lora, &[2]),
        ("came", &lora, &[3]),
    ] {
        for (turn, &count) in counts.iter().enumerate() {
            let sandbox = sandbox();
            let common = ["--max_train_steps", "20", "--optim", optim];
            let train = |count: usize, batch: usize, output: &str, sharded: bool| {
                let batch = batch.to_string();
                let batch = ["--batch_size", &batch, "--output_path", output];
                let sharded = ["--shard_optimizer", if sharded { "True" } else { "False" }];
                trained(&sandbox, count, &[&common[..], more, &batch[..], &sharded[..]].concat())
            };
            let sharded = (turn + more.len()) % 2 == 1;
            let (several, run) = train(count, 1, "several", sharded);
            let (one, _) = train(1, count, "one", false);
            let apart = difference(&one, &several);
            println!("{optim} {more:?}, {count} processes, shared out {sharded}: {apart:e}");
            assert!(apart < 1e-5, "{optim} {more:?}, {count} processes: {apart}");
            // One tells how it goes.
            assert_eq!(run.stderr.matches(" 20/20: loss").count(), 1, "{}", run.stderr);
            assert!(run.stderr.contains("MB sent a step by each"), "{}", run.stderr);
        }
    }
}

#[test]
fn another_number_of_processes_goes_on() {
    let sandbox = sandbox();
    let train = |count: usize, batch: &str, steps: &str, more: &[&str]| {
        let told = ["--batch_size", batch, "--max_train_steps", steps, "--optim", "came"];
        trained(&sandbox, count, &[&told[..], more].concat()).0
    };
    let one = train(1, "4", "9", &["--output_path", "one"]);
    train(2, "2", "5", &["--shard_optimizer", "True"]);
    let went_on = train(4, "1", "9", &["--resume"]);
    let apart = difference(&one, &went_on);
    assert!(apart < 1e-5, "{apart}");
    // Another batch: the rest of the epoch is dealt out anew.
    train(3, "1", "12", &["--resume", "--shard_optimizer", "True"]);
}

#[test]
fn a_killed_process_ends_all_and_the_checkpoint_is_usable() {
    let sandbox = sandbox();
    let told = [&TRAIN[..], &["--use_parallel", "True", "--ckpt_save_steps", "1"]].concat();
    let endless = [&told[..], &["--max_train_steps", "1000000", "--batch_size", "1"]].concat();
    let part = Part { count: 3, folder: sandbox.path(), told: &endless };
    let child = start(&sandbox, &[part]);
    let checkpoint = sandbox.path().join("output/ckpt/step_00000003");
    wait_for("checkpoint", || checkpoint.is_dir());
    kill_second(child, 3);
    // The step was done before: there is nothing to do, and the checkpoint could be read.
    let more = ["--resume", "--batch_size", "3", "--max_train_steps", "1"];
    let check = sandbox.pixart(&[&TRAIN[..], &more].concat());
    assert_eq!(check.code, 0, "{check:?}");
}

#[test]
fn bad_data_on_one_rank_ends_all_with_its_message() {
    let (first, second) = (sandbox(), sandbox());
    let weights = second.path().join("model/vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).expect("read");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    let told = [&TRAIN[..], &["--use_parallel", "True"]].concat();
    let parts = [
        Part { count: 2, folder: first.path(), told: &told },
        Part { count: 1, folder: second.path(), told: &told },
    ];
    let run = wait(start(&first, &parts), "bad data");
    assert_ne!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("error: rank 2: "), "{}", run.stderr);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let sandbox = sandbox();
    let told = [&TRAIN[..], &["--use_parallel", "True"]].concat();
    let other = [&told[..], &["--weight_decay", "0.5"]].concat();
    let parts = [
        Part { count: 1, folder: sandbox.path(), told: &told },
        Part { count: 1, folder: sandbox.path(), told: &other },
    ];
    let before = sandbox.files();
    let several = wait(start(&sandbox, &parts), "unequal");
    assert_ne!(several.code, 0, "{several:?}");
    let expected = "rank 1: weight_decay: found 0.5, but rank 0 has not given";
    assert!(several.stderr.contains(expected), "{}", several.stderr);
    for (run, said) in [
        (run(&sandbox, 2, &TRAIN), "use_parallel: found 2 processes without it"),
        (sandbox.pixart(&told), "use_parallel: found one process"),
        (
            sandbox.pixart(&[&TRAIN[..], &["--shard_optimizer", "True"]].concat()),
            "shard_optimizer: found true without use_parallel",
        ),
    ] {
        assert_eq!(run.code, 2, "{run:?}");
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    assert_eq!(sandbox.files(), before, "files were left behind");
}

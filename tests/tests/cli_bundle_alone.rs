//! A bundle in a system that holds nothing else: its root is read-only, and what is there besides is the C, C++ and
//! GCC runtime libraries.
#![cfg(target_os = "linux")]

use std::{fs, process::Command};

use pixart_runtime::engine::library;
use pixart_tests::binary::{Run, Sandbox};
use pixart_tests::engines;

/// Makes such a root in memory, lets the bundle in it check and extract itself, draws, and keeps the picture. Arguments: the bundle, the
/// library whose own libraries are needed, `proc` or `none`, where the picture goes, and more for the bundle.
/// `/out` can be written.
const SCRIPT: &str = r#"
set -eu
bundle="$1" engine="$2" proc="$3" picture="$4"
shift 4
root="$PWD/root"
mkdir -p "$root"
mount -t tmpfs none "$root"
mkdir "$root/out" "$root/proc"
cp "$bundle" "$root/bundle"
for library in $(ldd "$bundle" "$engine" | grep -o '[^ ]*/[^ :]*\.so[^ :]*' | sort -u); do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done
mount -t tmpfs none "$root/out"
if [ "$proc" = proc ]; then mount --rbind /proc "$root/proc"; fi
mount -o remount,ro "$root"
if touch "$root/file" 2> /dev/null; then echo "the root can be written" >&2; exit 99; fi
code=0
chroot="$(command -v chroot)"
env -i "$chroot" "$root" /bundle bundle --check --extract /out/folders
test -f "$root/out/folders/transformer/model.onnx"
rm -r "$root/out/folders"
env -i "$chroot" "$root" /bundle --prompt "a red circle" --steps 2 --output_path /out/made "$@" || code=$?
if [ -f "$root/out/made/0.png" ]; then cp "$root/out/made/0.png" "$picture"; fi
ls "$root/out"
exit "$code"
"#;

/// Whether this machine lets a test have file systems of its own.
fn can_mount() -> bool {
    let mut tried = Command::new("unshare");
    tried.args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]);
    tried.output().is_ok_and(|output| output.status.success())
}

/// Where a root of its own cannot be had: nothing is known to the bundle but a home and a folder for temporary files, which
/// stay empty.
fn run_with_an_empty_home(sandbox: &Sandbox, engine: &str) -> Run {
    let home = sandbox.path().join("home");
    fs::create_dir_all(&home).expect("a folder");
    let mut command = Command::new(sandbox.path().join("tiny"));
    command.env_clear().env("HOME", &home).env("TMPDIR", &home).current_dir(sandbox.path());
    command.args(["--prompt", "a red circle", "--steps", "2", "--output_path", "made"]);
    command.args(["--no_text_cache", "--output_name", engine, "--engine", engine]);
    let run = Run::new(&command.output().expect("the bundle starts"));
    let left: Vec<_> = fs::read_dir(&home).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}: {run:?}");
    run
}

/// Runs the bundle `tiny` in a root of its own.
fn run(sandbox: &Sandbox, proc: &str, picture: &str, more: &[&str]) -> Run {
    let engine = engines::test_library()
        .unwrap_or_else(|| library::find(None).expect("ONNX Runtime, see scripts/test").path);
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", SCRIPT, "sh", "tiny"]).arg(engine).args([proc, picture]);
    command.args(more).current_dir(sandbox.path());
    Run::new(&command.output().expect("unshare starts"))
}

#[test]
fn a_bundle_needs_nothing_and_writes_nothing_but_pictures() {
    let sandbox = Sandbox::with_tiny_model();
    let made = sandbox.pixart(&["bundle", "--model", "model", "--output", "tiny"]);
    assert_eq!(made.code, 0, "{made:?}");
    let export = ["export", "all", "--source", "model", "--output", "exported", "--profile", "ort"];
    assert_eq!(sandbox.pixart(&export).code, 0);
    let draw = |engine: &str| {
        let folder = format!("by-{engine}");
        let flags = ["sample", "--model", "exported", "--prompt", "a red circle", "--steps", "2"];
        let more = ["--no_text_cache=true", "--engine", engine, "--output_path", &folder];
        let run = sandbox.pixart(&[&flags[..], &more].concat());
        assert_eq!(run.code, 0, "{run:?}");
        sandbox.pixels(&format!("{folder}/0.png"))
    };
    let expected = [draw("ort"), draw("tract")];
    if !can_mount() {
        eprintln!("`unshare -rm` is not allowed here: an empty home instead of an empty system");
        for (engine, expected) in ["ort", "tract"].iter().zip(&expected) {
            let run = run_with_an_empty_home(&sandbox, engine);
            assert_eq!(run.code, 0, "{engine}: {run:?}");
            assert!(sandbox.pixels(&format!("made/{engine}.png")) == *expected, "{engine}");
        }
        return;
    }
    // Nothing is written beside the picture: ONNX Runtime's library is a file in memory. It loads no weights
    // without /proc, with which the system may do without it.
    for (proc, engine) in [("proc", "ONNX Runtime"), ("none", "tract")] {
        let run = run(&sandbox, proc, "picture.png", &[]);
        let name = format!("{proc}: {run:?}");
        assert_eq!(run.code, 0, "{name}");
        assert!(run.stderr.lines().last().is_some_and(|line| line.contains(engine)), "{name}");
        assert!(run.stdout.starts_with("/bundle: unaltered\n/out/folders\n"), "{name}");
        assert!(run.stdout.ends_with("\nmade\n"), "{name}");
        assert_eq!(run.stderr.contains("needs /proc"), engine == "tract", "{name}");
        assert!(
            sandbox.pixels("picture.png") == expected[usize::from(engine == "tract")],
            "{name}"
        );
    }
    // Where pictures cannot be written either, the place is named.
    let run = run(&sandbox, "proc", "none.png", &["--preview", "/none/preview.png"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("/none"), "{run:?}");
}

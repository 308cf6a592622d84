//! Shell completions and manual pages: made from the flags, so that all of them are there.

use pixart_tests::binary::Sandbox;
use std::fs;

#[test]
fn every_shell_knows_commands_and_flags() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let run = sandbox.pixart(&["completions", shell]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
        for word in ["sample", "bundle", "image_width", "negative_prompt"] {
            assert!(run.stdout.contains(word), "{shell} lacks {word}");
        }
    }
    let run = sandbox.pixart(&["completions", "cmd"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{run:?}");
    assert!(run.stderr.contains("bash"), "{run:?}");
}

#[test]
fn every_command_has_a_page() {
    let sandbox = Sandbox::new();
    let run = sandbox.pixart(&["man", "pages"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{run:?}");
    let page = |name: &str| {
        let path = sandbox.path().join("pages").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(page("pixart.1").contains("bundle"));
    // A minus in a page is written with a backslash.
    assert!(page("pixart-sample.1").contains("\\-\\-image_width"));
    assert!(page("pixart-engine-install.1").contains("\\-\\-version"));
    assert_eq!(sandbox.pixart(&["man", "/proc/nowhere"]).code, 1);
}

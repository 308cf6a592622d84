use super::*;
use std::fs;

fn read(name: &str, text: &str) -> Result<Labels, LabelError> {
    read_columns(name, text, &Columns::default())
}

fn read_columns(name: &str, text: &str, columns: &Columns) -> Result<Labels, LabelError> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(name);
    fs::write(&file, text).expect("written");
    Labels::read(&Source::of_file(file), columns, folder.path())
}

fn error(name: &str, text: &str) -> String {
    let error = read(name, text).expect_err("wrong").to_string();
    let at = error.find(name).expect("the file is named");
    error[at..].to_owned()
}

fn paths(labels: &Labels) -> Vec<String> {
    labels.records.iter().map(|record| record.path.display().to_string()).collect()
}

/// The seed's own example.
const SEED: &str = r#"[
    {
        "path": "file1.png",
        "prompt": "a beautiful, photorealistic painting of cemetery urbex, [unfinished],}...",
        "sharegpt4v": "*caption from ShareGPT4V*",
        "height": 512,
        "width": 512,
        "ratio": 1.0,
    },
]
"#;

#[test]
fn the_seeds_example_is_read() {
    let labels = read("labels.json", SEED).expect("labels");
    let prompt = "a beautiful, photorealistic painting of cemetery urbex, [unfinished],}...";
    let expected = Record {
        place: Place { entry: 1, line: None },
        path: "file1.png".into(),
        captions: Captions::new(Some(prompt.into()), Some("*caption from ShareGPT4V*".into())),
        declared: Some((512, 512)),
    };
    assert_eq!(labels.records, [expected]);
    let marked = format!("\u{feff}{SEED}");
    assert_eq!(read("labels.json", &marked).expect("a byte order mark is no error"), labels);
}

#[test]
fn malformed_json_is_told_by_line_and_column() {
    for (text, expected) in [
        (
            "[\n  {\"path\": \"a.png\" \"prompt\": \"a\"}\n]",
            "line 2, column 20: not valid JSON: expected `,` or `}`",
        ),
        // Columns are characters.
        ("[\n  {\"path\": \"é\" 5}\n]", "line 2, column 16: not valid JSON"),
        ("[{\"path\": \"a.png\"}", "line 1, column 18: not valid JSON: EOF"),
        ("[\n{\"path\": \"a\"},,\n]", "line 2, column 15: not valid JSON"),
        (
            "{\"path\": \"a.png\"}",
            "line 1, column 1: not valid JSON: invalid type: map, expected a list of records",
        ),
        ("", "line 1, column 1: not valid JSON: EOF"),
        ("[] []", "line 1, column 4: not valid JSON: trailing characters"),
    ] {
        let error = error("labels.json", text);
        assert!(error.contains(&format!("labels.json, {expected}")), "{text}: {error}");
    }
    let lines = "{\"path\": \"a.png\"}\n\n{\"path\": }\n";
    let error = error("labels.jsonl", lines);
    assert!(error.contains("labels.jsonl, line 3, column 10: not valid JSON"), "{error}");
}

#[test]
fn text_that_is_not_utf_8_is_told_by_line_and_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("labels.json");
    fs::write(&file, b"[\n \"\xc3\xa9\xff\"").expect("written");
    let result = Labels::read(&Source::of_file(&file), &Columns::default(), folder.path());
    let error = result.expect_err("no text").to_string();
    assert!(error.contains("line 2, column 4: found bytes that are no UTF-8 text"), "{error}");
}

#[test]
fn wrong_types_are_told_by_entry_and_field() {
    for (fields, expected) in [
        (r#""prompt": "a""#, "`path`: found nothing, expected the picture's path"),
        (r#""path": 7"#, "`path`: found the number 7"),
        (r#""path": "a.png", "prompt": ["a"]"#, "`prompt`: found a list, expected a caption"),
        (r#""path": "a.png", "sharegpt4v": false"#, "`sharegpt4v`: found false"),
        (
            r#""path": "a.png", "height": "512""#,
            "`height`: found the text \"512\", expected a number",
        ),
        (r#""path": "a.png", "height": 5, "width": -3"#, "`width`: found the number -3"),
        (r#""path": "a.png", "ratio": {}"#, "`ratio`: found an object"),
    ] {
        let text = format!("[{{\"path\": \"ok.png\", \"prompt\": null}}, {{{fields}}}]");
        let said = error("labels.json", &text);
        assert!(said.contains(&format!("entry 2: {expected}")), "{fields}: {said}");
        let lines = format!("{{\"path\": \"ok.png\"}}\n\n{{{fields}}}");
        let said = error("labels.jsonl", &lines);
        assert!(said.contains(&format!("entry 2 (line 3): {expected}")), "{fields}: {said}");
    }
    assert!(
        error("labels.json", "[3]").contains("entry 1: found the number 3, expected an object")
    );
}

#[test]
fn paths_stay_inside() {
    for (path, problem) in [
        ("../a.png", "goes up with `..`"),
        ("a/../../b.png", "goes up with `..`"),
        ("a/../b.png", "goes up with `..`"),
        ("/etc/a.png", "is absolute"),
        ("", "names no file"),
        (".", "names no file"),
    ] {
        let said = error("labels.json", &format!("[{{\"path\": \"{path}\"}}]"));
        assert!(said.contains(&format!("entry 1: the path `{path}` {problem}")), "{said}");
        let said = error("labels.csv", &format!("path,prompt\n{path},a\n"));
        assert!(said.contains(&format!("entry 1 (line 2): the path `{path}` {problem}")), "{said}");
    }
    let labels = read("labels.json", r#"[{"path": "./a/./b..c.png"}]"#).expect("inside");
    assert_eq!(paths(&labels), ["a/b..c.png"]);
}

#[test]
fn tables_are_read() {
    let text = "path,prompt,extra,height,width\na.png,\"a cat, on \"\"a\"\"\nmat\",1,20,30\n\nb.png,,2,,\n";
    let labels = read("labels.csv", text).expect("labels");
    assert_eq!(paths(&labels), ["a.png", "b.png"]);
    let [first, second] = &labels.records[..] else { panic!("two records") };
    assert_eq!(first.captions.prompt.as_deref(), Some("a cat, on \"a\"\nmat"));
    assert_eq!((first.declared, second.declared), (Some((20, 30)), None));
    assert_eq!((first.place.line, second.place.line), (Some(2), Some(5)));
    assert!(second.captions.is_empty());
    assert!(read("labels.csv", "path,prompt\n").expect("an empty table").records.is_empty());
}

#[test]
fn columns_can_have_any_name() {
    let columns =
        Columns { path: "file_name".into(), prompt: "text".into(), sharegpt4v: "long".into() };
    let expected = Captions::new(Some("a".into()), Some("b".into()));
    for (name, text) in [
        ("labels.csv", "long,text,file_name\nb,a,1.png\n"),
        ("labels.jsonl", r#"{"file_name": "1.png", "text": "a", "long": "b"}"#),
        ("labels.json", r#"[{"file_name": "1.png", "text": "a", "long": "b"}]"#),
    ] {
        let labels = read_columns(name, text, &columns).expect("labels");
        assert_eq!(labels.records[0].captions, expected, "{name}");
    }
}

#[test]
fn malformed_tables_are_told_by_line() {
    for (text, expected) in [
        ("path,prompt\na.png,a\nb.png,a,b\n", "line 3, column 1: found 3 fields, expected 2"),
        (
            "path,prompt\na.png,\"a\nb.png,b\n",
            "line 2, column 1: the row has a quote that is opened",
        ),
        ("path,prompt\na.png,\"a\n", "line 2, column 1: the row has a quote"),
        ("path,prompt,height,width\na.png,a,tall,3\n", "entry 1 (line 2): `height`: found `tall`"),
        ("name,prompt\n", "there is no column `path`, the columns are name, prompt"),
        ("path,text\n", "there is no column `prompt`"),
        ("", "there is no column `path`"),
    ] {
        let said = error("labels.csv", text);
        assert!(said.contains(expected), "{text}: {said}");
    }
    // A quote inside of a text is none that opens one.
    assert_eq!(
        read("labels.csv", "path,prompt\na.png,5\" nails\n").expect("fine").records.len(),
        1
    );
    let columns = Columns { sharegpt4v: "long".into(), ..Columns::default() };
    let said =
        read_columns("labels.csv", "path,prompt\n", &columns).expect_err("wrong").to_string();
    assert!(said.contains("no column `long`") && said.contains("sharegpt4v_column"), "{said}");
}

#[test]
fn a_folder_is_read_with_its_captions() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("b/c")).expect("folders");
    fs::create_dir_all(at(".hidden")).expect("folders");
    for name in ["z.PNG", "a.jpg", "b/c/d.webp", "b/e.gif", ".hidden/f.png", ".g.png", "notes.md"] {
        fs::write(at(name), "").expect("written");
    }
    fs::write(at("z.txt"), " a caption\n").expect("written");
    fs::write(at("b/c/d.txt"), "\u{feff}another").expect("written");
    let labels = Labels::read(&Source::Folder, &Columns::default(), folder.path()).expect("labels");
    assert_eq!(paths(&labels), ["a.jpg", "b/c/d.webp", "z.PNG"]);
    let captions: Vec<_> =
        labels.records.iter().map(|record| record.captions.prompt.as_deref()).collect();
    assert_eq!(captions, [None, Some("another"), Some("a caption")]);
    assert_eq!(labels.unsupported, [PathBuf::from("b/e.gif")]);
}

#[test]
fn what_is_not_there_is_a_wrong_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing");
    for (source, image_dir) in [
        (Source::Json(missing.clone()), folder.path()),
        (Source::Csv(missing.clone()), folder.path()),
        (Source::Folder, &*missing),
    ] {
        let error = Labels::read(&source, &Columns::default(), image_dir).expect_err("missing");
        assert!(error.is_request() && error.to_string().contains("missing"), "{error}");
    }
}

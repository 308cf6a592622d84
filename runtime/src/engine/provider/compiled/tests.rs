use std::{
    cell::RefCell,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::{
    super::{Device, DeviceOptions},
    *,
};

/// A provider that writes `blob` where it is told to, and reads it back where it is there.
struct Toy {
    folder: tempfile::TempDir,
    /// What was done, in order.
    did: RefCell<Vec<&'static str>>,
    /// Refuses to read what it has written.
    fussy: bool,
    /// Writes it again.
    forgetful: bool,
    /// Writes nothing.
    silent: bool,
}

impl Toy {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, did: RefCell::default(), fussy: false, forgetful: false, silent: false }
    }

    fn cache(&self, provider: &str, machine: &str) -> Cache {
        let mut identity = Identity::default();
        identity.add("machine", machine);
        let device: Device = provider.parse().expect("a device");
        let provider = device.provider;
        let options = DeviceOptions { device, ..DeviceOptions::default() };
        let settings = options.settings().expect("fine");
        Cache::new(self.folder.path().join("compiled"), provider, &settings, identity)
    }

    fn make(&self, using: &Using) -> Result<String, String> {
        let Some((_, folder)) = using.settings.first() else {
            self.did.borrow_mut().push("without");
            return Ok("compiled".to_owned());
        };
        if self.silent {
            self.did.borrow_mut().push("wrote nothing");
            return Ok("compiled".to_owned());
        }
        let blob = Path::new(folder).join("a/blob");
        match fs::read_to_string(&blob) {
            Ok(_) if self.fussy => Err("no, thanks".to_owned()),
            Ok(text) if self.forgetful => {
                self.did.borrow_mut().push("wrote");
                fs::write(&blob, format!("{text} ")).expect("written");
                Ok("compiled".to_owned())
            }
            Ok(text) => {
                self.did.borrow_mut().push("read");
                Ok(text)
            }
            Err(_) => {
                self.did.borrow_mut().push("wrote");
                fs::create_dir_all(blob.parent().expect("a")).expect("made");
                fs::write(&blob, "compiled").expect("written");
                Ok("compiled".to_owned())
            }
        }
    }

    /// Loads the graph of this identity and size; what was done and what became of it.
    fn load(&self, cache: &Cache, graph: &str, size: usize) -> (Vec<&'static str>, Outcome) {
        let sizes = [("height".to_owned(), size)];
        let wanted = Wanted { model: Path::new("m.onnx"), sizes: &sizes, changed: false };
        let identity = || {
            let mut identity = Identity::default();
            identity.add("graph", graph);
            Ok(identity)
        };
        let (session, outcome) =
            cache.load(&wanted, &identity, &|using| self.make(using)).expect("a session");
        assert_eq!(session, "compiled");
        (self.did.take(), outcome)
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("compiled")).expect("a cache");
        let entries = entries.map(|entry| entry.expect("an entry").path());
        // The rest is files that are locked.
        entries.filter(|entry| entry.is_dir()).collect()
    }
}

#[test]
fn what_was_made_is_found_and_nothing_else_is() {
    let toy = Toy::new();
    let cache = toy.cache("openvino", "a");
    let (did, made) = toy.load(&cache, "g", 64);
    let Outcome::Made(entry) = made else { panic!("{made:?}") };
    assert_eq!((did, entry.bytes), (vec!["wrote", "read"], 8));
    assert_eq!(toy.load(&cache, "g", 64), (vec!["read"], Outcome::Found(entry)));
    // Another graph, size, machine, device or option.
    let others = [
        toy.load(&cache, "h", 64),
        toy.load(&cache, "g", 65),
        toy.load(&toy.cache("openvino", "b"), "g", 64),
        toy.load(&toy.cache("openvino:GPU", "a"), "g", 64),
    ];
    for (k, (did, outcome)) in others.into_iter().enumerate() {
        assert!(matches!(outcome, Outcome::Made(_)), "{k}: {outcome:?}");
        assert_eq!(did, ["wrote", "read"], "{k}");
    }
    assert_eq!(toy.entries().len(), 5);
    let folder = toy.folder.path().join("compiled");
    fs::create_dir(folder.join("mine")).expect("made");
    fs::create_dir(folder.join(".unfinished-x")).expect("made");
    assert_eq!(clear_compiled(&folder).expect("cleared"), (6, 40));
    let left: Vec<_> = fs::read_dir(&folder).expect("a cache").flatten().collect();
    assert!(left.len() == 1 && left[0].path() == folder.join("mine"), "{left:?}");
    assert_eq!(clear_compiled(&folder.join("none")).expect("nothing"), (0, 0));
}

#[test]
fn damaged_entries_are_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("is not as it was written", |entry| {
            fs::write(entry.join("a/blob"), "compiles").expect("")
        }),
        ("is not as it was written", |entry| fs::write(entry.join("a/blob"), "").expect("")),
        ("other files", |entry| fs::remove_file(entry.join("a/blob")).expect("")),
        ("other files", |entry| fs::write(entry.join("more"), "x").expect("")),
        ("entry.json", |entry| fs::remove_file(entry.join(ENTRY)).expect("")),
        ("entry.json", |entry| fs::write(entry.join(ENTRY), "{").expect("")),
        ("something else", |entry| {
            let text = fs::read_to_string(entry.join(ENTRY)).expect("text");
            fs::write(entry.join(ENTRY), text.replace("machine: a", "machine: b")).expect("");
        }),
    ];
    for (said, damage) in damages {
        let toy = Toy::new();
        let cache = toy.cache("openvino", "a");
        let (_, Outcome::Made(entry)) = toy.load(&cache, "g", 64) else { panic!("{said}") };
        damage(&entry.folder);
        let (did, outcome) = toy.load(&cache, "g", 64);
        assert_eq!(did, ["wrote", "read"], "{said}");
        let Outcome::Remade(again, reason) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(said), "{reason}");
        assert_eq!(toy.load(&cache, "g", 64), (vec!["read"], Outcome::Found(again)), "{said}");
    }
}

#[test]
fn a_cache_never_stands_in_the_way() {
    // A provider that does not take its own back.
    for (toy, did, said) in [
        (Toy { fussy: true, ..Toy::new() }, ["wrote", "without"], "no, thanks"),
        (Toy { forgetful: true, ..Toy::new() }, ["wrote", "wrote"], "does not read"),
        (Toy { silent: true, ..Toy::new() }, ["wrote nothing", "without"], "wrote nothing"),
    ] {
        let cache = toy.cache("openvino", "a");
        // It is tried once, and known the next time.
        for did in [&did[..], &["without"]] {
            let (found, outcome) = toy.load(&cache, "g", 64);
            assert_eq!(found, did, "{said}");
            let Outcome::NotKept(reason) = outcome else { panic!("{outcome:?}") };
            assert!(reason.contains(said), "{reason}");
        }
        let [entry] = &toy.entries()[..] else { panic!("{said}") };
        assert_eq!(fs::read_dir(entry).expect("a folder").count(), 1, "only the note");
        // For another machine, it is tried again.
        assert_eq!(toy.load(&toy.cache("openvino", "b"), "g", 64).0, did, "{said}");
    }
    // A folder that cannot be made.
    let toy = Toy::new();
    fs::write(toy.folder.path().join("compiled"), "a file").expect("written");
    let (did, outcome) = toy.load(&toy.cache("openvino", "a"), "g", 64);
    let Outcome::Failed(reason) = outcome else { panic!("{outcome:?}") };
    assert!(did == ["without"] && reason.contains("compiled"), "{did:?} {reason}");
    // A provider that keeps nothing, and one that is not told where.
    let toy = Toy::new();
    let (did, outcome) = toy.load(&toy.cache("cuda", "a"), "g", 64);
    assert!(matches!(outcome, Outcome::NotKept(_)) && did == ["without"], "{did:?} {outcome:?}");
    let wanted = Wanted { model: Path::new("m.onnx"), sizes: &[], changed: true };
    let loaded =
        toy.cache("qnn", "a").load(&wanted, &|| Ok(Identity::default()), &|using| toy.make(using));
    let (_, outcome) = loaded.expect("a session");
    assert!(matches!(outcome, Outcome::NotKept(reason) if reason.contains("LoRA")));
}

#[test]
fn of_two_that_want_the_same_entry_one_makes_it() {
    let toy = Toy::new();
    let caches = [toy.cache("openvino", "a"), toy.cache("openvino", "a")];
    let (wrote, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (begun, begins) = std::sync::mpsc::channel();
    let wanted = Wanted { model: Path::new("m.onnx"), sizes: &[], changed: false };
    let make = |using: &Using| {
        let blob = Path::new(&using.settings[0].1).join("blob");
        if blob.is_file() {
            read.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        wrote.fetch_add(1, Ordering::SeqCst);
        begun.clone().send(()).map_err(|error| error.to_string())?;
        // Time for the other to do the same.
        std::thread::sleep(Duration::from_millis(300));
        fs::write(blob, "compiled").map_err(|error| error.to_string())
    };
    let [first, second] = &caches;
    let load = |cache: &Cache| {
        let loaded = cache.load(&wanted, &|| Ok(Identity::default()), &make);
        loaded.map(|((), outcome)| outcome)
    };
    let outcomes = std::thread::scope(|scope| {
        let first = scope.spawn(|| load(first));
        begins.recv().expect("it compiles");
        let second = scope.spawn(|| load(second));
        [first, second].map(|each| each.join().expect("no panic").expect("a session"))
    });
    let [Outcome::Made(made), Outcome::Found(found)] = &outcomes else { panic!("{outcomes:?}") };
    assert_eq!(made, found);
    assert_eq!((wrote.into_inner(), read.into_inner()), (1, 2));
}

#[test]
fn what_killed_processes_have_left_goes_and_what_others_are_making_stays() {
    let toy = Toy::new();
    let cache = toy.cache("openvino", "a");
    let folder = toy.folder.path().join("compiled");
    let (_, Outcome::Made(own)) = toy.load(&cache, "g", 64) else { panic!("made") };
    fs::remove_dir_all(&own.folder).expect("removed");
    let own = own.folder.file_name().expect("a name").to_string_lossy().into_owned();
    let [left, busy] = ["0", "1"].map(|digit| format!("qnn-{}", digit.repeat(32)));
    let unfinished = |entry: &str| {
        let unfinished = folder.join(format!("{UNFINISHED}{entry}.x"));
        fs::create_dir(&unfinished).expect("made");
        fs::write(unfinished.join("blob"), "half").expect("written");
        unfinished
    };
    let killed = [unfinished(&own), unfinished(&left)];
    let (making, foreign) = (unfinished(&busy), unfinished("notes"));
    let _lock = lock::wait_for(&folder, &busy).expect("a lock");
    toy.load(&cache, "g", 64);
    assert!(killed.iter().all(|killed| !killed.exists()), "{killed:?}");
    assert!(making.join("blob").is_file() && foreign.join("blob").is_file());
}

#[test]
fn an_entry_that_another_process_puts_there_is_not_taken_for_one_that_is_not_read() {
    let toy = Toy::new();
    let cache = toy.cache("openvino", "a");
    let (_, Outcome::Made(entry)) = toy.load(&cache, "g", 64) else { panic!("made") };
    let sizes = [("height".to_owned(), 64)];
    let wanted = Wanted { model: Path::new("m.onnx"), sizes: &sizes, changed: false };
    let mut graph = Identity::default();
    graph.add("graph", "g");
    // Where files cannot be locked, nobody waits.
    let replaced = |using: &Using| {
        let session = toy.make(using)?;
        for name in ["a/blob", ENTRY] {
            let file = fs::File::options().write(true).open(entry.folder.join(name));
            let later = SystemTime::now() + Duration::from_secs(9);
            file.and_then(|file| file.set_modified(later)).map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(session)
    };
    let (_, outcome) = cache.load(&wanted, &|| Ok(graph.clone()), &replaced).expect("a session");
    assert_eq!(outcome, Outcome::Found(entry.clone()));
    toy.did.take();
    assert_eq!(toy.load(&cache, "g", 64), (vec!["read"], Outcome::Found(entry)));
}

#[test]
fn a_context_is_written_and_then_loaded() {
    let toy = Toy::new();
    let cache = toy.cache("qnn", "a");
    let did = RefCell::new(Vec::new());
    let make = |using: &Using| {
        let written = using.config.iter().find(|(name, _)| *name == "ep.context_file_path");
        match (&using.graph, written) {
            (Some(graph), None) => did.borrow_mut().push(graph.is_file()),
            (None, Some((_, path))) => fs::write(path, "a graph").map_err(|e| e.to_string())?,
            other => panic!("{other:?}"),
        }
        Ok::<_, String>(())
    };
    let wanted = Wanted { model: Path::new("m.onnx"), sizes: &[], changed: false };
    for _ in 0..2 {
        cache.load(&wanted, &|| Ok(Identity::default()), &make).expect("a session");
    }
    assert_eq!(did.take(), [true, true]);
}

//! Hostile and damaged files: nothing is run, nothing is read outside of the file, nothing grows.

mod parts;

use parts::*;

use super::super::{Checkpoint, CheckpointError, Dtype, FileProblem, OpenOptions, file};
use super::*;

fn read(bytes: &[u8]) -> Result<Contents, FileProblem> {
    file::read(bytes, false, &OpenOptions::default())
}

fn problem(bytes: &[u8]) -> FileProblem {
    match read(bytes) {
        Ok(contents) => panic!("read, with {:?}", contents.tensors),
        Err(problem) => problem,
    }
}

#[track_caller]
fn assert_reads(bytes: &[u8]) {
    let contents = read(bytes).unwrap_or_else(|problem| panic!("{problem}"));
    let view = contents.tensors["w"].view(bytes).unwrap();
    assert_eq!((view.dtype, &*view.shape, &*view.bytes), (Dtype::F32, &[2, 2][..], &DATA[..]));
}

#[track_caller]
fn assert_refused(bytes: &[u8], expected: &str) {
    let message = problem(bytes).to_string();
    assert!(message.contains(expected), "no `{expected}` in: {message}");
}

#[test]
fn what_the_tests_damage_is_good() {
    assert_reads(&zip(&good_items()));
    assert_reads(&zip64(&good_items(), |_| ()));

    // PyTorch's way: the sizes behind the data, and padding that aligns it.
    let mut items = good_items();
    for item in &mut items {
        (item.flags, item.local_flags) = (0x0808, 0x0808);
        (item.local_size, item.checksum[1]) = (0, 0);
        item.local_extra = b"FB\x03\x00ZZZ".to_vec();
    }
    assert_reads(&zip64(&items, |_| ()));

    // Sizes and position in 64 bits.
    let mut items = good_items();
    let (header, size) = (zip_parts(&items[..2]).0.len() as u64, 16u64.to_le_bytes());
    items[2].extra = [&b"\x01\x00\x18\x00"[..], &size, &size, &header.to_le_bytes()].concat();
    items[2].local_extra = [&b"\x01\x00\x10\x00"[..], &size, &size].concat();
    (items[2].size, items[2].local_size, items[2].header) = (u32::MAX, u32::MAX, Some(u32::MAX));
    assert_reads(&zip64(&items, |_| ()));
    items[2].extra.truncate(20);
    items[2].extra[2] = 16;
    assert_refused(&zip64(&items, |_| ()), "lacks its 64-bit sizes");
}

#[test]
fn nothing_but_data_can_be_named() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch", "Storage"),
        ("torch", "ComplexDoubleStorage"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "defaultdict"),
        ("numpy.core.multiarray", "scalar"),
        ("argparse", "Namespace"),
        ("", ""),
    ] {
        let forbidden = FileProblem::ForbiddenGlobal { global: format!("{module}.{name}") };
        let call = |global: Vec<u8>| [global, tuple(&[text("true")]), b"R".to_vec()].concat();
        let on_stack = [text(module), text(name), b"\x93".to_vec()].concat();
        for named in [global(module, name), on_stack] {
            // Called, and only mentioned beside good weights.
            assert_eq!(problem(&file_of(call(named.clone()))), forbidden);
            let good = tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1]);
            let beside = [dict("w", good), text("x"), named, b"s".to_vec()].concat();
            assert_eq!(problem(&file_of(beside)), forbidden);
        }
    }
    let long = "x".repeat(300);
    assert_refused(&file_of(global(&long, "y")), "line of more than 256 bytes");
    let named = [text("os"), text(&"\u{1b}[2J".repeat(1000)), b"\x93".to_vec()].concat();
    let message = problem(&file_of(named)).to_string();
    assert!(message.len() < 2000 && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn opcodes_that_build_objects_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, DUP, READONLY_BUFFER, and no opcode at all.
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'2', 0x98, 0xff] {
        let value = [b"((N".to_vec(), vec![opcode], b"os\nsystem\n".to_vec()].concat();
        assert_refused(&file_of(value), &format!("opcode {opcode:#04x}"));
    }
}

#[test]
fn what_is_called_has_to_be_callable() {
    let empty = || b")".to_vec();
    let reduce = || b"R".to_vec();
    let dict_type = || global("collections", "OrderedDict");
    for (value, expected) in [
        (vec![int(1), empty(), reduce()], "cannot be called"),
        (vec![dict_type(), int(1), reduce()], "cannot be called"),
        (vec![dict_type(), tuple(&[int(1)]), reduce()], "OrderedDict with 1 arguments"),
        (vec![global("torch", "FloatStorage"), empty(), reduce()], "StorageType(F32) with 0"),
        (vec![global("torch._utils", "_rebuild_tensor_v2"), empty(), reduce()], "with 0"),
        (
            vec![
                global("torch._utils", "_rebuild_parameter"),
                tuple(&[int(1), int(1), int(1)]),
                reduce(),
            ],
            "RebuildParameter with 3",
        ),
        (vec![int(1), b"}b".to_vec()], "sets attributes"),
        (vec![b"}".to_vec(), int(1), b"b".to_vec()], "sets attributes"),
        // Items of something that is no dictionary: CVE-2026-24747.
        (vec![b"]".to_vec(), int(1), int(2), b"s".to_vec()], "sets an item"),
        (
            vec![
                tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1]),
                b"(".to_vec(),
                int(0),
                int(1),
                b"u".to_vec(),
            ],
            "sets an item",
        ),
        (vec![b"}".to_vec(), int(1), b"a".to_vec()], "appends to"),
        (vec![b"}(".to_vec(), int(1), b"u".to_vec()], "has no value"),
        (vec![int(1), b"Q".to_vec()], "no storage"),
        (vec![tuple(&[text("module"), int(1), int(1), int(1)]), b"Q".to_vec()], "no storage"),
    ] {
        assert_refused(&file_of(value.concat()), expected);
    }
}

#[test]
fn a_pickle_cannot_take_what_it_did_not_make() {
    for opcode in b"01tldaseubRQq.\x85\x86\x87\x93\x94" {
        // With nothing there, and with something, but below a mark.
        for before in [&b""[..], b"NNNN("] {
            let value = [before, &[*opcode, 0]].concat();
            let message = problem(&file_of(value)).to_string();
            let marked = !before.is_empty() && b"tldeu1".contains(opcode);
            assert!(
                message.contains("takes more values") || marked,
                "{:?}: {message}",
                char::from(*opcode)
            );
        }
    }
    assert_refused(&file_of(b"h\x05".to_vec()), "recalls value 5");
    assert_refused(&file_of(b"j\xff\xff\xff\xff".to_vec()), "recalls value 4294967295");
    assert_refused(&file_of(b"g99999999999999999999999\n".to_vec()), "no number");
}

#[test]
fn size_is_bounded_before_it_is_taken() {
    for (value, expected) in [
        (b"(".repeat(1_000_000), "nests deeper than 256"),
        (b"N".repeat(1_500_000), "values wait on its stack"),
        (b"N0".repeat(3_000_000), "more than 4000000 steps"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec(), "text of 9223372036854775807 bytes"),
        (b"X\xff\xff\xff\xff".to_vec(), "text of 4294967295 bytes"),
        (b"\x8b\xff\xff\xff\x7f".to_vec(), "text of 2147483647 bytes"),
        (b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00".to_vec(), "text of 4294967296 bytes"),
        (text(&"x".repeat(2 << 20)), "text of 2097152 bytes"),
        (b"X\x02\x00\x00\x00\xff\xfe".to_vec(), "no UTF-8"),
    ] {
        assert_refused(&file_of(value), expected);
    }
    // A million different places to remember one value.
    let mut memo = b"N".to_vec();
    (0..1_100_000u32).for_each(|index| memo.extend([&b"r"[..], &index.to_le_bytes()].concat()));
    assert_refused(&file_of(memo), "remembers more than");
    // The same long description of a tensor, again and again.
    let mut tensors = [
        global("torch._utils", "_rebuild_tensor_v2"),
        b"q\x00".to_vec(),
        tuple(&[
            storage("FloatStorage", "0", 4),
            int(0),
            tuple(&vec![int(1); 60]),
            tuple(&vec![int(1); 60]),
            b"\x89".to_vec(),
            b"N".to_vec(),
        ]),
        b"q\x01".to_vec(),
    ]
    .concat();
    tensors.extend(b"h\x00h\x01R0".repeat(200_000));
    assert_refused(&file_of(tensors), "more than 100000 tensors");
    let large = zip(&[item("x/data.pkl", &vec![b'N'; 33 << 20])]);
    assert_refused(&large, "data.pkl has 34603008 bytes");
}

#[test]
fn depth_and_sharing_cost_nothing() {
    // A tuple in a tuple in a tuple …, and one that would have 2^100000 parts if it were copied.
    let deep = [b")".to_vec(), b"\x85".repeat(1_000_000)].concat();
    let mut laughs = b"Nq\x000".to_vec();
    laughs.extend(b"h\x00h\x00\x86q\x000".repeat(100_000));
    laughs.extend(b"h\x00");
    let list_in_itself = b"]q\x00h\x00a".to_vec();
    for beside in [deep, laughs, list_in_itself] {
        let good = tensor(storage("FloatStorage", "0", 4), 0, &[2, 2], &[2, 1]);
        let value = [dict("x", beside), text("w"), good, b"s".to_vec()].concat();
        assert_reads(&file_of(value));
    }
}

#[test]
fn storages_have_to_be_there_in_full() {
    let view = |storage| file_of(dict("w", tensor(storage, 0, &[1], &[1])));
    for (kind, key, elements, expected) in [
        ("FloatStorage", "0", 5, "5 elements of F32, which take 20"),
        ("DoubleStorage", "0", 3, "3 elements of F64, which take 24"),
        ("FloatStorage", "0", 1 << 62, "too large"),
        ("FloatStorage", "0", i64::MAX, "too large"),
        ("FloatStorage", "0", -1, "no size"),
        ("FloatStorage", "1", 4, "\"data/1\", which is missing"),
        ("FloatStorage", "../data.pkl", 4, "which is missing"),
        ("FloatStorage", "", 4, "which is missing"),
    ] {
        assert_refused(&view(storage(kind, key, elements)), expected);
    }
    // One storage with two types: what is read would depend on which one comes first.
    let [float, double] =
        ["FloatStorage", "DoubleStorage"].map(|kind| tensor(storage(kind, "0", 2), 0, &[1], &[1]));
    let both = [dict("w", float), text("v"), double, b"s".to_vec()].concat();
    assert_refused(&file_of(both), "two types");
    let not_a_type = tuple(&[
        text("storage"),
        global("collections", "OrderedDict"),
        text("0"),
        text("cpu"),
        int(4),
    ]);
    assert_refused(&view([not_a_type, b"Q".to_vec()].concat()), "no type");
}

#[test]
fn views_stay_inside_of_their_storage() {
    for (offset, shape, strides, expected) in [
        (0, &[5][..], &[1][..], "past the end"),
        (4, &[1], &[1], "past the end"),
        (1, &[2, 2], &[2, 1], "past the end"),
        (0, &[2, 2], &[3, 1], "past the end"),
        (0, &[2], &[i64::MAX], "past the end"),
        (i64::MAX, &[1], &[1], "past the end"),
        (0, &[i64::MAX, i64::MAX], &[0, 0], "too large"),
        (0, &[1 << 31, 1 << 31], &[0, 0], "too large"),
        (0, &[1 << 40], &[0], "repeats the elements"),
        (-1, &[1], &[1], "no size"),
        (0, &[-1], &[1], "no size"),
        (0, &[2], &[-1], "no size"),
        (0, &[2, 2], &[1], "differ in length"),
        (0, &[1; 65], &[1; 65], "no size"),
    ] {
        let view = tensor(storage("FloatStorage", "0", 4), offset, shape, strides);
        assert_refused(&file_of(dict("w", view)), expected);
    }
    // The metadata of a lazily negated tensor: reading it as it is would give wrong values.
    let lazy = tuple(&[
        storage("FloatStorage", "0", 4),
        int(0),
        tuple(&[int(4)]),
        tuple(&[int(1)]),
        b"\x89".to_vec(),
        b"N".to_vec(),
        dict("neg", b"\x88".to_vec()),
    ]);
    let call = [global("torch._utils", "_rebuild_tensor_v2"), lazy, b"R".to_vec()].concat();
    assert_refused(&file_of(dict("w", call)), "negated");
}

#[test]
fn names_and_keys_are_not_ambiguous() {
    let tensor = || tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1]);
    let twice = [dict("w", tensor()), text("w"), tensor(), b"s".to_vec()].concat();
    assert_refused(&file_of(twice), "two tensors named w");
    assert_refused(&file_of(b"}".to_vec()), "found no weights");
    assert_refused(&file_of(tensor()), "found no weights");
    assert_refused(&file_of(dict("epoch", int(3))), "The keys are: epoch");
    assert_refused(&file_of(dict("state_dict", b"}".to_vec())), "\"state_dict\"");
    let after = zip(&[
        item("x/data.pkl", &[pickle(dict("w", tensor())), b"cos\nsystem\n".to_vec()].concat()),
        item("x/data/0", &DATA),
    ]);
    assert_refused(&after, "11 bytes follow the pickle");
}

#[test]
fn zip_files_that_readers_could_understand_differently_are_refused() {
    type Damage = fn(&mut Vec<Item>);
    let cases: [(&str, Damage); 23] = [
        ("x/data/0 is compressed (method 8)", |items| items[2].method = 8),
        ("x/data.pkl is compressed (method 99)", |items| items[0].method = 99),
        ("x/data/0 is encrypted", |items| items[2].flags = 1),
        ("unknown flags 0x0040", |items| items[2].flags = 0x40),
        ("unknown flags 0x2000", |items| items[2].flags = 0x2000),
        ("disagrees", |items| items[0].local_flags = 1),
        ("disagrees", |items| items[0].local_name = b"x/other.pk".to_vec()),
        ("disagrees", |items| items[0].local_name = b"x/data.pk".to_vec()),
        ("disagrees", |items| items[2].local_size = 4),
        ("disagrees", |items| items[2].local_size = 0),
        ("disagrees", |items| items[2].checksum = [7, 8]),
        ("disagrees", |items| items[2].local_size = u32::MAX),
        ("two entries named x/data/0", |items| {
            let again = items[2].clone();
            items.push(again);
        }),
        ("\"../data.pkl\"", |items| items.push(item("../data.pkl", b""))),
        ("\"x/../../y\"", |items| items.push(item("x/../../y", b""))),
        ("\"/x/y\"", |items| items.push(item("/x/y", b""))),
        ("plain path", |items| items.push(item("x\\y", b""))),
        ("plain path", |items| items.push(item("x/y\0.pkl", b""))),
        ("plain path", |items| items.push(item("x//y", b""))),
        ("found two data.pkl", |items| {
            let mut again = items[0].clone();
            (again.name, again.local_name) = (b"y/data.pkl".to_vec(), b"y/data.pkl".to_vec());
            items.push(again);
        }),
        ("has no header", |items| items[2].header = Some(1)),
        ("disagrees", |items| items[2].header = Some(0)),
        ("the folder y/ has content", |items| items.push(item("y/", b"abc"))),
    ];
    for (expected, damage) in cases {
        let mut items = good_items();
        damage(&mut items);
        assert_refused(&zip(&items), expected);
        assert_refused(&zip64(&items, |_| ()), expected);
    }

    // Two entries over the same bytes, with headers that agree with each of them.
    let hidden = zip(&[item("x/data/1", b"")]);
    let mut items = good_items();
    items[2].data = [&hidden[..], &DATA].concat();
    (items[2].size, items[2].local_size) = (items[2].data.len() as u32, items[2].data.len() as u32);
    let header = zip_parts(&items[..2]).0.len() + 30 + "x/data/0".len();
    items.push(Item { header: Some(header as u32), ..item("x/data/1", b"") });
    assert_refused(&zip(&items), "x/data/0 and x/data/1 overlap");

    let mut items = good_items();
    items[2].size = u32::MAX - 1;
    assert_refused(&zip(&items), "reaches into the central directory");
    let mut items = good_items();
    items[2].extra = b"\x01\x00\xff\xff".to_vec();
    assert_refused(&zip(&items), "damaged extra field");
    let mut items = good_items();
    items[1].data = b"biglit".to_vec();
    assert_refused(&zip(&items), "byteorder");
    items[1] = item("x/byteorder", b"big");
    assert_refused(&zip(&items), "byteorder is \"big\"");
}

#[test]
fn the_end_of_a_zip_file_says_one_thing() {
    let good = zip(&good_items());
    assert_refused(&[&good[..], b"\0"].concat(), "end record is missing");
    assert_refused(&[b"PK\x03\x04", &good[..]].concat(), "does not end where");
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        let end = bytes.len() - 22;
        bytes[end + at] = value;
        bytes
    };
    assert_refused(&change(4, 1), "several disks");
    assert_refused(&change(8, 3), "several disks");
    assert_refused(&change(20, 1), "or a comment");
    assert_refused(&change(12, 0), "does not end where");
    assert_refused(&change(16, 0), "does not end where");
    let mut fewer = change(8, 3);
    let end = fewer.len() - 22;
    fewer[end + 10] = 3;
    assert_refused(&fewer, "more bytes than entries");
    fewer[end + 8] = 5;
    fewer[end + 10] = 5;
    assert_refused(&fewer, "ends early");

    for (at, value) in [(4, 45), (16, 1), (20, 1), (24, 5), (40, 1), (48, 1), (55, 0xff)] {
        let bytes = zip64(&good_items(), |record| record[at] = value);
        assert!(matches!(problem(&bytes), FileProblem::Zip { .. }), "byte {at}");
    }
    let mut disagree = zip64(&good_items(), |_| ());
    let end = disagree.len() - 22;
    disagree[end + 8..end + 12].copy_from_slice(&[3, 0, 3, 0]);
    assert_refused(&disagree, "two end records disagree");
}

#[test]
fn other_zip_files_are_named() {
    assert_refused(&zip(&[]), "without the data.pkl");
    assert_refused(&zip(&[item("weights.npy", b"")]), "without the data.pkl");
    assert_refused(&zip(&[item("data.pkl", b"N.")]), "without the data.pkl");
    let mut items = good_items();
    items.push(item("x/constants.pkl", b""));
    assert_refused(&zip(&items), "TorchScript");
}

/// The fixtures that `torch.save` wrote.
fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/checkpoints");
    std::fs::read(std::path::Path::new(folder).join(name)).unwrap()
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    for name in ["values.pth", "values_protocol_5.pth", "values_old.pth", "training_old.pth"] {
        let whole = fixture(name);
        assert!(read(&whole).is_ok(), "{name}");
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{name}, {length} bytes");
        }
        let longer = [&whole[..], b"\0"].concat();
        assert!(read(&longer).is_err(), "{name}, one byte more");
    }
}

#[test]
fn a_file_with_any_byte_changed_is_refused_or_stays_in_bounds() {
    for name in ["values.pth", "training.pth", "values_old.pth", "values_old_protocol_1.pth"] {
        let whole = fixture(name);
        for at in 0..whole.len() {
            for change in [1, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let Ok(contents) = read(&bytes) else { continue };
                for (tensor, stored) in &contents.tensors {
                    let view = stored.view(&bytes);
                    assert!(view.is_some(), "{name}: byte {at} ^ {change:#x}: {tensor}");
                }
            }
        }
    }
}

#[test]
fn the_old_format_is_read_as_strictly() {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let machine = |little: &[u8]| pickle(dict("little_endian", little.to_vec()));
    let old_storage = |elements| {
        let identity = [
            text("storage"),
            global("torch", "FloatStorage"),
            text("k"),
            text("cpu"),
            int(elements),
            b"N".to_vec(),
        ];
        [tuple(&identity), b"Q".to_vec()].concat()
    };
    let value = |elements| dict("w", tensor(old_storage(elements), 0, &[2, 2], &[2, 1]));
    let keys = |keys: &[&str]| {
        let items: Vec<u8> =
            keys.iter().flat_map(|key| [text(key), b"a".to_vec()].concat()).collect();
        pickle([b"]".to_vec(), items].concat())
    };
    let data = |count: i64| [&count.to_le_bytes()[..], &DATA].concat();
    let good = [
        head.to_vec(),
        pickle(int(1001)),
        machine(b"\x88"),
        pickle(value(4)),
        keys(&["k"]),
        data(4),
    ];
    assert_reads(&good.concat());
    for (part, other, expected) in [
        (1, pickle(int(1000)), "version is not 1001"),
        (2, machine(b"\x89"), "little-endian"),
        (2, pickle(int(1)), "little-endian"),
        (3, pickle(global("os", "system")), "\"os.system\""),
        (3, pickle(value(5)), "has 4 elements, but the pickle says 5"),
        (3, pickle(value(1 << 62)), "but the pickle says"),
        (4, keys(&[]), "storage k is missing"),
        (4, keys(&["k", "k"]), "listed but not used"),
        (4, keys(&["k", "l"]), "listed but not used"),
        (4, pickle(int(1)), "no list of storages"),
        (5, data(-4), "has -4 elements"),
        (5, data(4)[..23].to_vec(), "truncated"),
        (5, data(4)[..7].to_vec(), "truncated"),
        (5, [data(4), vec![0]].concat(), "1 bytes follow"),
    ] {
        let mut parts = good.clone();
        parts[part] = other;
        assert_refused(&parts.concat(), expected);
    }
    // A storage that is a view of another one, as very old versions could write.
    let identity = [
        text("storage"),
        global("torch", "FloatStorage"),
        text("k"),
        text("cpu"),
        int(4),
        tuple(&[text("root"), int(0), int(4)]),
    ];
    let view = tensor([tuple(&identity), b"Q".to_vec()].concat(), 0, &[4], &[1]);
    let mut parts = good;
    parts[3] = pickle(dict("w", view));
    assert_refused(&parts.concat(), "no storage");
}

#[test]
fn an_error_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, file_of(global("os", "system"))).unwrap();
    match Checkpoint::open(folder.path(), &OpenOptions::default()) {
        Err(CheckpointError::File {
            path: named,
            problem: FileProblem::ForbiddenGlobal { .. },
        }) => {
            assert_eq!(named, path);
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened"),
    }
}

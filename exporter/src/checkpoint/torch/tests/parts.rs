//! Pickles and zip files, put together by hand so that everything in them can be wrong.

pub(super) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(super) fn int(number: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &number.to_le_bytes()].concat()
}

pub(super) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

pub(super) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

pub(super) fn storage(kind: &str, key: &str, elements: i64) -> Vec<u8> {
    let items = [text("storage"), global("torch", kind), text(key), text("cpu"), int(elements)];
    [tuple(&items), b"Q".to_vec()].concat()
}

pub(super) fn tensor(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let sizes = |sizes: &[i64]| tuple(&sizes.iter().map(|&size| int(size)).collect::<Vec<_>>());
    let arguments =
        [storage, int(offset), sizes(shape), sizes(strides), b"\x89".to_vec(), b"N".to_vec()];
    [global("torch._utils", "_rebuild_tensor_v2"), tuple(&arguments), b"R".to_vec()].concat()
}

/// A dictionary of one item.
pub(super) fn dict(key: &str, value: Vec<u8>) -> Vec<u8> {
    [b"}".to_vec(), text(key), value, b"s".to_vec()].concat()
}

pub(super) fn pickle(value: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02".to_vec(), value, b".".to_vec()].concat()
}

/// An entry of a zip file.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) name: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    pub(super) size: u32,
    pub(super) extra: Vec<u8>,
    pub(super) local_name: Vec<u8>,
    pub(super) local_flags: u16,
    pub(super) local_size: u32,
    pub(super) local_extra: Vec<u8>,
    pub(super) checksum: [u32; 2],
    /// Where the directory says the header is, if elsewhere.
    pub(super) header: Option<u32>,
}

pub(super) fn item(name: &str, data: &[u8]) -> Item {
    let (name, data, size) = (name.as_bytes().to_vec(), data.to_vec(), data.len() as u32);
    Item {
        local_name: name.clone(),
        name,
        data,
        flags: 0,
        method: 0,
        size,
        extra: Vec::new(),
        local_flags: 0,
        local_size: size,
        local_extra: Vec::new(),
        checksum: [7, 7],
        header: None,
    }
}

pub(super) fn numbers16(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(super) fn numbers32(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The entries with their headers, and the central directory.
pub(super) fn zip_parts(items: &[Item]) -> (Vec<u8>, Vec<u8>) {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for item in items {
        let header = item.header.unwrap_or(file.len() as u32);
        file.extend(b"PK\x03\x04");
        file.extend(numbers16(&[0, item.local_flags, item.method, 0, 0]));
        file.extend(numbers32(&[item.checksum[1], item.local_size, item.local_size]));
        file.extend(numbers16(&[item.local_name.len() as u16, item.local_extra.len() as u16]));
        file.extend(&item.local_name);
        file.extend(&item.local_extra);
        file.extend(&item.data);

        directory.extend(b"PK\x01\x02");
        directory.extend(numbers16(&[0, 0, item.flags, item.method, 0, 0]));
        directory.extend(numbers32(&[item.checksum[0], item.size, item.size]));
        let lengths = [item.name.len() as u16, item.extra.len() as u16, 0, 0, 0];
        directory.extend(numbers16(&lengths));
        directory.extend(numbers32(&[0, header]));
        directory.extend(&item.name);
        directory.extend(&item.extra);
    }
    (file, directory)
}

pub(super) fn zip(items: &[Item]) -> Vec<u8> {
    let (mut file, directory) = zip_parts(items);
    let begin = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06");
    file.extend(numbers16(&[0, 0, items.len() as u16, items.len() as u16]));
    file.extend(numbers32(&[directory.len() as u32, begin]));
    file.extend(numbers16(&[0]));
    file
}

/// The same with 64-bit end records, as PyTorch writes them; `change` gets the record of 56 bytes.
pub(super) fn zip64(items: &[Item], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let (mut file, directory) = zip_parts(items);
    let begin = file.len() as u64;
    file.extend(&directory);
    let record_at = file.len();
    let mut record = b"PK\x06\x06".to_vec();
    record.extend(44u64.to_le_bytes());
    record.extend(numbers16(&[45, 45]));
    record.extend(numbers32(&[0, 0]));
    for number in [items.len() as u64, items.len() as u64, directory.len() as u64, begin] {
        record.extend(number.to_le_bytes());
    }
    change(&mut record);
    file.extend(record);
    file.extend(b"PK\x06\x07");
    file.extend(numbers32(&[0]));
    file.extend((record_at as u64).to_le_bytes());
    file.extend(numbers32(&[1]));
    file.extend(b"PK\x05\x06");
    file.extend(numbers16(&[0, 0, u16::MAX, u16::MAX]));
    file.extend(numbers32(&[u32::MAX, u32::MAX]));
    file.extend(numbers16(&[0]));
    file
}

pub(super) const DATA: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// What `torch.save({"w": …})` writes, with a storage of four floats.
pub(super) fn good_items() -> Vec<Item> {
    let tensor = tensor(storage("FloatStorage", "0", 4), 0, &[2, 2], &[2, 1]);
    let items = [
        item("x/data.pkl", &pickle(dict("w", tensor))),
        item("x/byteorder", b"little"),
        item("x/data/0", &DATA),
        item("x/version", b"3\n"),
    ];
    items.to_vec()
}

/// A file with this pickle and storage.
pub(super) fn file_of(value: Vec<u8>) -> Vec<u8> {
    zip(&[item("x/data.pkl", &pickle(value)), item("x/data/0", &DATA)])
}

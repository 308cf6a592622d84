//! numpy's `.npy`: a header that is a dictionary in Python's words, then the elements. Of its types those that
//! features have. (The crates for it read no fp16, or bring a generator of parsers for that dictionary.)

use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use std::io::{self, Read};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Bytes of a header at most; a plain array has about a hundred.
const LONGEST_HEADER: usize = 1 << 16;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    Bool,
    I8,
    U8,
    I16,
    I32,
    I64,
    F16,
    F32,
}

/// The names of the types in headers of little-endian machines.
const DTYPES: [(&str, Dtype); 8] = [
    ("|b1", Dtype::Bool),
    ("|i1", Dtype::I8),
    ("|u1", Dtype::U8),
    ("<i2", Dtype::I16),
    ("<i4", Dtype::I32),
    ("<i8", Dtype::I64),
    ("<f2", Dtype::F16),
    ("<f4", Dtype::F32),
];

/// An array whose header was read.
pub(super) struct Npy<R> {
    reader: R,
    dtype: Dtype,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<R: Read> Npy<R> {
    /// Reads the header. What is wrong comes back as text.
    pub fn open(mut reader: R) -> Result<Self, String> {
        let mut start = [0; 8];
        reader.read_exact(&mut start).map_err(told)?;
        if start[..6] != *MAGIC {
            return Err("it is no array of numpy".to_owned());
        }
        let length = match start[6] {
            1 => {
                let mut length = [0; 2];
                reader.read_exact(&mut length).map_err(told)?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                reader.read_exact(&mut length).map_err(told)?;
                u32::from_le_bytes(length) as usize
            }
            found => {
                return Err(format!("found version {found} of numpy's format, expected 1 to 3"));
            }
        };
        if length > LONGEST_HEADER {
            return Err(format!(
                "its header has {length} bytes, at most {LONGEST_HEADER} are read"
            ));
        }
        let mut header = vec![0; length];
        reader.read_exact(&mut header).map_err(told)?;
        let header = String::from_utf8_lossy(&header);
        let (dtype, fortran_order, shape) = parse(&header)?;
        Ok(Self { reader, dtype, fortran_order, shape })
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type and shape, for messages.
    pub fn description(&self) -> String {
        format!("{:?} of {:?}", self.dtype, self.shape)
    }

    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F16 | Dtype::F32)
    }

    /// The elements as floats. There are as many as the shape says, so look at it first.
    pub fn floats(self) -> Result<ArrayD<f32>, String> {
        match self.dtype {
            Dtype::F16 => self.elements(|bytes: [u8; 2]| half::f16::from_le_bytes(bytes).to_f32()),
            Dtype::F32 => self.elements(f32::from_le_bytes),
            _ => Err(format!("found {}, expected F16 or F32", self.description())),
        }
    }

    /// The elements as whole numbers. There are as many as the shape says, so look at it first.
    pub fn integers(self) -> Result<ArrayD<i64>, String> {
        match self.dtype {
            Dtype::Bool | Dtype::U8 => self.elements(|[byte]: [u8; 1]| i64::from(byte)),
            Dtype::I8 => self.elements(|bytes| i64::from(i8::from_le_bytes(bytes))),
            Dtype::I16 => self.elements(|bytes| i64::from(i16::from_le_bytes(bytes))),
            Dtype::I32 => self.elements(|bytes| i64::from(i32::from_le_bytes(bytes))),
            Dtype::I64 => self.elements(i64::from_le_bytes),
            Dtype::F16 | Dtype::F32 => {
                Err(format!("found {}, expected whole numbers", self.description()))
            }
        }
    }

    fn elements<const N: usize, T>(
        mut self,
        element: impl Fn([u8; N]) -> T,
    ) -> Result<ArrayD<T>, String> {
        let description = self.description();
        let too_large = || format!("found {description}, which is too large");
        let count = self.shape.iter().try_fold(N, |size, &side| size.checked_mul(side));
        let mut bytes = vec![0; count.ok_or_else(too_large)?];
        self.reader.read_exact(&mut bytes).map_err(told)?;
        // At its end, an archive compares what it gave with its checksum.
        if self.reader.read(&mut [0]).map_err(told)? > 0 {
            return Err(format!("found more than {description}"));
        }
        let elements = bytes.as_chunks().0.iter().map(|&bytes| element(bytes)).collect();
        let shape = IxDyn(&self.shape).set_f(self.fortran_order);
        ArrayD::from_shape_vec(shape, elements).map_err(|error| error.to_string())
    }
}

fn told(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    }
}

/// Type, order and shape of a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (8, 64, 64), }`.
fn parse(header: &str) -> Result<(Dtype, bool, Vec<usize>), String> {
    let value = |key: &str| {
        let (_, rest) = header.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let wrong = |key: &str| format!("no {key} in its header `{}`", header.trim_end());
    let descr = value("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\''));
    let (name, _) = descr.ok_or_else(|| wrong("type"))?;
    let known = DTYPES.iter().find(|(known, _)| *known == name);
    let Some((_, dtype)) = known else {
        let all = DTYPES.map(|(known, _)| known).join(", ");
        return Err(format!("found elements of the type {name}, expected one of {all}"));
    };
    let order = value("fortran_order").ok_or_else(|| wrong("order"))?;
    let fortran_order = match (order.starts_with("True"), order.starts_with("False")) {
        (true, _) => true,
        (_, true) => false,
        _ => return Err(wrong("order")),
    };
    let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')'));
    let (sides, _) = shape.ok_or_else(|| wrong("shape"))?;
    let sides = sides.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape: Result<Vec<usize>, _> = sides.map(str::parse).collect();
    Ok((*dtype, fortran_order, shape.map_err(|_| wrong("shape"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, elements: &[u8]) -> Vec<u8> {
        let length = u16::try_from(header.len()).expect("short").to_le_bytes();
        [&MAGIC[..], &[1, 0], &length, header.as_bytes(), elements].concat()
    }

    fn header(descr: &str, order: &str, shape: &str) -> String {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}  \n")
    }

    #[test]
    fn arrays_are_read_in_their_order() {
        let bytes: Vec<u8> =
            [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for (order, expected) in [
            ("False", ndarray::arr2(&[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]])),
            ("True", ndarray::arr2(&[[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])),
        ] {
            let file = file(&header("'<f4'", order, "(2, 3)"), &bytes);
            let npy = Npy::open(&file[..]).expect("an array");
            assert_eq!((npy.shape(), npy.is_float()), (&[2, 3][..], true));
            assert_eq!(npy.floats(), Ok(expected.into_dyn()), "{order}");
        }
        let file = file(&header("'|b1'", "False", "(3,)"), &[1, 1, 0]);
        let found = Npy::open(&file[..]).and_then(Npy::integers);
        assert_eq!(found, Ok(ndarray::arr1(&[1i64, 1, 0]).into_dyn()));
    }

    #[test]
    fn what_is_no_such_array_is_told() {
        let of = |descr, shape| file(&header(descr, "False", shape), &[0; 8]);
        for (file, said) in [
            (b"PK\x03\x04 an archive".to_vec(), "it is no array of numpy"),
            (b"\x93NUM".to_vec(), "it ends too early"),
            (b"\x93NUMPY\x04\0\0\0".to_vec(), "found version 4"),
            (b"\x93NUMPY\x02\0\xff\xff\xff\xff".to_vec(), "its header has 4294967295 bytes"),
            (of("'<f4'", "(3,)"), "it ends too early"),
            (of("'<f4'", "(1,)"), "found more than F32 of [1]"),
            (of("'<f4'", "(99999999999, 99999999999)"), "which is too large"),
            (of("'<f4'", "(1, x)"), "no shape in its header"),
            (of("'>f4'", "(2,)"), "found elements of the type >f4, expected one of |b1"),
            (of("'<i4'", "(2,)"), "found I32 of [2], expected F16 or F32"),
            (of("[('a', '<f4')]", "(2,)"), "no type in its header"),
            (file("{}\n", b""), "no type in its header `{}`"),
        ] {
            let error = Npy::open(&file[..]).and_then(Npy::floats).expect_err(said);
            assert!(error.contains(said), "no `{said}` in: {error}");
        }
        let floats = of("'<f4'", "(2,)");
        let error = Npy::open(&floats[..]).and_then(Npy::integers).expect_err("floats");
        assert_eq!(error, "found F32 of [2], expected whole numbers");
    }
}

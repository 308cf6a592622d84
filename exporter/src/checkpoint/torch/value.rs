//! What pickles of weights consist of.

use super::super::{Dtype, FileProblem};

/// What a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its like
    StorageType(Dtype),
    /// `torch.float32` and its like, as optimizers keep them
    ElementType,
}

impl Global {
    /// The meaning of a name; `None` for all names that weights do not need.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            // Before 1.6 a storage was named after the device it was on.
            ("torch" | "torch.cuda", name) if name.ends_with("Storage") => {
                let dtype = match name {
                    "FloatStorage" => Dtype::F32,
                    "HalfStorage" => Dtype::F16,
                    "BFloat16Storage" => Dtype::BF16,
                    "DoubleStorage" => Dtype::F64,
                    "LongStorage" => Dtype::I64,
                    "IntStorage" => Dtype::I32,
                    "ShortStorage" => Dtype::I16,
                    "CharStorage" => Dtype::I8,
                    "ByteStorage" => Dtype::U8,
                    "BoolStorage" => Dtype::BOOL,
                    "ComplexFloatStorage" => Dtype::C64,
                    _ => return None,
                };
                Some(Self::StorageType(dtype))
            }
            (
                "torch",
                "float32" | "float16" | "bfloat16" | "float64" | "int64" | "int32" | "int16"
                | "int8" | "uint8" | "bool" | "complex64" | "complex128",
            ) => Some(Self::ElementType),
            _ => None,
        }
    }
}

/// A value; what has parts is a position in one of the tables of [`Unpickled`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// Something that has no say in where tensors are: a fraction, bytes, a large number.
    Inert,
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Global(Global),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

/// Raw elements, outside of the pickle.
#[derive(Clone, Debug)]
pub(super) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub elements: usize,
}

impl Storage<'_> {
    /// Size in bytes.
    pub fn bytes(&self) -> Result<usize, FileProblem> {
        self.elements.checked_mul(self.dtype.bitsize() / 8).ok_or_else(|| {
            super::invalid(format!("a storage of {} elements is too large", self.elements))
        })
    }
}

/// A view of a storage, in elements; not checked against its size.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub storage: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// A pickle's value and everything it consists of.
#[derive(Debug)]
pub(super) struct Unpickled<'a> {
    pub root: Value<'a>,
    pub sequences: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub storages: Vec<Storage<'a>>,
    pub tensors: Vec<Tensor>,
}

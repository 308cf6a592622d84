//! Pickles as data: an interpreter that builds values and runs nothing.
//!
//! A pickle is a program for a stack machine. What it can ask for by name is limited to the list in
//! [`Global`]; everything else is refused the moment it is named, so no unknown callable ever exists
//! to be called. Values refer to each other by number and are never cloned or walked, so neither
//! deep nesting nor sharing costs more than the bytes that ask for it.

use std::collections::HashMap;

use super::super::FileProblem;
use super::super::stored::MAX_RANK;
use super::super::text::shown;
use super::MAX_PICKLE_BYTES;
use super::value::{Global, Storage, Tensor, Unpickled, Value};

/// A training checkpoint of PixArt, optimizer included, has about 100 000.
const MAX_OPCODES: usize = 4_000_000;
/// Values that can wait on the stack, or be remembered.
const MAX_STACK: usize = 1_000_000;
const MAX_MEMO: usize = 1_000_000;
/// A small pickle can ask for the same large tensor description again and again.
const MAX_TENSORS: usize = 100_000;
/// Open lists and dictionaries. Real ones nest about ten deep.
const MAX_NESTING: usize = 256;
/// The longest text, byte string or number.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// The longest name of a module or of something in it.
const MAX_GLOBAL_BYTES: usize = 256;

fn invalid(reason: impl Into<String>) -> FileProblem {
    FileProblem::Pickle { reason: reason.into() }
}

/// Reads the pickle that `bytes` begin with. Also gives where it ends.
pub(super) fn read(bytes: &[u8]) -> Result<(Unpickled<'_>, usize), FileProblem> {
    let bytes = &bytes[..bytes.len().min(MAX_PICKLE_BYTES)];
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        keys: HashMap::new(),
        value: Unpickled {
            root: Value::None,
            sequences: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        },
    };
    machine.run()?;
    let end = machine.at;
    Ok((machine.value, end))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack where a list of unknown length began.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    /// Storage key → position.
    keys: HashMap<&'a str, usize>,
    value: Unpickled<'a>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<(), FileProblem> {
        for _ in 0..MAX_OPCODES {
            let opcode = self.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(invalid("values are left over at its end"));
                }
                self.value.root = root;
                return Ok(());
            }
            self.step(opcode)?;
            if self.stack.len() > MAX_STACK {
                return Err(invalid(format!("more than {MAX_STACK} values wait on its stack")));
            }
        }
        Err(invalid(format!("it has more than {MAX_OPCODES} steps")))
    }

    fn step(&mut self, opcode: u8) -> Result<(), FileProblem> {
        let value = match opcode {
            // PROTO, FRAME: how the rest is written, which its opcodes say anyway.
            0x80 => return self.take(1).map(drop),
            0x95 => return self.take(8).map(drop),
            // MARK
            b'(' => {
                if self.marks.len() == MAX_NESTING {
                    return Err(invalid(format!("it nests deeper than {MAX_NESTING}")));
                }
                self.marks.push(self.stack.len());
                return Ok(());
            }
            // POP, POP_MARK: how tuples that contain themselves are written.
            b'0' => {
                self.pop()?;
                return Ok(());
            }
            b'1' => return self.pop_mark().map(drop),
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            // BININT, BININT1, BININT2, LONG1, LONG4, INT, LONG
            b'J' => Value::Int(i64::from(self.number::<4>()? as u32 as i32)),
            b'K' => Value::Int(self.number::<1>()? as i64),
            b'M' => Value::Int(self.number::<2>()? as i64),
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'I' => match self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                text => integer(text)?,
            },
            b'L' => {
                let line = self.line()?;
                integer(line.strip_suffix('L').unwrap_or(line))?
            }
            // FLOAT, BINFLOAT
            b'F' => self.line().map(|_| Value::Inert)?,
            b'G' => self.take(8).map(|_| Value::Inert)?,
            // BINUNICODE and its short and long forms
            b'X' => self.text::<4>()?,
            0x8c => self.text::<1>()?,
            0x8d => self.text::<8>()?,
            // BINSTRING, SHORT_BINSTRING: what Python 2 wrote for text.
            b'T' => self.text::<4>()?,
            b'U' => self.text::<1>()?,
            // BINBYTES and its short and long forms
            b'B' => self.blob::<4>().map(|_| Value::Inert)?,
            b'C' => self.blob::<1>().map(|_| Value::Inert)?,
            0x8e => self.blob::<8>().map(|_| Value::Inert)?,
            // EMPTY_TUPLE, TUPLE1 … TUPLE3, TUPLE
            b')' => self.tuple(Vec::new()),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let begin = self.height_above(count)?;
                let items = self.stack.split_off(begin);
                self.tuple(items)
            }
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items)
            }
            // EMPTY_LIST, LIST, EMPTY_DICT, DICT
            b']' => self.list(Vec::new()),
            b'l' => {
                let items = self.pop_mark()?;
                self.list(items)
            }
            b'}' => self.dict(Vec::new()),
            b'd' => {
                let pairs = pairs(self.pop_mark()?)?;
                self.dict(pairs)
            }
            // APPEND, APPENDS, SETITEM, SETITEMS
            b'a' => {
                let item = self.pop()?;
                return self.extend_list(vec![item]);
            }
            b'e' => {
                let items = self.pop_mark()?;
                return self.extend_list(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.extend_dict(vec![(key, value)]);
            }
            b'u' => {
                let pairs = pairs(self.pop_mark()?)?;
                return self.extend_dict(pairs);
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(module, name)?
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => global(module, name)?,
                _ => return Err(invalid("a global has a name that is no text")),
            },
            // PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'p' => {
                let index = self.line()?.parse().map_err(|_| invalid("a memo has no number"))?;
                return self.remember(index);
            }
            b'q' => {
                let index = self.number::<1>()? as usize;
                return self.remember(index);
            }
            b'r' => {
                let index = self.number::<4>()? as usize;
                return self.remember(index);
            }
            0x94 => return self.remember(self.memo.len()),
            // GET, BINGET, LONG_BINGET
            b'g' => {
                let index = self.line()?.parse().map_err(|_| invalid("a memo has no number"))?;
                self.recall(index)?
            }
            b'h' => {
                let index = self.number::<1>()? as usize;
                self.recall(index)?
            }
            b'j' => {
                let index = self.number::<4>()? as usize;
                self.recall(index)?
            }
            // REDUCE, BUILD, BINPERSID
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)?
            }
            b'b' => {
                let state = self.pop()?;
                return self.build(state);
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            other => {
                return Err(invalid(format!(
                    "at byte {}: found the opcode {other:#04x}, which weights do not need",
                    self.at - 1
                )));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    // What the opcodes are made of.

    fn take(&mut self, count: usize) -> Result<&'a [u8], FileProblem> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..count) else {
            return Err(invalid(format!("it ends early, after {} bytes", self.bytes.len())));
        };
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FileProblem> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Result<u64, FileProblem> {
        let bytes = self.take(N)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Bytes behind their length, a number of `N` bytes.
    fn blob<const N: usize>(&mut self) -> Result<&'a [u8], FileProblem> {
        let length = self.number::<N>()?;
        match usize::try_from(length) {
            Ok(length) if length <= MAX_TEXT_BYTES => self.take(length),
            _ => Err(invalid(format!(
                "found a text of {length} bytes, expected at most {MAX_TEXT_BYTES}"
            ))),
        }
    }

    fn text<const N: usize>(&mut self) -> Result<Value<'a>, FileProblem> {
        match std::str::from_utf8(self.blob::<N>()?) {
            Ok(text) => Ok(Value::Text(text)),
            Err(_) => Err(invalid("found a text that is no UTF-8")),
        }
    }

    /// A signed number of a length that is given.
    fn long<const N: usize>(&mut self) -> Result<Value<'a>, FileProblem> {
        let bytes = self.blob::<N>()?;
        if bytes.len() > 8 {
            return Ok(Value::Inert);
        }
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut number = [fill; 8];
        number[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(number)))
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, FileProblem> {
        let rest = &self.bytes[self.at..];
        let window = &rest[..rest.len().min(MAX_GLOBAL_BYTES + 1)];
        let Some(length) = window.iter().position(|&byte| byte == b'\n') else {
            return Err(invalid(format!("found a line of more than {MAX_GLOBAL_BYTES} bytes")));
        };
        self.at += length + 1;
        std::str::from_utf8(&window[..length]).map_err(|_| invalid("found a line that is no UTF-8"))
    }

    // The stack. Nothing below the last mark can be reached.

    /// Position of the `count`th value from the top.
    fn height_above(&self, count: usize) -> Result<usize, FileProblem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(count)
            .filter(|&begin| begin >= floor)
            .ok_or_else(|| invalid("it takes more values than it made"))
    }

    fn pop(&mut self) -> Result<Value<'a>, FileProblem> {
        let at = self.height_above(1)?;
        let value = self.stack[at];
        self.stack.truncate(at);
        Ok(value)
    }

    fn top(&self) -> Result<Value<'a>, FileProblem> {
        Ok(self.stack[self.height_above(1)?])
    }

    /// The values since the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, FileProblem> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(invalid("it takes more values than it made")),
        }
    }

    // Memory.

    fn remember(&mut self, index: usize) -> Result<(), FileProblem> {
        let value = self.top()?;
        self.memo.insert(index, value);
        if self.memo.len() > MAX_MEMO {
            return Err(invalid(format!("it remembers more than {MAX_MEMO} values")));
        }
        Ok(())
    }

    fn recall(&self, index: usize) -> Result<Value<'a>, FileProblem> {
        let missing = || invalid(format!("it recalls value {index}, which it did not remember"));
        self.memo.get(&index).copied().ok_or_else(missing)
    }

    // Containers.

    fn tuple(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.value.sequences.push(items);
        Value::Tuple(self.value.sequences.len() - 1)
    }

    fn list(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.value.sequences.push(items);
        Value::List(self.value.sequences.len() - 1)
    }

    fn dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Value<'a> {
        self.value.dicts.push(items);
        Value::Dict(self.value.dicts.len() - 1)
    }

    fn extend_list(&mut self, items: Vec<Value<'a>>) -> Result<(), FileProblem> {
        match self.top()? {
            Value::List(list) => self.value.sequences[list].extend(items),
            _ => return Err(invalid("it appends to something that is no list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<(), FileProblem> {
        match self.top()? {
            Value::Dict(dict) => self.value.dicts[dict].extend(items),
            _ => return Err(invalid("it sets an item of something that is no dictionary")),
        }
        Ok(())
    }

    fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(at) | Value::List(at) => Some(&self.value.sequences[at]),
            _ => None,
        }
    }

    // What is more than a container.

    /// Attributes of an object. A `state_dict` carries version numbers of its modules; they have no
    /// use here.
    fn build(&mut self, state: Value<'a>) -> Result<(), FileProblem> {
        match (self.top()?, state) {
            (Value::Dict(_), Value::Dict(_) | Value::None) => Ok(()),
            _ => Err(invalid("it sets attributes of something that is no dictionary")),
        }
    }

    fn reduce(
        &mut self,
        callable: Value<'a>,
        arguments: Value<'a>,
    ) -> Result<Value<'a>, FileProblem> {
        let (Value::Global(global), Value::Tuple(at)) = (callable, arguments) else {
            return Err(invalid("it calls something that cannot be called"));
        };
        match (global, self.value.sequences[at].as_slice()) {
            (Global::OrderedDict, []) => Ok(self.dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, shape, strides, _, _]) => {
                self.tensor([storage, offset, shape, strides], None)
            }
            (Global::RebuildTensor, &[storage, offset, shape, strides, _, _, metadata]) => {
                self.tensor([storage, offset, shape, strides], Some(metadata))
            }
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), _, _]) => Ok(tensor),
            (global, arguments) => Err(invalid(format!(
                "it calls {global:?} with {} arguments of a wrong kind or number",
                arguments.len()
            ))),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata?)`
    fn tensor(
        &mut self,
        arguments: [Value<'a>; 4],
        metadata: Option<Value<'a>>,
    ) -> Result<Value<'a>, FileProblem> {
        let [storage, offset, shape, strides] = arguments;
        let Value::Storage(storage) = storage else {
            return Err(invalid("a tensor has no storage"));
        };
        // The metadata says that values are to be negated or conjugated when they are read.
        let plain = match metadata {
            None | Some(Value::None) => true,
            Some(Value::Dict(dict)) => self.value.dicts[dict].is_empty(),
            Some(_) => false,
        };
        if !plain {
            return Err(invalid("a tensor is a lazily negated or conjugated one"));
        }
        let (Some(offset), Some(shape), Some(strides)) =
            (size(offset), self.sizes(shape), self.sizes(strides))
        else {
            return Err(invalid("a tensor has an offset, shape or stride that is no size"));
        };
        if self.value.tensors.len() == MAX_TENSORS {
            return Err(invalid(format!("it has more than {MAX_TENSORS} tensors")));
        }
        self.value.tensors.push(Tensor { storage, offset, shape, strides });
        Ok(Value::Tensor(self.value.tensors.len() - 1))
    }

    fn sizes(&self, tuple: Value<'a>) -> Option<Vec<usize>> {
        let items = self.items(tuple).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&item| size(item)).collect()
    }

    /// `("storage", type, key, device, elements)`, before 1.6 with the view of another storage.
    fn storage(&mut self, id: Value<'a>) -> Result<Value<'a>, FileProblem> {
        let (kind, key, elements) = match self.items(id) {
            Some(
                &[Value::Text("storage"), Value::Global(kind), Value::Text(key), _, elements]
                | &[
                    Value::Text("storage"),
                    Value::Global(kind),
                    Value::Text(key),
                    _,
                    elements,
                    Value::None,
                ],
            ) => (kind, key, elements),
            _ => return Err(invalid("found something outside of the pickle that is no storage")),
        };
        let (Global::StorageType(dtype), Some(elements)) = (kind, size(elements)) else {
            return Err(invalid("a storage has no type or no size"));
        };
        if let Some(&known) = self.keys.get(key) {
            let same = &self.value.storages[known];
            if (same.dtype, same.elements) != (dtype, elements) {
                return Err(invalid(format!("the storage {} has two types", shown(key))));
            }
            return Ok(Value::Storage(known));
        }
        self.value.storages.push(Storage { key, dtype, elements });
        let position = self.value.storages.len() - 1;
        self.keys.insert(key, position);
        Ok(Value::Storage(position))
    }
}

/// A number that can be a size.
fn size(value: Value<'_>) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(number).ok(),
        _ => None,
    }
}

/// Key, value, key, value, …
fn pairs(items: Vec<Value<'_>>) -> Result<Vec<(Value<'_>, Value<'_>)>, FileProblem> {
    if !items.len().is_multiple_of(2) {
        return Err(invalid("a key of a dictionary has no value"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn global<'a>(module: &str, name: &str) -> Result<Value<'a>, FileProblem> {
    match Global::find(module, name) {
        Some(global) => Ok(Value::Global(global)),
        None => Err(FileProblem::ForbiddenGlobal { global: shown(&format!("{module}.{name}")) }),
    }
}

fn integer<'a>(text: &str) -> Result<Value<'a>, FileProblem> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(format!("found the number {}", shown(text))));
    }
    Ok(text.parse().map_or(Value::Inert, Value::Int))
}

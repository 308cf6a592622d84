//! The builder: names, scopes, inputs, weights and nodes. The operators are in [`super::ops`].

use std::collections::{HashMap, HashSet};

use super::dim::{Dim, display_shape};
use super::error::{GraphError, GraphErrorKind};
use super::ir::{
    Attribute, DType, Graph, Initializer, Node, OpsetImport, Phase, Transform, ValueInfo,
    WeightData, WeightRef,
};
use super::value::Value;
use crate::profile::{Portions, Profile};

/// ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// Whether a layer, by its name in the checkpoint, has an adapter.
type Targets = Box<dyn Fn(&str) -> bool>;

/// Builds a [`Graph`] node by node, and checks every node while it is added.
pub struct GraphBuilder {
    name: String,
    profile: Profile,
    scope: Vec<String>,
    pub(super) inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    pub(super) nodes: Vec<Node>,
    initializers: Vec<Initializer>,
    names: HashMap<String, usize>,
    weights: HashMap<String, Value>,
    weights_as_inputs: bool,
    adapted: Option<Targets>,
    /// Every value that has been made, by name.
    values: HashMap<String, Value>,
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), Value>,
    pub(super) sizes: HashMap<Dim, Value>,
    /// How attention layers are cut, by heads of the whole batch, queries, keys and head width.
    pub(crate) portions: HashMap<[Dim; 4], Portions>,
    domains: HashSet<&'static str>,
}

impl GraphBuilder {
    /// An empty graph, to be lowered for `profile`.
    pub fn new(name: &str, profile: Profile) -> Self {
        Self {
            name: name.to_owned(),
            profile,
            scope: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            names: HashMap::new(),
            weights: HashMap::new(),
            weights_as_inputs: false,
            adapted: None,
            values: HashMap::new(),
            constants: HashMap::new(),
            sizes: HashMap::new(),
            portions: HashMap::new(),
            domains: HashSet::new(),
        }
    }

    /// From now on, weights are inputs of the graph instead of tensors of a checkpoint: each has the
    /// name and the shape of the checkpoint's tensor, and what an export does to its elements while it
    /// copies them, the graph does when it runs.
    pub fn weights_as_inputs(mut self) -> Self {
        self.weights_as_inputs = true;
        self
    }

    /// Linear layers for which `targets` is true, asked with their names, have a low-rank adapter: see
    /// [`GraphBuilder::linear`]. The adapters' tensors are read like weights, so this is for graphs whose
    /// weights are inputs.
    pub fn adapters(mut self, targets: impl Fn(&str) -> bool + 'static) -> Self {
        self.adapted = Some(Box::new(targets));
        self.weights_as_inputs()
    }

    /// Whether the layer of the current scope has an adapter.
    pub(super) fn is_adapted(&self) -> bool {
        self.adapted.as_ref().is_some_and(|targets| targets(&self.scope.join(".")))
    }

    /// The profile that the graph is lowered for.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Everything that `body` adds is named `<current scope>.<name>…`, weights included.
    pub fn scoped<T, E>(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.scope.push(name.to_owned());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// Everything that `body` adds is named `<name>…`, whatever the current scope is.
    pub(crate) fn at_root<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        let scope = std::mem::replace(&mut self.scope, vec![name.to_owned()]);
        let result = body(self);
        self.scope = scope;
        result
    }

    /// Declares an input. Its sizes that are a single symbol can be computed in the graph from then
    /// on (see [`GraphBuilder::size`]).
    pub fn input(
        &mut self,
        name: &str,
        dtype: DType,
        shape: Vec<Dim>,
    ) -> Result<Value, GraphError> {
        if self.inputs.iter().any(|input| input.name == name) {
            return Err(GraphError::new(
                GraphErrorKind::DuplicateName,
                name,
                "input",
                &[],
                "a name that no other input has",
            ));
        }
        self.names.insert(name.to_owned(), 1);
        self.inputs.push(ValueInfo { name: name.to_owned(), dtype, shape: shape.clone() });
        Ok(self.known(Value { name: name.to_owned(), dtype, shape }))
    }

    /// Keeps the type of a value.
    fn known(&mut self, value: Value) -> Value {
        self.values.insert(value.name.clone(), value.clone());
        value
    }

    /// The inputs declared so far, weights that are inputs included.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// The weights read so far, in no particular order. Of those that are inputs, the inputs.
    pub fn weights(&self) -> impl Iterator<Item = &Value> {
        self.weights.values()
    }

    /// The nodes added so far, each after the producers of its inputs.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The value of this name, as a node lists it among its inputs and outputs; `None` for the absent
    /// optional input, whose name is empty, and for names that nothing has.
    ///
    /// [`GraphBuilder::output`] gives a value another name.
    pub fn value(&self, name: &str) -> Option<Value> {
        self.values.get(name).cloned()
    }

    /// The elements of an integer constant, in row-major order; `None` for anything else.
    pub fn constant_i64s(&self, name: &str) -> Option<Vec<i64>> {
        let bytes = self.inline(name, DType::I64)?;
        Some(bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect())
    }

    /// The elements of a float constant, in row-major order; `None` for anything else.
    pub fn constant_f32s(&self, name: &str) -> Option<Vec<f32>> {
        let bytes = self.inline(name, DType::F32)?;
        Some(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn inline(&self, name: &str, dtype: DType) -> Option<&[u8]> {
        let found = self.initializers.iter().find(|initializer| initializer.name == name)?;
        match &found.data {
            WeightData::Inline(bytes) if found.dtype == dtype => Some(bytes),
            _ => None,
        }
    }

    /// Declares that `value` is an output named `name`, and that its type is the one given.
    pub fn output(
        &mut self,
        name: &str,
        value: &Value,
        dtype: DType,
        shape: &[Dim],
    ) -> Result<(), GraphError> {
        let fail = |kind, expected| Err(GraphError::new(kind, name, "output", &[value], expected));
        if value.dtype != dtype || value.shape != shape {
            return fail(GraphErrorKind::Size, format!("{dtype}{}", display_shape(shape)));
        }
        let taken = |info: &ValueInfo| info.name == name;
        if self.outputs.iter().any(taken) || self.inputs.iter().any(taken) {
            return fail(GraphErrorKind::DuplicateName, "a name that nothing else has".to_owned());
        }
        // An `Identity` would cost a copy on some engines: rename the value instead.
        let mut produced = false;
        for node in &mut self.nodes {
            for (list, is_output) in [(&mut node.inputs, false), (&mut node.outputs, true)] {
                for entry in list.iter_mut().filter(|entry| **entry == value.name) {
                    name.clone_into(entry);
                    produced |= is_output;
                }
            }
        }
        if !produced {
            return fail(GraphErrorKind::UnknownSize, "the result of a node".to_owned());
        }
        self.values.remove(&value.name);
        self.known(Value { name: name.to_owned(), ..value.clone() });
        self.outputs.push(ValueInfo { name: name.to_owned(), dtype, shape: shape.to_vec() });
        Ok(())
    }

    /// The checkpoint tensor `<scope>.<name>` of this shape, as it is.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, GraphError> {
        self.weight_as(name, shape, Transform::None, shape)
    }

    /// The checkpoint tensor `<scope>.<name>` of shape `found`, its elements under another shape.
    ///
    /// # Panics
    /// In debug builds, when the shapes have different numbers of elements.
    pub fn weight_reshaped(
        &mut self,
        name: &str,
        found: &[usize],
        shape: &[usize],
    ) -> Result<Value, GraphError> {
        debug_assert_eq!(found.iter().product::<usize>(), shape.iter().product::<usize>());
        self.weight_as(name, found, Transform::Reshape, shape)
    }

    /// The checkpoint matrix `<scope>.<name>` of shape `[out, in]`, as `[in, out]`.
    pub fn weight_transposed(
        &mut self,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<Value, GraphError> {
        let found = [out_features, in_features];
        self.weight_as(name, &found, Transform::Transpose2d, &[in_features, out_features])
    }

    /// The checkpoint kernel `<scope>.<name>` of shape `[out, in, 3, 3]`, as the four kernels
    /// `[out, in, 2, 2]` of [`Transform::Phase`], in the order of [`Phase::ALL`].
    pub(super) fn weight_phases(
        &mut self,
        name: &str,
        out_channels: usize,
        in_channels: usize,
    ) -> Result<[Value; 4], GraphError> {
        let tensor = self.path(name);
        self.unread(&tensor)?;
        let found = [out_channels, in_channels, 3, 3];
        if self.weights_as_inputs {
            let expected = "weights that are constants, because sums of them are stored";
            return self.fail(GraphErrorKind::Operator, "weight", &[], expected);
        }
        let values = Phase::ALL.map(|phase| {
            let part = format!(
                "{tensor}.{}_{}",
                if phase.lower { "lower" } else { "upper" },
                if phase.right { "right" } else { "left" }
            );
            let shape = [out_channels, in_channels, 2, 2];
            self.stored(part, &tensor, &found, Transform::Phase(phase), &shape)
        });
        // One of them stands for the tensor.
        self.weights.insert(tensor, values[0].clone());
        Ok(values)
    }

    fn weight_as(
        &mut self,
        name: &str,
        found: &[usize],
        transform: Transform,
        shape: &[usize],
    ) -> Result<Value, GraphError> {
        let tensor = self.path(name);
        self.unread(&tensor)?;
        if self.weights_as_inputs {
            return self.weight_as_input(tensor, found, transform, shape);
        }
        let value = self.stored(tensor.clone(), &tensor, found, transform, shape);
        self.weights.insert(tensor, value.clone());
        Ok(value)
    }

    /// An error if the checkpoint's tensor has been read.
    fn unread(&self, tensor: &str) -> Result<(), GraphError> {
        let Some(old) = self.weights.get(tensor) else { return Ok(()) };
        let message = "one use of a checkpoint tensor; share the value instead";
        Err(GraphError::new(GraphErrorKind::DuplicateName, tensor, "weight", &[old], message))
    }

    /// An initializer of the checkpoint's `tensor`.
    fn stored(
        &mut self,
        name: String,
        tensor: &str,
        found: &[usize],
        transform: Transform,
        shape: &[usize],
    ) -> Value {
        self.names.insert(name.clone(), 1);
        let weight = WeightRef { tensor: tensor.to_owned(), shape: found.to_vec(), transform };
        self.initializers.push(Initializer {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            data: WeightData::Checkpoint(weight),
        });
        let dims = shape.iter().map(|&n| Dim::from(n)).collect();
        self.known(Value { name, dtype: DType::F32, shape: dims })
    }

    /// The input `<scope>.<name>` of a shape with open sizes, which counts as a weight.
    pub(super) fn open_weight(&mut self, name: &str, shape: Vec<Dim>) -> Result<Value, GraphError> {
        let tensor = self.path(name);
        let value = self.input(&tensor, DType::F32, shape)?;
        self.weights.insert(tensor, value.clone());
        Ok(value)
    }

    fn weight_as_input(
        &mut self,
        tensor: String,
        found: &[usize],
        transform: Transform,
        shape: &[usize],
    ) -> Result<Value, GraphError> {
        let dims = |shape: &[usize]| shape.iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
        let value = self.input(&tensor, DType::F32, dims(found))?;
        self.weights.insert(tensor, value.clone());
        match transform {
            Transform::None => Ok(value),
            Transform::Reshape => self.reshape(&value, &dims(shape)),
            Transform::Transpose2d => self.transpose(&value, &[1, 0]),
            _ => {
                let expected = "a weight of full precision";
                self.fail(GraphErrorKind::Operator, "weight", &[&value], expected)
            }
        }
    }

    /// A float constant; equal constants are stored once.
    pub fn constant_f32(&mut self, data: &[f32], shape: &[usize]) -> Value {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(DType::F32, shape, bytes)
    }

    /// A one-dimensional integer constant.
    pub fn constant_i64(&mut self, data: &[i64]) -> Value {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(DType::I64, &[data.len()], bytes)
    }

    /// An integer constant without axes.
    pub fn scalar_i64(&mut self, value: i64) -> Value {
        self.constant(DType::I64, &[], value.to_le_bytes().to_vec())
    }

    /// A float constant without axes.
    pub fn scalar_f32(&mut self, value: f32) -> Value {
        self.constant_f32(&[value], &[])
    }

    fn constant(&mut self, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Value {
        debug_assert_eq!(shape.iter().product::<usize>() * dtype.size(), bytes.len());
        let key = (dtype, shape.to_vec(), bytes);
        if let Some(value) = self.constants.get(&key) {
            return value.clone();
        }
        let name = format!("constants.{}", self.constants.len());
        let dims = shape.iter().map(|&n| Dim::from(n)).collect();
        let value = Value { name: name.clone(), dtype, shape: dims };
        self.initializers.push(Initializer {
            name,
            dtype,
            shape: shape.to_vec(),
            data: WeightData::Inline(key.2.clone()),
        });
        self.constants.insert(key, value.clone());
        self.known(value)
    }

    /// The hierarchical name of `name` in the current scope.
    pub(super) fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path + name
    }

    /// The name the next `op` node will have; used by the checks before it is added.
    pub(crate) fn next_name(&self, op: &str) -> String {
        let base = format!("{}/{op}", self.scope.join("."));
        match self.names.get(&base) {
            None => base,
            Some(count) => format!("{base}_{count}"),
        }
    }

    /// An error of the next `op` node.
    pub(crate) fn fail<T>(
        &self,
        kind: GraphErrorKind,
        op: &str,
        operands: &[&Value],
        expected: impl Into<String>,
    ) -> Result<T, GraphError> {
        Err(GraphError::new(kind, &self.next_name(op), op, operands, expected))
    }

    /// Adds a node of the standard operator set with one output of a type already checked.
    pub(crate) fn push(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: Vec<(&str, Attribute)>,
        dtype: DType,
        shape: Vec<Dim>,
    ) -> Value {
        self.push_many("", op, inputs, attributes, vec![(dtype, shape)]).remove(0)
    }

    /// Adds a node of ONNX Runtime's operator set with one output.
    pub(crate) fn push_microsoft(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: Vec<(&str, Attribute)>,
        dtype: DType,
        shape: Vec<Dim>,
    ) -> Value {
        self.push_many(MICROSOFT, op, inputs, attributes, vec![(dtype, shape)]).remove(0)
    }

    /// Adds a node with any number of outputs.
    pub(crate) fn push_many(
        &mut self,
        domain: &'static str,
        op: &str,
        inputs: &[&Value],
        attributes: Vec<(&str, Attribute)>,
        outputs: Vec<(DType, Vec<Dim>)>,
    ) -> Vec<Value> {
        let name = self.next_name(op);
        *self.names.entry(format!("{}/{op}", self.scope.join("."))).or_insert(0) += 1;
        self.domains.insert(domain);
        let single = outputs.len() == 1;
        let values: Vec<Value> = outputs
            .into_iter()
            .enumerate()
            .map(|(index, (dtype, shape))| {
                let name = if single { name.clone() } else { format!("{name}:{index}") };
                Value { name, dtype, shape }
            })
            .collect();
        for value in &values {
            self.known(value.clone());
        }
        self.nodes.push(Node {
            name,
            op_type: op.to_owned(),
            domain: domain.to_owned(),
            inputs: inputs.iter().map(|v| v.name.clone()).collect(),
            outputs: values.iter().map(|v| v.name.clone()).collect(),
            attributes: attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        });
        values
    }

    /// Builds the body of a control-flow node. `build` gets the body's inputs and returns its
    /// outputs; the body may also use any value of the graph around it.
    pub(crate) fn body(
        &mut self,
        name: &str,
        inputs: Vec<(&str, DType, Vec<Dim>)>,
        build: impl FnOnce(&mut Self, &[Value]) -> Result<Vec<Value>, GraphError>,
    ) -> Result<Graph, GraphError> {
        let outer_nodes = std::mem::take(&mut self.nodes);
        let values: Vec<Value> = inputs
            .into_iter()
            .map(|(name, dtype, shape)| Value { name: self.path(name), dtype, shape })
            .collect();
        let result = build(self, &values);
        let nodes = std::mem::replace(&mut self.nodes, outer_nodes);
        let info =
            |v: &Value| ValueInfo { name: v.name.clone(), dtype: v.dtype, shape: v.shape.clone() };
        Ok(Graph {
            name: self.path(name),
            inputs: values.iter().map(info).collect(),
            outputs: result?.iter().map(info).collect(),
            nodes,
            initializers: Vec::new(),
            opset_imports: Vec::new(),
            ir_version: self.profile.ir_version(),
        })
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        let version = self.profile.opset();
        let mut opset_imports = vec![OpsetImport { domain: String::new(), version }];
        if self.domains.contains(MICROSOFT) {
            opset_imports.push(OpsetImport { domain: MICROSOFT.to_owned(), version: 1 });
        }
        Graph {
            name: self.name,
            inputs: self.inputs,
            outputs: self.outputs,
            nodes: self.nodes,
            initializers: self.initializers,
            opset_imports,
            ir_version: self.profile.ir_version(),
        }
    }
}

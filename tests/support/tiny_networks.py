"""Tiny networks in the file formats of teachers.

All of them return the sum of red, green and blue weighted by WEIGHTS, so the output depends on channel order and
normalization.
"""

from __future__ import annotations

import warnings

import flatbuffers
import numpy as np
import onnx
import torch
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = (0.5, 0.25, 0.125)
TYPES = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT, np.uint8: TensorProto.UINT8}
LITERT_TYPES = {
    np.float32: schema.TensorType.FLOAT32,
    np.int32: schema.TensorType.INT32,
    np.int8: schema.TensorType.INT8,
    np.uint8: schema.TensorType.UINT8,
}


def weighed(images):
    """Return the output (B, H, W) for images (B, 3, H, W)."""
    return torch.einsum("bchw,c->bhw", images, torch.tensor(WEIGHTS))


def make_onnx(
    path,
    shape=("b", 3, "h", "w"),
    *,
    dtype=np.float32,
    after=(),
    outputs=("depth",),
    output_type=TensorProto.FLOAT,
    metadata=None,
    outside=None,
):
    """Write an ONNX file; `after` are nodes after `sum` (B, 1, H, W), `outside` names an external weights file."""
    nhwc = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)]
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Conv", ["nchw" if nhwc else "float", "weights"], ["sum"]))
    nodes += after or [helper.make_node("Identity", ["sum"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TYPES[dtype], shape)],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        [numpy_helper.from_array(np.array(WEIGHTS, np.float32).reshape(1, 3, 1, 1), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    if outside is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=outside, size_threshold=0)
    return path


def make_litert(path, shape=(1, 6, 8, 3), *, dtype=np.float32, given=None, gives=None, signature=None, outputs=1):
    """Write a .tflite file with the mean over the channels; `given` and `gives` are (scale, zero point)."""

    def tensor(name, sides, kind, buffer=0, quantization=None):
        tensor_t = schema.TensorT()
        tensor_t.name, tensor_t.shape, tensor_t.type, tensor_t.buffer = name, list(sides), LITERT_TYPES[kind], buffer
        if signature and len(sides) == 4:
            tensor_t.shapeSignature = [*signature[:3], sides[3]]
        if quantization:
            tensor_t.quantization = schema.QuantizationParametersT()
            tensor_t.quantization.scale, tensor_t.quantization.zeroPoint = [quantization[0]], [quantization[1]]
        return tensor_t

    axis = schema.BufferT()
    axis.data = list(np.array([3], np.int32).tobytes())
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MEAN
    graph = schema.SubGraphT()
    graph.tensors = [tensor("image", shape, dtype, quantization=given), tensor("axis", (1,), np.int32, 1)]
    graph.inputs, graph.outputs, graph.operators = [0], [], []
    for number in range(outputs):
        graph.tensors.append(tensor(f"depth{number}", (*shape[:3], 1), dtype, quantization=gives))
        graph.outputs.append(2 + number)
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [0, 1], [2 + number]
        operator.builtinOptionsType = schema.BuiltinOptions.ReducerOptions
        operator.builtinOptions = schema.ReducerOptionsT()
        operator.builtinOptions.keepDims = True
        graph.operators.append(operator)
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [schema.BufferT(), axis]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


class Weighed(torch.nn.Module):
    """The network as a module; `form` selects the type of its output."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.register_buffer("weights", torch.tensor(WEIGHTS).view(1, 3, 1, 1))

    def forward(self, image):
        """Return depth (B, 1, H, W), alone or with others in a tuple or dict."""
        depth = (image * self.get_buffer("weights")).sum(1, keepdim=True)
        if self.form == "signals":
            return {"conf": 1 - depth[:, 0], "depth": depth, "sky": depth / 2}
        if self.form == "tuple":
            return image, depth
        return {"image": image, "depth": depth} if self.form == "dict" else depth


def make_torchscript(path, form="tensor"):
    """Write a file of torch.jit.save by tracing; scripting would need a single return type."""
    network = Weighed(form).eval()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # TorchScript is deprecated in favor of torch.export, which is tested too
        traced = torch.jit.trace(network, torch.rand(1, 3, 4, 5), strict=False, check_trace=False)
        torch.jit.save(traced, path)
    return path


def make_exported(path, shape=(2, 3, 6, 8), *, fixed=False):
    """Write a `.pt2` of torch.export.save, for a fixed or any size."""
    sides = {} if fixed else {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    torch.export.save(torch.export.export(Weighed().eval(), (torch.rand(shape),), dynamic_shapes=(sides,)), path)
    return path


def make_endless_onnx(path):
    """Write an ONNX file with an infinite loop."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["again"]), helper.make_node("Add", ["depth", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("depth", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    nodes = [
        helper.make_node("ReduceMean", ["image", "channels"], ["mean"], keepdims=1),
        helper.make_node("Loop", ["", "yes", "mean"], ["depth"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("b", 3, "h", "w"))],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(True), "yes"),  # noqa: FBT003 - a tensor
            numpy_helper.from_array(np.array([1], np.int64), "channels"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path

"""Capture from ONNX: names, sizes, control flow known at capture, functions, quantized weights, opsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from planish.errors import CaptureError, ShapeError, UnsupportedOpError
from planish.frontend.capture.onnx import capture_onnx
from planish.ir.run import run
from planish.ir.types import Symbol
from planish.ir.verify import verify
from tests.frontend import onnx_models as m

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def results(captured: Any, *inputs: Any) -> list[np.ndarray]:
    given = [torch.from_numpy(np.asarray(i)) for i in inputs]
    return [t.numpy() for t in run(captured.program, captured.weights, *given)]


def test_shape_chain_leaves_an_expression() -> None:
    """Shape -> Gather -> Mul -> Concat -> Reshape is one view."""
    made = m.model(
        [
            m.node("Shape", ["x"], ["s"]),
            m.node("Gather", ["s", "zero"], ["b"], axis=0),
            m.node("Gather", ["s", "one"], ["t"], axis=0),
            m.node("Mul", ["b", "t"], ["bt"]),
            m.node("Unsqueeze", ["bt", "axis"], ["rows"]),
            m.node("Concat", ["rows", "width"], ["shape"], axis=0),
            m.node("Reshape", ["x", "shape"], ["y"]),
        ],
        [m.value("x", ["B", "T", 6])],
        ["y"],
        {"zero": np.int64(0), "one": np.int64(1), "axis": np.array([0]), "width": np.array([6])},
    )
    captured = capture_onnx(made)
    assert [n.op for n in captured.program.nodes] == ["input", "aten.view"]
    b, t = Symbol("B"), Symbol("T")
    assert captured.program.outputs[0].shape == (b * t, 6)
    assert not len(captured.weights)
    for shape in ((2, 3, 6), (5, 4, 6)):
        x = f32(*shape)
        assert np.array_equal(results(captured, x)[0], x.reshape(-1, 6))


def test_expand_by_where_of_equal() -> None:
    """The spelling of `expand` by PyTorch's exporter: Where(Equal(shape, -1), ones, shape)."""
    made = m.model(
        [
            m.node("Shape", ["x"], ["s"], start=0, end=1),
            m.node("Concat", ["s", "five"], ["shape"], axis=0),
            m.node("Equal", ["shape", "minus"], ["open"]),
            m.node("Where", ["open", "ones", "shape"], ["want"]),
            m.node("Expand", ["c", "want"], ["y"]),
        ],
        [m.value("x", ["B", 3])],
        ["y"],
        {"five": np.array([5]), "minus": np.array([-1]), "ones": np.array([1, 1]), "c": f32(1, 5)},
    )
    captured = capture_onnx(made)
    assert [n.op for n in captured.program.nodes] == ["const", "aten.expand"]
    assert captured.program.outputs[0].shape == (Symbol("B"), 5)
    assert results(captured, f32(4, 3))[0].shape == (4, 5)


def test_constants_keep_their_names() -> None:
    w, b = f32(32, 8), f32(32)
    made = m.model(
        [m.node("Gemm", ["x", "layer.weight", "layer.bias"], ["y"], transB=1)],
        [m.value("x", ["N", 8])],
        [m.value("y", ["N", 32])],
        {"layer.weight": w, "layer.bias": b},
    )
    captured = capture_onnx(made)
    assert {c.name for c in captured.program.constants()} == {"layer.weight", "layer.bias"}
    assert captured.program.count("aten.linear") == 1
    assert captured.program.output_names == ("y",)
    x = f32(3, 8)
    np.testing.assert_allclose(results(captured, x)[0], x @ w.T + b, rtol=1e-5, atol=1e-5)


def test_origins_name_the_node() -> None:
    made = m.model(
        [helper.make_node("Relu", ["x"], ["y"], name="/layers.3/act/Relu")], [m.value("x", [2, 3])], ["y"]
    )
    program = capture_onnx(made).program
    origin = program.origins[program.outputs[0]]
    assert origin.scope == "layers.3.act" and origin.source == "Relu /layers.3/act/Relu"


def test_unnamed_and_computed_dimensions() -> None:
    made = m.model(
        [m.node("Concat", ["past", "x"], ["y"], axis=1)],
        [m.value("past", [None, "P", 4]), m.value("x", [None, "T", 4])],
        ["y"],
    )
    with pytest.raises(ShapeError, match="cannot be shown to be equal") as refused:
        capture_onnx(made)
    assert refused.value.where == "Concat 'n_y'" and "dims=" in (refused.value.hint or "")
    captured = capture_onnx(made, dims={"x_dim0": "past_dim0", "P": (0, 64), "T": 3})
    assert str(captured.program.outputs[0].type) == "f32[past_dim0, P + 3, 4]"
    assert results(captured, f32(2, 5, 4), f32(2, 3, 4))[0].shape == (2, 8, 4)

    total = m.model(
        [m.node("Add", ["m", "m"], ["y"])], [m.value("x", ["P", 2]), m.value("m", ["P + 1"])], ["y"]
    )
    assert str(capture_onnx(total).program.inputs[1].type) == "f32[P + 1]"


def test_dimensions_of_another_form() -> None:
    """A network that halves and doubles needs even sizes: the dimension is said to be one."""
    made = m.model(
        [
            m.node("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
            m.node(
                "Resize",
                ["half", "", "scales"],
                ["whole"],
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            m.node("Add", ["x", "whole"], ["y"]),
        ],
        [m.value("x", [1, 2, "H", "W"])],
        ["y"],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    with pytest.raises(ShapeError, match="cannot be shown"):
        capture_onnx(made)
    captured = capture_onnx(
        made,
        dims={
            "H": "2*h",
            "W": "2*w",
        },
    )
    assert str(captured.program.inputs[0].type) == "f32[1, 2, 2*h, 2*w]"
    x = f32(1, 2, 4, 6)
    expected = x.reshape(1, 2, 2, 2, 3, 2).max((3, 5)).repeat(2, 2).repeat(2, 3) + x
    assert np.array_equal(results(captured, x)[0], expected)


def test_sizes_computed_in_floating_point() -> None:
    """Half the height, as old exporters compute it: Shape, Cast, Mul by 0.5, Floor, Cast, Resize."""
    made = m.model(
        [
            m.node("Shape", ["x"], ["hw"], start=2),
            m.node("Cast", ["hw"], ["real"], to=m.FLOAT),
            m.node("Mul", ["real", "half"], ["less"]),
            m.node("Floor", ["less"], ["whole"]),
            m.node("Cast", ["whole"], ["size"], to=m.INT64),
            m.node("Concat", ["nc", "size"], ["sizes"], axis=0),
            m.node(
                "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
            ),
        ],
        [m.value("x", [1, 2, "H", 8])], ["y", "less"],
        {"half": np.array([0.5], np.float32), "nc": np.array([1, 2])},
    )  # fmt: skip
    captured = capture_onnx(made, dims={"H": (4, 512)})
    assert str(captured.program.outputs[0].type) == "f32[1, 2, H//2, 4]"
    x = f32(1, 2, 7, 8)
    y, less = results(captured, x)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x), size=(3, 4), mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert less.tolist() == [3.5, 4.0]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"B": (1, 2)}, "no dimension 'B'"),
        ({"N": (5, 2)}, "needs a range"),
        ({"N": -1}, "'N' is -1"),
        ({"N": "N + 1"}, "depend on itself"),
        ({"N": "2 ** k"}, "cannot be"),
        ({"N": "__import__('os')"}, "cannot be"),
    ],
)
def test_wrong_dims(dims: dict[str, Any], message: str) -> None:
    made = m.model([m.node("Relu", ["x"], ["y"])], [m.value("x", ["N", 3])], ["y"])
    with pytest.raises(CaptureError, match=message) as refused:
        capture_onnx(made, dims=dims)
    assert refused.value.code == "PL149"


def test_inputs_given_at_capture() -> None:
    made = m.model(
        [m.node("Reshape", ["x", "shape"], ["y"])],
        [m.value("x", [2, 6]), m.value("shape", [2], m.INT64)],
        ["y"],
    )
    with pytest.raises(CaptureError, match="comes from the input 'shape'") as refused:
        capture_onnx(made)
    assert refused.value.code == "PL143" and "values={'shape'" in (refused.value.hint or "")
    captured = capture_onnx(made, values={"shape": np.array([3, -1])})
    assert [i.name for i in captured.program.inputs] == ["x"]
    assert captured.program.outputs[0].shape == (3, 4)
    with pytest.raises(CaptureError, match="no 'other'"):
        capture_onnx(made, values={"other": np.array([1])})
    with pytest.raises(CaptureError, match="declares INT64"):
        capture_onnx(made, values={"shape": np.array([3, 4], np.int32)})


def test_input_names_become_identifiers() -> None:
    made = m.model(
        [m.node("Add", ["input.1", "2"], ["y"])],
        [m.value("input.1", ["y", 3]), m.value("2", ["y", 3])],
        ["y"],
    )
    captured = capture_onnx(made)
    assert [i.name for i in captured.program.inputs] == ["input_1", "v_2"]
    assert captured.notes == ("the input 'input.1' is called input_1", "the input '2' is called v_2")


def test_default_of_an_input_is_a_constant() -> None:
    made = m.model(
        [m.node("Mul", ["x", "w"], ["y"])],
        [m.value("x", ["N", 20]), m.value("w", [20])],
        ["y"],
        {"w": f32(20)},
    )
    captured = capture_onnx(made)
    assert [i.name for i in captured.program.inputs] == ["x"] and "w" in captured.weights


def test_branch_with_known_condition() -> None:
    then = helper.make_graph(
        [m.node("Neg", ["x"], ["a"])], "then", [], [helper.make_empty_tensor_value_info("a")]
    )
    other = helper.make_graph(
        [m.node("Abs", ["x"], ["b"])], "else", [], [helper.make_empty_tensor_value_info("b")]
    )
    nodes = [
        m.node("Shape", ["x"], ["s"]),
        m.node("Size", ["s"], ["rank"]),
        m.node("Equal", ["rank", "two"], ["flat"]),
        helper.make_node("If", ["flat"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    made = m.model(nodes, [m.value("x", ["N", 3])], ["y"], {"two": np.int64(2)})
    assert [n.op for n in capture_onnx(made).program.nodes] == ["input", "aten.neg"]

    data = m.model(nodes[3:], [m.value("x", ["N", 3]), m.value("flat", [], m.BOOL)], ["y"])
    with pytest.raises(CaptureError, match="condition comes from the input 'flat'") as refused:
        capture_onnx(data)
    assert refused.value.code == "PL144" and refused.value.where == "If 'choose'"


def scan_body() -> Any:
    """Running sum."""
    return helper.make_graph(
        [m.node("Add", ["sum", "row"], ["next"]), m.node("Identity", ["next"], ["out"])], "body",
        [m.value("sum", [3]), m.value("row", [3])], [m.value("next", [3]), m.value("out", [3])],
    )  # fmt: skip


def test_scan_and_loop_are_written_out() -> None:
    scan = m.model(
        [helper.make_node("Scan", ["init", "x"], ["last", "all"], name="scan", body=scan_body(), num_scan_inputs=1)],
        [m.value("init", [3]), m.value("x", [4, 3])], ["last", "all"],
    )  # fmt: skip
    init, x = f32(3), f32(4, 3)
    last, every = results(capture_onnx(scan), init, x)
    np.testing.assert_allclose(every, init + np.cumsum(x, 0), rtol=1e-5)
    np.testing.assert_allclose(last, every[-1])
    scan.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "T"
    with pytest.raises(CaptureError, match="dynamic length T") as refused:
        capture_onnx(scan)
    assert refused.value.code == "PL144"

    body = helper.make_graph(
        [m.node("Mul", ["v", "v"], ["w"]), m.node("Identity", ["go"], ["on"])], "body",
        [m.value("i", [], m.INT64), m.value("go", [], m.BOOL), m.value("v", [3])],
        [m.value("on", [], m.BOOL), m.value("w", [3])],
    )  # fmt: skip
    loop = m.model(
        [m.node("Loop", ["three", "", "x"], ["y"], body=body)],
        [m.value("x", [3])],
        ["y"],
        {"three": np.int64(3)},
    )
    x = f32(3)
    np.testing.assert_allclose(results(capture_onnx(loop), x)[0], x**8, rtol=1e-5)


def test_sequences_of_known_structure() -> None:
    made = m.model(
        [
            m.node("SplitToSequence", ["x", "two"], ["parts"], axis=1),
            m.node("SequenceEmpty", [], ["none"]),
            m.node("SequenceLength", ["none"], ["zero"]),
            m.node("SequenceAt", ["parts", "one"], ["second"]),
            m.node("SequenceInsert", ["parts", "second"], ["more"]),
            m.node("SequenceErase", ["more", "zero"], ["less"]),
            m.node("ConcatFromSequence", ["less"], ["y"], axis=1),
            m.node("SequenceLength", ["less"], ["n"]),
        ],
        [m.value("x", ["N", 6])], ["y", "n"], {"two": np.int64(2), "one": np.int64(1)},
    )  # fmt: skip
    x = f32(3, 6)
    y, n = results(capture_onnx(made), x)
    assert np.array_equal(y, np.concatenate([x[:, 2:4], x[:, 4:6], x[:, 2:4]], 1)) and n == 3


def test_maps_over_sequences_and_optionals() -> None:
    body = helper.make_graph([m.node("Neg", ["e"], ["r"])], "body", [m.value("e", [1])], [m.value("r", [1])])
    made = m.model(
        [
            m.node("SequenceConstruct", ["x", "x"], ["both"]),
            m.node("SequenceMap", ["both"], ["turned"], body=body),
            m.node("Optional", ["turned"], ["perhaps"]),
            m.node("OptionalHasElement", ["perhaps"], ["there"]),
            m.node("OptionalGetElement", ["perhaps"], ["sure"]),
            m.node("ConcatFromSequence", ["sure"], ["y"], axis=0, new_axis=1),
        ],
        [m.value("x", ["N"])], ["y", "there"], opset=18,
    )  # fmt: skip
    y, there = results(capture_onnx(made), np.array([1, 2], np.float32))
    assert y.tolist() == [[-1, -2], [-1, -2]] and there


def test_norm_of_each_channel() -> None:
    made = m.model([m.node("GlobalLpPool", ["x"], ["y"], p=3)], [m.value("x", ["N", 2, "H", "W"])], ["y"])
    x = f32(2, 2, 3, 4)
    expected = (np.abs(x) ** 3).sum((2, 3), keepdims=True) ** (1 / 3)
    np.testing.assert_allclose(results(capture_onnx(made), x)[0], expected, rtol=1e-5)


def test_functions_of_the_model() -> None:
    function = helper.make_function(
        "own", "Scaled", ["v"], ["r"],
        [
            helper.make_node("Constant", [], ["k"], value_float=2.0),
            helper.make_node("Mul", ["v", "k"], ["d"]),
            helper.make_node("LeakyRelu", ["d"], ["r"]),
        ],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    function.node[2].attribute.add(name="alpha", ref_attr_name="slope", type=1)
    function.attribute_proto.append(helper.make_attribute("slope", 0.5))
    made = m.model(
        [
            helper.make_node("Scaled", ["x"], ["a"], domain="own"),
            helper.make_node("Scaled", ["a"], ["y"], domain="own", slope=0.25),
        ],
        [m.value("x", [2])], ["y"], functions=[function], domains=["own"],
    )  # fmt: skip
    x = np.array([-1, 1], np.float32)
    assert results(capture_onnx(made), x)[0].tolist() == [-0.5, 4.0]


def test_quantized_weights_stay_codes() -> None:
    codes, scale = RNG.integers(-8, 8, (16, 32)).astype(np.int8), np.abs(f32(16, 2)) + 0.1
    made = m.model(
        [
            m.node("DequantizeLinear", ["codes", "scale"], ["w"], axis=1, block_size=16),
            m.node("Gemm", ["x", "w"], ["y"], transB=1),
        ],
        [m.value("x", ["N", 32])], ["y"], {"codes": codes, "scale": scale}, opset=21,
    )  # fmt: skip
    captured = capture_onnx(made)
    assert captured.program.count("planish.dequant") == 1
    assert (
        sum(captured.weights.nbytes(c.name) for c in captured.program.constants())
        == codes.nbytes + scale.nbytes
    )
    x = f32(3, 32)
    w = codes.astype(np.float32) * scale.repeat(16, 1)
    np.testing.assert_allclose(results(captured, x)[0], x @ w.T, rtol=1e-4, atol=1e-4)


def test_int4_initializers_are_codes() -> None:
    from onnx import numpy_helper

    made = m.model(
        [m.node("DequantizeLinear", ["codes", "scale"], ["y"], axis=0)], [m.value("x", [1])], ["y"], opset=21
    )
    codes = np.arange(-8, 8).reshape(4, 4)
    made.graph.initializer.append(
        helper.make_tensor("codes", TensorProto.INT4, (4, 4), codes.reshape(-1).tolist())
    )
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "scale"))
    expected = codes * np.array([[1], [2], [3], [4]], np.float32)
    assert np.array_equal(results(capture_onnx(made), f32(1))[0], expected)


def test_old_opsets_are_converted() -> None:
    """Opset 9: Squeeze and ReduceSum by attributes, Upsample, Softmax over all that follows the axis."""
    made = m.model(
        [
            m.node("Upsample", ["x", "scales"], ["big"], mode="nearest"),
            m.node("ReduceSum", ["big"], ["sum"], axes=[3], keepdims=1),
            m.node("Squeeze", ["sum"], ["flat"], axes=[3]),
            m.node("Softmax", ["flat"], ["y"], axis=1),
        ],
        [m.value("x", [1, 2, 3, 4])], [m.value("y", [1, 2, 6])], {"scales": np.array([1, 1, 2, 2], np.float32)},
        opset=9,
    )  # fmt: skip
    x = f32(1, 2, 3, 4)
    flat = x.repeat(2, 2).repeat(2, 3).sum(3).reshape(1, -1)
    expected = np.exp(flat - flat.max()) / np.exp(flat - flat.max()).sum()
    np.testing.assert_allclose(results(capture_onnx(made), x)[0], expected.reshape(1, 2, 6), rtol=1e-5)


def test_missing_operators_are_listed_together() -> None:
    made = m.model(
        [
            helper.make_node("Strange", ["x"], ["a"], name="first", domain="acme"),
            helper.make_node("Strange", ["a"], ["b"], name="second", domain="acme"),
            m.node("RandomNormalLike", ["b"], ["c"]),
            m.node("Relu", ["c"], ["y"]),
        ],
        [m.value("x", [2])], ["y"], domains=["acme"],
    )  # fmt: skip
    with pytest.raises(UnsupportedOpError) as refused:
        capture_onnx(made)
    assert refused.value.code == "PL201"
    assert "acme::Strange (2 times, first 'first')" in str(refused.value)
    assert "RandomNormalLike (1 times, first 'n_c')" in str(refused.value)
    assert "Relu" not in str(refused.value)


def test_dynamic_attention_block_at_two_sizes() -> None:
    """An attention block as exporters write it, with dynamic batch and length."""
    width, heads = 16, 4
    names = {n: f32(width, width) * 0.3 for n in ("q", "k", "v", "o")}
    split = np.array([0, 0, heads, width // heads])
    nodes = []
    for n in ("q", "k", "v"):
        nodes += [
            m.node("MatMul", ["x", n], [f"{n}1"]),
            m.node("Reshape", [f"{n}1", "split"], [f"{n}2"]),
            m.node("Transpose", [f"{n}2"], [f"{n}3"], perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        m.node("MatMul", ["q3", "k3"], ["scores"]),
        m.node("Div", ["scores", "root"], ["scaled"]),
        m.node("Softmax", ["scaled"], ["weights"], axis=-1),
        m.node("MatMul", ["weights", "v3"], ["mixed"]),
        m.node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        m.node("Shape", ["x"], ["shape"]),
        m.node("Reshape", ["back", "shape"], ["flat"]),
        m.node("MatMul", ["flat", "o"], ["y"]),
    ]
    made = m.model(
        nodes, [m.value("x", ["B", "T", width])], ["y"], {**names, "split": split, "root": np.float32(2)}
    )
    captured = capture_onnx(made, dims={"T": (2, 128)})
    verify(captured.program, captured.weights)
    assert captured.program.count("aten.view") == 4
    for b, t in ((2, 5), (1, 9)):
        x = f32(b, t, width)
        q, k, v = ((x @ names[n]).reshape(b, t, heads, -1).transpose(0, 2, 1, 3) for n in ("q", "k", "v"))
        scores = q @ k.transpose(0, 1, 3, 2) / 2
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        expected = mixed.transpose(0, 2, 1, 3).reshape(b, t, width) @ names["o"]
        np.testing.assert_allclose(results(captured, x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_whole_and_written_out_agree(kind: str, direction: str) -> None:
    """A clip far from the values changes nothing but forbids ATen's own cell: both paths must agree."""
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    constants = {"w": f32(count, gates * 5, 4), "r": f32(count, gates * 5, 5), "b": f32(count, 2 * gates * 5)}
    extra = {"linear_before_reset": 1} if kind == "GRU" else {}
    outputs = ["y", "h", "c"][: 3 if kind == "LSTM" else 2]
    found = []
    x = f32(3, 2, 4)
    for more in ({}, {"clip": 1e6}):
        node = m.node(
            kind, ["x", "w", "r", "b"], outputs, hidden_size=5, direction=direction, **extra, **more
        )
        captured = capture_onnx(m.model([node], [m.value("x", [3, 2, 4])], outputs, constants))
        whole = any(n.op in ("aten.lstm", "aten.gru", "aten.rnn_tanh") for n in captured.program.nodes)
        assert whole == (not more)
        found.append(results(captured, x))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

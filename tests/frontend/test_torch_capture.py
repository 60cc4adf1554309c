"""Capture from PyTorch: names, lines, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from planish.errors import CaptureError, UnsupportedOpError, UsageError
from planish.frontend.capture.torch import capture_torch
from planish.ir.parser import parse
from planish.ir.run import run
from planish.ir.verify import verify


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.drop(torch.relu(self.first(x)))
        y = y.detach().to(torch.float32)
        y += 1.0
        return self.second(y) + x


def check(model, inputs, others, **options):
    captured = capture_torch(model, inputs, **options)
    verify(captured.program, captured.weights)
    text = str(captured.program)
    again = parse(text)
    assert again.outputs == captured.program.outputs and str(again) == text
    for given in others:
        with torch.no_grad():
            expected = model(*given)
        (got,) = run(captured.program, captured.weights, *given)
        assert got.dtype == expected.dtype
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    return captured


def test_names_lines_and_sizes():
    model = Block().eval()
    captured = check(
        model,
        (torch.randn(3, 8),),
        [(torch.randn(5, 8),), (torch.randn(1, 8),)],
        dynamic_shapes={"x": {0: ("N", 1, 64)}},
    )
    program = captured.program
    assert str(program.inputs[0].type) == "f32[N, 8]"
    assert program.symbols[0].high == 64
    linears = [n for n in program.nodes if n.op == "aten.linear"]
    assert [program.origins[n].scope for n in linears] == ["first", "second"]
    assert all("test_torch_capture.py" in (program.origins[n].source or "") for n in linears)
    assert {n.op for n in program.nodes} == {"input", "const", "aten.linear", "aten.relu", "aten.add"}


def test_the_model_is_not_changed():
    model = Block().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    capture_torch(model, (torch.randn(3, 8),))
    assert model.training and model.drop.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_tied_weights_stay_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids))

    captured = capture_torch(Tied(), (torch.tensor([1, 2, 3]),))
    assert [c.name for c in captured.program.constants()] == ["table.weight"]


def test_exported_program():
    model = Block().eval()
    exported = torch.export.export(
        model,
        (torch.randn(3, 8),),
        dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2, max=9)}},
        strict=False,
    )
    captured = capture_torch(exported)
    assert captured.program.symbols[0].high == 9
    x = torch.randn(7, 8)
    assert torch.allclose(run(captured.program, captured.weights, x)[0], model(x), atol=1e-6)


def test_own_operators_stay_whole():
    class Turn(nn.Module):
        def forward(self, x, cos, sin):
            return torch.ops.planish.rope(x, cos, sin)

    from planish.ir.torch_library import register

    assert "rope" in register()
    args = (torch.randn(2, 5, 8), torch.randn(5, 4), torch.randn(5, 4))
    captured = capture_torch(Turn(), args)
    assert captured.program.count("planish.rope") == 1
    assert torch.equal(run(captured.program, captured.weights, *args)[0], torch.ops.planish.rope(*args))


class FixesLength(nn.Module):
    def forward(self, x):
        total = x[:, 0]
        for i in range(1, x.shape[1]):  # this loop fixes the length
            total = total + x[:, i]
        return total


def test_a_fixed_dimension_is_named_with_its_line():
    with pytest.raises(CaptureError) as caught:
        capture_torch(FixesLength(), (torch.randn(3, 6),), dynamic_shapes={"x": {1: "T"}})
    assert caught.value.code == "PL104"
    assert "dimension T" in str(caught.value) and "fixed to 6" in str(caught.value)
    assert "test_torch_capture.py" in str(caught.value)
    captured = capture_torch(
        FixesLength(), (torch.randn(3, 6),), dynamic_shapes={"x": {1: "T"}}, allow_fixed=True
    )
    assert any("fixed to 6" in note for note in captured.notes)


class ByData(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # depends on the data
            return x
        return -x


class Nonzero(nn.Module):
    def forward(self, x):
        return x[x > 0]


class Mutates(nn.Module):
    def forward(self, x):
        x.add_(1.0)
        return x * 2


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x):
        self.calls.add_(1.0)
        return x + self.calls


class Foreign(nn.Module):
    def forward(self, x):
        return torch.linalg.cholesky(x) + torch.linalg.eigvalsh(x)


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))


@pytest.mark.parametrize(
    ("model", "shape", "code"),
    [
        (ByData(), (3,), "PL102"),
        (Nonzero(), (3,), "PL102"),
        (Mutates(), (3,), "PL105"),
        (Counts(), (3,), "PL105"),
        (Branches(), (3,), "PL106"),
    ],
    ids=["branch-on-data", "data-dependent-size", "input-mutation", "buffer-mutation", "control-flow"],
)
def test_what_cannot_be_captured_is_named(model, shape, code):
    with pytest.raises(CaptureError) as caught:
        capture_torch(model, (torch.randn(*shape),))
    assert caught.value.code == code
    assert caught.value.exit_code == 3


def test_unknown_operators_are_listed_at_once():
    with pytest.raises(UnsupportedOpError) as caught:
        capture_torch(Foreign(), (torch.eye(3),))
    message = str(caught.value)
    assert "cholesky" in message and "eigh" in message and "test_torch_capture.py" in message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("inputs", "options", "code"),
    [
        (None, {}, "PL850"),
        ((torch.randn(3, 8), torch.randn(3)), {}, "PL851"),
        ((torch.randn(3, 8),), {"dynamic_shapes": {"y": {0: "N"}}}, "PL852"),
        ((torch.randn(3, 8),), {"dynamic_shapes": {"x": {4: "N"}}}, "PL852"),
        ((torch.randn(3, 8),), {"dynamic_shapes": {"x": {0: ("N", 5, 9)}}}, "PL853"),
    ],
)
def test_wrong_example_inputs(inputs, options, code):
    with pytest.raises(UsageError) as caught:
        capture_torch(Block(), inputs, **options)
    assert caught.value.code == code

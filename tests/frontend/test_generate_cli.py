"""``Compiled.generate`` on every kind of runtime, and ``planish generate``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.errors import PlanishError
from planish.frontend import api
from planish.frontend.capture.source import capture
from planish.frontend.cli.main import main
from planish.frontend.config import GenerateOptions
from planish.runtime.session import load as load_session

VOCABULARY = 64


class TinyLanguage(nn.Module):
    """A language model of one layer, ``i64[B, T] -> f32[B, T, 64]``."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.embed = nn.Embedding(VOCABULARY, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        b, t = input_ids.shape
        x = self.embed(input_ids)
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.o(mixed.transpose(1, 2).reshape(b, t, -1)))


def tokenizer_folder(folder: Path) -> Path:
    """A tokenizer of single letters with a template for chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted("abcdefghijklmnopqrstuvwxyz.,!?:" + "ĠĊ")
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    return folder


def captured() -> Any:
    """The model, captured with free sizes."""
    sizes = ({0: torch.export.Dim("B", min=1, max=8), 1: torch.export.Dim("T", min=1, max=64)},)
    example = (torch.randint(0, VOCABULARY, (2, 7)),)
    return capture(TinyLanguage().eval(), example_inputs=example, dynamic_shapes=sizes)


def compiled(target: str, tokenizer: Path | None = None, **options: Any) -> planish.Compiled:
    """The model for a target, with entry points that generate unless told otherwise."""
    wanted = {"context": 40, "batch": None} | options
    made = api.make_options(target=target, generate=GenerateOptions(**wanted))
    return api.compile_captured(replace(captured(), tokenizer=tokenizer), made)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts: with a tokenizer, without one, and of a model that does not generate."""
    folder = tmp_path_factory.mktemp("generate")
    tokenizer = tokenizer_folder(folder / "tokenizer")
    compiled("onnxruntime", tokenizer).export(folder / "text.planish")
    compiled("onnxruntime", extend=False).export(folder / "bare.planish")
    plain = api.make_options(target="onnxruntime")
    api.compile_captured(captured(), plain).export(folder / "plain.planish")
    return folder


def greedy(prompt: list[int], count: int) -> list[int]:
    """The best tokens, by running the whole sequence every time."""
    model, ids = TinyLanguage().eval(), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
def test_generates_what_the_model_says(target: str) -> None:
    with compiled(target) as model:
        prompts = [[1, 2, 3], [4], [7] * 12]
        for speculate in (False, True):
            found = model.generate(prompts, max_tokens=16, speculate=speculate)
            assert [list(f.token_ids) for f in found] == [greedy(p, 16) for p in prompts]
        context = model.generator.context()
        model.generate([1, 2, 3], max_tokens=4, context=context)
        other = context.fork()
        assert model.generate([], max_tokens=5, context=context).token_ids == tuple(greedy([1, 2, 3], 9)[4:])
        context.rollback(5)
        for a, b in zip(context.step([9]), other.step([9]), strict=True):
            assert (a == b).all()


def test_contexts_survive_the_process(files: Path, tmp_path: Path) -> None:
    with load_session(files / "text.planish") as session:
        context = session.context()
        context.extend([1, 2, 3, 4, 5])
        stored = context.save(tmp_path / "context.safetensors")
        wanted = session.generate([6], max_tokens=8, context=context).token_ids
    script = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
for name in ("torch", "onnx", "sympy", "transformers", "planish.ir", "planish.frontend"):
    sys.modules[name] = None
from planish.runtime import load
session = load({str(files / "text.planish")!r})
context = session.restore({str(stored)!r})
print(*session.generate([6], max_tokens=8, context=context).token_ids)
print(session.generate("abc", max_tokens=4).text is not None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == " ".join(map(str, wanted)) and second == "True"
    with (
        load_session(files / "bare.planish") as other,
        pytest.raises(PlanishError, match="PL640"),
    ):
        other.restore(files / "text.planish")


def test_the_tokenizer_of_a_model_that_was_just_compiled(tmp_path: Path) -> None:
    with compiled("eager", tokenizer_folder(tmp_path / "t")) as model:
        found = model.generate("hello there", max_tokens=6)
        assert found.prompt_tokens == 11 and isinstance(found.text, str)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in ("generate", *arguments)])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def test_streams_text(files: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = files / "text.planish"
    code, out, err = call(model, "--prompt", "hello", "--max-tokens", 9, "--stats")
    assert code == 0 and out.endswith("\n") and "tokens/s" in err and "ended" in err
    with load_session(model) as session:
        wanted = session.generate("hello", max_tokens=9)
    assert out.removesuffix("\n") == wanted.text.removesuffix("\n")
    file = tmp_path / "prompt.txt"
    file.write_text("hello\n")
    assert call(model, "--prompt-file", file, "--max-tokens", 9) == (0, out, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    assert call(model, "--max-tokens", 9, "--speculate") == (0, out, "")
    code, out, _ = call(model, "--prompt", "hello", "--max-tokens", 9, "--json")
    table = json.loads(out)
    assert (
        code == 0
        and table["text"] == wanted.text
        and table["statistics"]["tokens"] == len(table["token_ids"])
    )
    drawn = [
        call(model, "--prompt", "a", "--temperature", 2, "--top-k", 9, "--top-p", 0.9, "--seed", 3)
        for _ in "ab"
    ]
    assert drawn[0] == drawn[1] and drawn[0][0] == 0
    assert call(model, "--prompt", "a", "--chat", "--system", "be", "--max-tokens", 3)[0] == 0
    assert call(model, "--prompt", "a", "--dry-run")[0] == 0


def test_what_is_refused(files: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = files / "text.planish", ("--prompt", "hello")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    for code, exits, arguments in (
        ("PL870", 2, (files / "plain.planish", *prompt)),
        ("PL874", 2, (files / "bare.planish", *prompt)),
        ("PL871", 2, (model, *prompt, "--max-tokens", 37)),
        ("PL871", 2, (model, "--prompt", "a" * 41)),
        ("PL872", 2, (model, "--prompt", "")),
        ("PL872", 2, (model, "--prompt", " \n")),
        ("PL824", 2, (model, *prompt, "--prompt-file", "x")),
        ("PL824", 2, (model, *prompt, "--temperature", -1)),
        ("PL824", 2, (model, *prompt, "--top-p", 2)),
        ("PL824", 2, (model, *prompt, "--top-k", 0)),
        ("PL824", 2, (model, *prompt, "--system", "x")),
        ("PL824", 2, (model, *prompt, "--stop", "")),
        ("PL877", 2, (model, *prompt, "--speculate", "--temperature", 1)),
        ("PL120", 3, (tmp_path / "absent.planish", *prompt)),
        ("PL120", 3, (model, "--prompt-file", tmp_path / "absent")),
        ("PL120", 3, (model, "--prompt-file", tmp_path / "latin.txt")),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (exits, "") and code in err, (arguments, err)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "PL872" in call(model)[2]
    assert call(model, *prompt, "--max-tokens", 0)[0] == 2


def test_interrupted(files: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.runtime.generate.context import Context

    real, left = Context.extend, [3]

    def extend(self: Context, *args: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(self, *args, **named)

    monkeypatch.setattr(Context, "extend", extend)
    code, out, err = call(files / "text.planish", "--prompt", "hello")
    assert code == 130 and out.endswith("\n") and "Traceback" not in err


def test_a_closed_pipe_is_no_fault(files: Path) -> None:
    start = "from planish.frontend.cli.main import main; raise SystemExit(main())"
    arguments = ["generate", str(files / "text.planish"), "--prompt", "hello"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", start, *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr

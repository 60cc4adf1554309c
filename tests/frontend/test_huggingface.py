from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import ArtifactError, CaptureError, UsageError
from planish.frontend.capture.gguf import load_gguf
from planish.frontend.capture.gguf_file import read_header
from planish.frontend.capture.source import capture, tokenizer_files
from planish.ir.run import run
from tests.frontend.small_files import VOCABULARY, small_llama, write_gguf

SIZES = ((1, 5), (2, 21))
CLOSE = 1e-5


def error_of(have: Any, want: torch.Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max())


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "llama"
    small_llama().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def check(captured: Any, model: Any) -> None:
    for batch, length in SIZES:
        ids = torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            want = model(input_ids=ids, use_cache=False).logits
            have = run(captured.program, captured.weights, ids)[0]
        assert error_of(have, want) <= CLOSE


def test_folder_with_dynamic_batch_and_length(folder: Path) -> None:
    captured = capture(folder)
    assert captured.program.output_names == ("logits",)
    assert [str(leaf.tensor) for leaf in captured.program.inputs] == ["i64[B, T]"]
    assert captured.digest == capture(folder).digest
    check(captured, small_llama())


def test_model_object_needs_no_example_inputs() -> None:
    model = small_llama()
    assert model.config.use_cache
    check(capture(model), model)
    assert model.config.use_cache


def test_encoder_and_images() -> None:
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = capture(BertModel(BertConfig(vocab_size=50, max_position_embeddings=40, **small)).eval())
    assert [leaf.name for leaf in bert.program.inputs] == ["input_ids", "attention_mask"]
    assert next(s for s in bert.program.symbols if s.name == "T").high == 40
    vit = capture(ViTModel(ViTConfig(image_size=32, patch_size=16, **small)).eval())
    assert [str(leaf.tensor) for leaf in vit.program.inputs] == ["f32[B, 3, 32, 32]"]


def test_gguf_gives_the_model_that_transformers_reads(gguf_file: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours = load_gguf(gguf_file)
    theirs = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    )
    have, want = ours.state_dict(), theirs.state_dict()
    assert list(have) == list(want)
    assert all(torch.equal(have[name], want[name]) for name in want)
    buffers = dict(theirs.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in ours.named_buffers())
    check(capture(gguf_file), theirs.eval())


def test_gguf_tokenizer(gguf_file: Path) -> None:
    from tokenizers import Tokenizer

    files = tokenizer_files(gguf_file)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert Tokenizer.from_buffer(files["tokenizer.json"]).encode("a!b", add_special_tokens=False).ids == [
        64,
        0,
        65,
    ]


def test_gguf_of_unknown_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", "nonesuch")
    with pytest.raises(CaptureError, match=r"PL123: .*the architecture 'nonesuch' is not known") as found:
        capture(path)
    assert "llama" in str(found.value.hint)


def test_gguf_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"certainly not a model")
    with pytest.raises(CaptureError, match="PL121"):
        capture(path)
    path.write_bytes(b"")
    with pytest.raises(CaptureError, match="PL121"):
        capture(path)


def test_gguf_cut_short_anywhere(gguf_file: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (*range(4, 400, 23), len(data) // 2, len(data) - 40):
        cut.write_bytes(data[:size])
        with pytest.raises(CaptureError, match=r"PL12[12]"):
            read_header(cut)


def test_gguf_with_damaged_header(gguf_file: Path, tmp_path: Path) -> None:
    data = bytearray(gguf_file.read_bytes())
    end = read_header(gguf_file).table_end
    bad = tmp_path / "bad.gguf"
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = int(rng.integers(4, end))
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        bad.write_bytes(changed)
        try:
            read_header(bad)
        except CaptureError as error:
            assert error.code in ("PL121", "PL122")


def test_gguf_without_a_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_norm.weight", b"blk.0.attn_name.weight"))
    with pytest.raises(CaptureError, match=r"PL124: .*missing: model.layers.0.input_layernorm.weight"):
        capture(path)


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"PL126: .*has no config.json"):
        capture(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(CaptureError, match=r"PL126: .*not valid JSON"):
        capture(broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    with pytest.raises(CaptureError, match="PL126"):
        capture(broken)


def test_weights_that_are_missing_damaged_or_pickled(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CaptureError, match="PL127"):
        capture(copy)
    weights.unlink()
    with pytest.raises(CaptureError, match=r"PL127: .*has no weights"):
        capture(copy)
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="PL630"):
        capture(copy)


def test_files_that_can_run_code(tmp_path: Path) -> None:
    for suffix in (".pt", ".pth", ".bin", ".pt2"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(b"x")
        with pytest.raises(ArtifactError, match="PL630"):
            capture(path)
        with pytest.raises(CaptureError, match="PL129"):
            capture(path, allow_pickle=True)
    whole = tmp_path / "whole.pt"
    torch.save(torch.nn.Linear(4, 2), whole)
    assert (
        capture(whole, example_inputs=torch.ones(3, 4), allow_pickle=True).program.count("aten.linear") == 1
    )


def test_other_files_and_objects(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="PL120"):
        capture(tmp_path / "absent.gguf")
    other = tmp_path / "model.txt"
    other.write_text("x")
    with pytest.raises(CaptureError, match="PL128"):
        capture(other)
    with pytest.raises(UsageError, match="PL820"):
        capture(42)

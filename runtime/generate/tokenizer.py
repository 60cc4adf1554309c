"""Text to tokens and back, with the tokenizer that an artifact holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planish.errors import ArtifactError, BackendError, UsageError
from planish.runtime.generate.model import Model
from planish.runtime.tensors import parse_json

FILE, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_BROKEN = "\ufffd"
_CONTEXT = 5


class Tokenizer:
    """The tokenizer of a model. ``stops`` are the tokens that end a text; ``settings`` is its configuration.

    PL642: its files cannot be read; PL791: the library is not installed.
    """

    def __init__(self, data: bytes, settings: Mapping[str, Any], stops: frozenset[int], where: str) -> None:
        self.where = where
        self.settings = settings
        self._backend = _backend(data, where)
        self.stops = stops | self._tokens("eos_token")

    @property
    def size(self) -> int:
        """The number of tokens, those added to the vocabulary among them."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; ``special`` adds those that the model wants around it, such as one at its beginning."""
        try:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        except Exception as error:  # the library raises plain exceptions, also for lone surrogates
            raise UsageError(
                "PL874", f"the text cannot be encoded: {_first(error)}", where=self.where
            ) from None

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; those with a special meaning are left out unless ``special``."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=not special))

    def special(self, name: str) -> str | None:
        """The text of a token with a role, such as ``bos_token``."""
        value = self.settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    def _tokens(self, role: str) -> frozenset[int]:
        text = self.special(role)
        token = None if text is None else self._backend.token_to_id(text)
        return frozenset() if token is None else frozenset([int(token)])


class Detokenizer:
    """The text of tokens that come one by one, in pieces that end where a character ends.

    ``before`` are the tokens that stand before them; some decoders drop the space with which a text begins.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._held = list(before[-_CONTEXT:])
        self._text = tokenizer.decode(self._held)
        if self._text.endswith(_BROKEN):
            self._held, self._text = [], ""
        self._read = len(self._held)

    def push(self, token: int) -> str:
        """The text that is complete with one more token; it may be empty."""
        self._held.append(token)
        text = self._tokenizer.decode(self._held)
        whole = text.rstrip(_BROKEN)
        if not text.startswith(self._text) or len(whole) < len(self._text):
            return ""
        piece = whole[len(self._text) :]
        if whole != text:
            self._text += piece
            return piece
        # All is complete: what came since serves as the beginning of the next window, if it shows at all.
        rest = self._held[self._read :]
        shown = self._tokenizer.decode(rest)
        self._held, self._text = (rest, shown) if shown else (self._held, text)
        self._read = len(self._held)
        return piece

    def flush(self) -> str:
        """What is left at the end; bytes that never became a character show as U+FFFD."""
        text = self._tokenizer.decode(self._held)
        piece = text[len(self._text) :] if text.startswith(self._text) else ""
        self._text = text
        return piece


def load_tokenizer(model: Model, where: str = "tokenizer") -> Tokenizer | None:
    """The tokenizer of a model; None if it has none. PL642 if its files cannot be read."""
    data = model.tokenizer_file(FILE)
    if data is None:
        return None
    settings = _table(model.tokenizer_file(SETTINGS), f"{where}/{SETTINGS}")
    stops = _table(model.tokenizer_file(GENERATION), f"{where}/{GENERATION}").get("eos_token_id")
    listed = stops if isinstance(stops, list) else [stops]
    return Tokenizer(data, settings, frozenset(t for t in listed if type(t) is int), f"{where}/{FILE}")


def _table(data: bytes | None, where: str) -> dict[str, Any]:
    found = {} if data is None else parse_json(data, code="PL642", where=where)
    if not isinstance(found, dict):
        raise ArtifactError("PL642", "is not a JSON object", where=where)
    return found


def _backend(data: bytes, where: str) -> Any:
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise BackendError(
            "PL791", "tokenizers, which turns text to tokens, is not installed", hint="pip install tokenizers"
        ) from error
    try:
        made = Backend.from_buffer(data)
    except Exception as error:  # the library raises plain exceptions
        raise ArtifactError("PL642", f"cannot be read: {_first(error)}", where=where) from None
    made.no_truncation()
    made.no_padding()
    return made


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""Messages of a conversation as the text that a model was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planish.errors import UsageError
from planish.runtime.generate.model import Model
from planish.runtime.generate.sandbox import render
from planish.runtime.generate.tokenizer import Tokenizer

TEMPLATE = "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_MOST_MESSAGES = 10_000


def chat_text(model: Model, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a conversation, up to where the model's answer begins.

    ``messages`` are tables with ``role`` and ``content``. PL876: there is no template, or the messages do not fit.
    """
    template = _template(model, tokenizer)
    tokens = {role: tokenizer.special(role) or "" for role in _ROLES}
    values = {**tokens, "messages": check_messages(messages), "add_generation_prompt": True, "tools": None}
    return render(template, values)


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as tables of texts; PL876 if they are not."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "PL876", "a list of messages is needed", hint='such as {"role": "user", "content": "Hi"}'
        )
    if len(messages) > _MOST_MESSAGES:
        raise UsageError("PL876", f"{len(messages)} messages, the limit is {_MOST_MESSAGES}")
    for message in messages:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UsageError(
                "PL876",
                f"{str(message)[:100]!r} is no message",
                hint='such as {"role": "user", "content": "Hi"}',
            )
    return [dict(message) for message in messages]


def _template(model: Model, tokenizer: Tokenizer) -> str:
    data = model.tokenizer_file(TEMPLATE)
    if data is not None:
        return data.decode("utf-8", "replace")
    found = tokenizer.settings.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise UsageError(
            "PL876", "the model has no chat template", where=tokenizer.where,
            hint="give the prompt as text, without chat",
        )  # fmt: skip
    return found

"""Text from a model: contexts with caches, the choice of tokens, tokenizers, chat, drafts, and the loop around them.

It runs on anything that is a :class:`~planish.runtime.generate.model.Model`; a loaded artifact is one.
"""

from __future__ import annotations

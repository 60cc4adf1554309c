"""How ATen operators are written in the dialect: one small function per operator."""


def load() -> None:
    """Register every operator (idempotent)."""
    from planish.frontend.capture.torch_ops import (  # noqa: F401
        creation,
        indexing,
        layers,
        own,
        pointwise,
        reduction,
        structure,
    )

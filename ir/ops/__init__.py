"""The rows of the dialect, by family, and the operations that ATen lacks."""


def load() -> None:
    """Import every family, which fills the table."""
    from planish.ir.ops import (  # noqa: F401
        attention,
        cache,
        control,
        layout,
        pointwise,
        quantized,
        reduction,
        sparse,
        structure,
    )

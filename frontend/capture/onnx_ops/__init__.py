"""ONNX operators as tensor code, by family."""


def load() -> None:
    """Import every family, which fills the table of handlers."""
    from planish.frontend.capture.onnx_ops import (  # noqa: F401
        attention,
        control,
        convolution,
        indexing,
        layout,
        linear,
        norm,
        pointwise,
        pooling,
        quantized,
        recurrent,
        reduction,
        resize,
        signal,
    )

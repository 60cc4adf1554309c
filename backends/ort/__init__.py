"""The ONNX Runtime backend: a table from the dialect to ONNX, and kernels that read quantized weights.

``lower.lower`` writes a program as ONNX, ``build.build`` runs the result here, ``write.save_onnx`` writes a model
that any ONNX Runtime loads, ``write.payload`` and ``write.place`` put it into an artifact, ``target.target`` says
what the backend can do.
"""

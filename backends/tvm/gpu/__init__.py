"""Kernels for GPUs: scheduled functions of TIR for CUDA and OpenCL."""

"""The TVM backend: programs to machine code, with kernels of our own."""

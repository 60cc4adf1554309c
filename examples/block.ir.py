B = dim(1, 64)
T = dim(1, 2048)


def main(x: f32[B, T, 64]):
    square0: f32[B, T, 64]   = aten.mul(x, x)
    mean0: f32[B, T, 1]      = aten.mean(square0, [2], True)
    add0: f32[B, T, 1]       = aten.add(mean0, 1e-05)
    rsqrt0: f32[B, T, 1]     = aten.rsqrt(add0)
    mul0: f32[B, T, 64]      = aten.mul(x, rsqrt0)
    norm: f32[64]            = const('norm.weight')
    mul1: f32[B, T, 64]      = aten.mul(norm, mul0)
    gate_proj: f32[192, 64]  = const('gate_proj.weight')
    linear0: f32[B, T, 192]  = aten.linear(mul1, gate_proj)
    sigmoid0: f32[B, T, 192] = aten.sigmoid(linear0)
    mul2: f32[B, T, 192]     = aten.mul(linear0, sigmoid0)
    down_proj: f32[64, 192]  = const('down_proj.weight')
    linear1: f32[B, T, 64]   = aten.linear(mul2, down_proj)
    add1: f32[B, T, 64]      = aten.add(x, linear1)
    return add1

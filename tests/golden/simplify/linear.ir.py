B = dim(1, 8)
T = dim(2, 512)


def main(x: f32[B, T, 8]):
    w: f32[16, 8] = const('w')
    b: f32[16]    = const('b')
    flat = aten.view(x, [B*T, 8])
    t = aten.permute(w, [1, 0])
    m = aten.matmul(flat, t)
    s = aten.add(b, m)
    y = aten.view(s, [B, T, 16])
    return y


# becomes
B = dim(1, 8)
T = dim(2, 512)


def main(x: f32[B, T, 8]):
    w: f32[16, 8]     = const('w')
    b: f32[16]        = const('b')
    s0: f32[B, T, 16] = aten.linear(x, w, b)
    return s0

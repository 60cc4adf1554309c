T = dim(2, 512)


def main(x: f32[T, 8], s: f32[8], t: f32[1, 8]):
    a = aten.expand(s, [T, 8])
    b = aten.mul(x, a)
    c = aten.expand(t, [T, 8])
    d = aten.neg(c)
    e = aten.sub(d, b)
    f = aten.full([1, 8], 3.0, f32)
    g = aten.expand(f, [T, 8])
    h = aten.sub(g, e)
    return h


# becomes
T = dim(2, 512)


def main(x: f32[T, 8], s: f32[8], t: f32[1, 8]):
    d0: f32[1, 8] = aten.neg(t)
    b0: f32[T, 8] = aten.mul(x, s)
    e0: f32[T, 8] = aten.sub(d0, b0)
    h0: f32[T, 8] = aten.sub(3.0, e0)
    return h0

def main(x: f16[4], y: f32[4], b: bool[4]):
    a = aten.to(x, f32)
    c = aten.to(a, f16)
    d = aten.to(y, f32)
    e = aten.to(y, f16)
    f = aten.to(e, f32)
    g = aten.to(b, i64)
    h = aten.to(g, f32)
    i = aten.full([4], 2.5, f32)
    j = aten.to(i, f16)
    return c, d, f, h, j


# becomes
def main(x: f16[4], y: f32[4], b: bool[4]):
    e0: f16[4] = aten.to(y, f16)
    f0: f32[4] = aten.to(e0, f32)
    h0: f32[4] = aten.to(b, f32)
    j0: f16[4] = aten.full([4], 2.5, f16)
    return x, y, f0, h0, j0

def main(x: f32[4, 8]):
    s = aten.sigmoid(x)
    silu = aten.mul(s, x)
    r = aten.div(silu, 1.4142135623730951)
    e = aten.erf(r)
    p = aten.add(e, 1.0)
    h = aten.mul(silu, 0.5)
    g = aten.mul(h, p)
    return g


# becomes
def main(x: f32[4, 8]):
    silu0: f32[4, 8] = aten.silu(x)
    g0: f32[4, 8]    = aten.gelu(silu0)
    return g0

T = dim(2, 512)


def main(x: f32[T, 4], ids: i64[T]):
    a = aten.neg(x)
    b = aten.neg(a)
    c = aten.mul(b, 1.0)
    d = aten.div(c, 8.0)
    e = aten.sub(d, 0.5)
    f = aten.add(e, -0.0)
    g = aten.add(f, 0.0)
    i = aten.add(ids, 3)
    j = aten.sub(i, 3)
    k = aten.mul(j, 2)
    l = aten.mul(k, 3)
    return g, l


# becomes
T = dim(2, 512)


def main(x: f32[T, 4], ids: i64[T]):
    d0: f32[T, 4] = aten.mul(x, 0.125)
    e0: f32[T, 4] = aten.add(d0, -0.5)
    g0: f32[T, 4] = aten.add(e0, 0.0)
    l0: i64[T]    = aten.mul(ids, 6)
    return g0, l0

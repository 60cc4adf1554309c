T = dim(2, 512)


def main(x: f32[T, T], m: bool[T, T]):
    ones = aten.full([T, T], True, bool)
    both = aten.bitwise_and(m, ones)
    never = aten.bitwise_not(both)
    zero = aten.full([], 0.0, f32)
    low = aten.full([], -inf, f32)
    chosen = aten.where(never, low, zero)
    y = aten.add(x, chosen)
    always = aten.where(ones, y, x)
    other = aten.eq(m, False)
    z = aten.where(other, always, 0.0)
    return z


# becomes
T = dim(2, 512)


def main(x: f32[T, T], m: bool[T, T]):
    low0: f32[()]      = aten.full([], -inf, f32)
    chosen0: f32[T, T] = aten.where(m, 0.0, low0)
    y0: f32[T, T]      = aten.add(x, chosen0)
    z0: f32[T, T]      = aten.where(m, 0.0, y0)
    return z0

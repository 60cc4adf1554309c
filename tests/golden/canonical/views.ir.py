B = dim(1, 8)
T = dim(2, 512)


def main(x: f32[B, T, 8], one: f32[B, 1, 8]):
    a = aten.view(x, [B, T, 2, 4])
    b = aten.view(a, [B, T, 8])
    c = aten.permute(b, [0, 2, 1])
    d = aten.permute(c, [0, 2, 1])
    e = aten.permute(one, [1, 0, 2])
    f = aten.expand(d, [B, T, 8])
    g = aten.expand(f, [1, B, T, 8])
    h = aten.slice(g, 3, 0, 8)
    i = aten.flip(h, [2])
    j = aten.flip(i, [2])
    return e, j


# becomes
B = dim(1, 8)
T = dim(2, 512)


def main(x: f32[B, T, 8], one: f32[B, 1, 8]):
    e0: f32[1, B, 8]    = aten.view(one, [1, B, 8])
    g0: f32[1, B, T, 8] = aten.view(x, [1, B, T, 8])
    return e0, g0

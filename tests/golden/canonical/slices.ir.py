T = dim(4, 512)


def main(x: f32[T, 8], y: f32[T, 8], z: f32[T, 4]):
    left = aten.slice(x, 1, 0, 4)
    right = aten.slice(x, 1, 4, 8)
    whole = aten.cat([left, right], 1)
    joint = aten.cat([whole, y], 1)
    all = aten.cat([joint, z], 1)
    first = aten.slice(all, 1, 0, 8)
    middle = aten.slice(all, 1, 8, 16)
    part = aten.slice(all, 1, 10, 14)
    two = aten.slice(all, 1, 8, 20)
    rows = aten.slice(x, 0, 1, T)
    again = aten.slice(rows, 0, 2, T - 1)
    strided = aten.slice(x, 0, 1, T, 2)
    return first, middle, part, two, again, strided


# becomes
T = dim(4, 512)


def main(x: f32[T, 8], y: f32[T, 8], z: f32[T, 4]):
    part0: f32[T, 4]       = aten.slice(y, 1, 2, 6)
    two0: f32[T, 12]       = aten.cat([y, z], 1)
    again0: f32[T - 3, 8]  = aten.slice(x, 0, 3, T)
    strided0: f32[T//2, 8] = aten.slice(x, 0, 1, T, 2)
    return x, y, part0, two0, again0, strided0

# PL340: file:2:5: a range needs two whole numbers, 0 <= low <= high
T = dim(8, 2)


def main(x: f32[T]):
    y = aten.neg(x)
    return y

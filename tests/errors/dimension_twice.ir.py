# PL340: file:3:1: the dimension T is declared twice
T = dim(2, 8)
T = dim(2, 9)


def main(x: f32[T]):
    y = aten.neg(x)
    return y

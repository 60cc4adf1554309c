# PL340: file:2:17: 'T' is not a dimension
def main(x: f32[T, 4]):
    y = aten.neg(x)
    return y

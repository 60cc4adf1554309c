# PL340: file:4:5: 'y' is defined twice
def main(x: f32[4]):
    y = aten.neg(x)
    y = aten.abs(x)
    return y

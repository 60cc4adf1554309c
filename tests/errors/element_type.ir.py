# PL340: file:2:13: unknown element type 'float'
def main(x: float[4]):
    y = aten.neg(x)
    return y

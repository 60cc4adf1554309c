# PL310: file:3:9: aten.linear(f32[4, 3]): needs weight; it is aten.linear(x, weight, bias=None)
def main(x: f32[4, 3]):
    y = aten.linear(x)
    return y

# PL342: file: expected one program, found 2
def main(x: f32[4]):
    y = aten.neg(x)
    return y


def other(x: f32[4]):
    y = aten.neg(x)
    return y

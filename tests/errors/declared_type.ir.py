# PL341: file:3:8: declared f32[5], but the operation gives f32[4]
def main(x: f32[4]):
    y: f32[5] = aten.neg(x)
    return y

# PL310: file:3:9: aten.softmax(f32[4, 3], 2): dim 2 is outside of the 2 axes
def main(x: f32[4, 3]):
    y = aten.softmax(x, 2)
    return y

# PL310: file:3:9: aten.softmax(f32[4, 3]): has no parameter axis; it is aten.softmax(x, dim)
def main(x: f32[4, 3]):
    y = aten.softmax(x, axis=1)
    return y

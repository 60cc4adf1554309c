# PL340: file:3:5: a leaf needs its type, as in  w: f32[4, 4] = const('w')
def main(x: f32[4]):
    w = const('w')
    y = aten.add(x, w)
    return y

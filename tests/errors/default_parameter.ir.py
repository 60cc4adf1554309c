# PL340: file:2:1: a program has plain typed parameters only
def main(x: f32[4], y: f32[4] = 0):
    z = aten.add(x, y)
    return z

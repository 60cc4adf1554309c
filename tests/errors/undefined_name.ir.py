# PL340: file:3:21: 'z' is not defined
def main(x: f32[4]):
    y = aten.add(x, z)
    return y

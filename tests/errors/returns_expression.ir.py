# PL340: file:3:12: only names of values are returned
def main(x: f32[4]):
    return aten.neg(x)

# PL340: file:2:10: x needs a type
def main(x):
    y = aten.neg(x)
    return y

# PL340: file:3:5: a program ends with return
def main(x: f32[4]):
    y = aten.neg(x)
